"""What a build takes from elsewhere: its repositories, their submodules, and archives."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from provision.mirror import Mirror, Pin, Submodule
from provision.releases import Catalogue, Release, Source
from provision.update_releases import BASE

_AT_ONCE = 8


@dataclass(frozen=True)
class Wanted:
    """What a build takes.

    Attributes:
        pins: The repositories, submodules aside.
        archives: The archives.
    """

    pins: tuple[Pin, ...]
    archives: tuple[Source, ...]


@dataclass(frozen=True)
class Survey:
    """What of it a mirror has.

    Attributes:
        commits: The commit of each pin that is there.
        missing: The pins that are not.
        archives: The archives that are not.
        skipped: The names of submodules that no build reads.
    """

    commits: Mapping[Pin, str]
    missing: tuple[Pin, ...]
    archives: tuple[Source, ...]
    skipped: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing and not self.archives


def wanted(
    release: Release,
    catalogue: Catalogue,
    features: frozenset[str],
    *,
    on_host: Iterable[str] = (),
    instead: Mapping[str, Source] | None = None,
) -> Wanted:
    """What a build with these features takes.

    Args:
        release: What is built.
        catalogue: All that is known.
        features: What is built in.
        on_host: What of the host is taken instead of an archive, such as "boost".
        instead: Other sources than the release's, by name.
    """
    pins = [
        Pin(
            url=f"{BASE}/{name}.git",
            ref=release.branch,
            commit=release.commits[name].id,
            without=catalogue.without.get(name, ()),
        )
        for name, needed_for in catalogue.components.items()
        if features & set(needed_for) and name in release.commits
    ]
    archives = []
    for source in release.sources_for(features):
        taken = (instead or {}).get(source.name, source)
        if taken.git:
            whole = bool(features & set(taken.whole_for))
            pins.append(
                Pin(taken.git, taken.ref, taken.commit, None if whole else taken.submodules)
            )
        elif taken.host not in on_host:
            archives.append(taken)
    return Wanted(tuple(pins), tuple(archives))


def survey(mirror: Mirror, wanted: Wanted) -> Survey:
    """Hold a mirror against what is wanted, submodules included.

    A submodule is taken where its repository is taken whole or lists its path; and since git is
    told by name which to skip, also where one of that name is taken elsewhere.
    """
    commits: dict[Pin, str] = {}
    missing: list[Pin] = []
    links: dict[Pin, list[Submodule]] = {}
    taken: set[str] = set()
    pending = list(dict.fromkeys(wanted.pins))
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        while pending:
            for pin, commit in zip(pending, pool.map(mirror.commit, pending), strict=True):
                if commit:
                    commits[pin] = commit
                else:
                    missing.append(pin)
            there = [pin for pin in pending if pin in commits]
            read = pool.map(lambda pin: mirror.submodules(pin.url, commits[pin]), there)
            links.update(zip(there, read, strict=True))
            pending = _next(links, taken, {*commits, *missing})
    archives = tuple(s for s in wanted.archives if not mirror.path(s.url).is_file())
    skipped = {link.name for found in links.values() for link in found} - taken
    return Survey(commits, tuple(missing), archives, tuple(sorted(skipped)))


def _next(links: Mapping[Pin, list[Submodule]], taken: set[str], known: set[Pin]) -> list[Pin]:
    """The submodules that are taken and not looked at yet; their names are added to `taken`."""
    found: dict[Pin, None] = {}
    before = -1
    while before != len(taken):  # a name that is taken may be met earlier under another pin
        before = len(taken)
        for pin, listed in links.items():
            for link in listed:
                whole = pin.submodules is None
                if whole or link.path in (pin.submodules or ()) or link.name in taken:
                    taken.add(link.name)
                    child = Pin(link.url, link.commit, link.commit, None if whole else ())
                    if child not in known:
                        found[child] = None
    return list(found)
