"""Known troubles of building Triton on a host: when each arises, what averts it, how it shows.

They are data, in ``troubles.toml``. None is averted by changing Triton's sources: what is injected
reaches every nested project through a CMake toolchain file, the environment, or a file that CMake
includes into a project.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from provision import toml
from provision.errors import InternalError
from provision.releases import Source, catalogue

DATA = Path(__file__).with_name("troubles.toml")
INCLUDES = Path(__file__).with_name("cmake")
"""The CMake files that troubles have included into a project."""


@dataclass(frozen=True)
class Trouble:
    """A known trouble.

    Attributes:
        name: What to call it.
        reason: What goes wrong, and why.
        link: Where that is told.
        fix: What the user can do about it, where nothing can be injected.
        features: It arises only with all of these.
        since: The first release that has it; empty for the very first.
        before: The first that has it no more; empty where all newer ones have it.
        when: The tools' versions at which it arises.
        variables: CMake variables that avert it.
        environment: Environment variables that avert it.
        includes: For a CMake project, the file that it has to include.
        sources: Other sources than the release's, by name.
        symptom: What a log says where it was not averted.
        slow: Whether a build succeeds all the same, and takes longer.
    """

    name: str
    reason: str
    link: str = ""
    fix: str = ""
    features: frozenset[str] = frozenset()
    since: str = ""
    before: str = ""
    when: Mapping[str, SpecifierSet] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    includes: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, Source] = field(default_factory=dict)
    symptom: re.Pattern[str] | None = None
    slow: bool = False

    @property
    def averts(self) -> bool:
        """Whether anything can be injected."""
        return bool(self.variables or self.environment or self.includes or self.sources)

    def arises(self, release: str, features: frozenset[str], tools: Mapping[str, str]) -> bool:
        """Whether a build has it.

        Args:
            release: The release's name.
            features: What is built in.
            tools: The versions of the tools, by name; a tool without one does not count.
        """
        return (
            self.features <= features
            and self.since <= release
            and (not self.before or release < self.before)
            and all(tools.get(n) and Version(tools[n]) in v for n, v in self.when.items())
        )


@functools.cache
def troubles() -> tuple[Trouble, ...]:
    """Every known trouble, in the order of the file."""
    return tuple(_read(name, dict(table)) for name, table in toml.load(DATA).items())


def averted(
    release: str, features: frozenset[str], tools: Mapping[str, str]
) -> tuple[Trouble, ...]:
    """The troubles that a build would have, and that something is injected against."""
    return tuple(t for t in arising(release, features, tools) if t.averts)


def arising(
    release: str, features: frozenset[str], tools: Mapping[str, str]
) -> tuple[Trouble, ...]:
    """The troubles that a build may have, averted or not."""
    return tuple(t for t in troubles() if t.arises(release, features, tools))


def possible(release: str, features: frozenset[str]) -> tuple[Trouble, ...]:
    """The troubles that a build may have on one host or another."""
    return tuple(
        t for t in troubles() if dataclasses.replace(t, when={}).arises(release, features, {})
    )


def recognized(text: str, candidates: Iterable[Trouble] | None = None) -> Iterator[Trouble]:
    """The troubles that a log shows.

    Args:
        text: What it says.
        candidates: The troubles that there may be; by default all that are known.
    """
    known = troubles() if candidates is None else candidates
    return (t for t in known if t.symptom and t.symptom.search(text))


def _read(name: str, table: dict[str, Any]) -> Trouble:
    try:
        when = {tool: SpecifierSet(range_) for tool, range_ in table.pop("when", {}).items()}
        sources = {n: _source(n, s) for n, s in table.pop("sources", {}).items()}
        symptom = table.pop("symptom", "")
        trouble = Trouble(
            name=name,
            features=frozenset(table.pop("features", ())),
            when=when,
            sources=sources,
            symptom=re.compile(symptom) if symptom else None,
            **table,
        )
    except (TypeError, ValueError, re.error) as error:
        raise InternalError(f"{DATA.name}: {name}: {error}", fix="correct it there") from error
    for include in trouble.includes.values():
        if not (INCLUDES / include).is_file():
            raise InternalError(f"{DATA.name}: {name}: there is no {include}", fix="add it")
    if not trouble.averts and not trouble.fix:
        raise InternalError(
            f"{DATA.name}: {name} neither averts anything nor has a fix", fix="add one"
        )
    return trouble


def _source(name: str, table: dict[str, Any]) -> Source:
    """A source in place of the release's; its commit is in the same lock."""
    git, ref = table["git"], table["ref"]
    return Source(
        name=name,
        needed_for=(),
        git=git,
        ref=ref,
        commit=catalogue().refs.get(git, {}).get(ref, ""),
        override=table["override"],
    )
