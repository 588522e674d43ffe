"""What a build will do, before it does anything: a pure function of the release and the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet

from provision import interpreters
from provision.errors import HostError
from provision.host import Host
from provision.interpreters import Interpreter
from provision.releases import Release, Source, catalogue
from provision.sources import Wanted, wanted
from provision.troubles import Trouble, averted


@dataclass(frozen=True)
class Plan:
    """What a build takes and heeds.

    Attributes:
        release: What is built.
        features: What is built in.
        python: The interpreter that builds it.
        tools: The versions of the tools that decide what troubles there are.
        troubles: Those that something is injected against.
        wanted: What it takes from elsewhere.
    """

    release: Release
    features: frozenset[str]
    python: Interpreter
    tools: Mapping[str, str]
    troubles: tuple[Trouble, ...]
    wanted: Wanted

    def sources(self) -> Iterator[Source]:
        """The third parties' sources, those of the troubles in place of the release's."""
        instead = _instead(self.troubles)
        return (instead.get(s.name, s) for s in self.release.sources_for(self.features))


def make_plan(host: Host, release: Release, features: frozenset[str]) -> Plan:
    """Plan a build.

    Raises:
        HostError: No Python on this host can build it.
    """
    python = choose_python(host, release, library="python" in features)
    tools = _tools(host, release, features, python)
    troubles = averted(release.name, features, tools)
    on_host = {name for trouble in troubles for name in trouble.when}
    takes = wanted(release, catalogue(), features, on_host=on_host, instead=_instead(troubles))
    return Plan(release, features, python, tools, troubles, takes)


def choose_python(host: Host, release: Release, *, library: bool) -> Interpreter:
    """The interpreter to build with: in the release's range, as it is rather than with help.

    Args:
        host: The facts of the host.
        release: What is built.
        library: Whether it needs its shared library, which the Python backend is linked to.

    Raises:
        HostError: None has all that.
    """
    headers = {python.executable for python in host.pythons if python.headers}
    fits = release.python or SpecifierSet()
    as_is = release.as_is.get("python", SpecifierSet())
    rejected = []
    good: list[Interpreter] = []
    for candidate in interpreters.candidates(fits):
        problem = interpreters.problem(candidate, fits=fits, libpython=library)
        if candidate.executable not in headers:
            problem = problem or "without headers"
        if problem:
            rejected.append(f"{candidate.executable} is {candidate.version}, {problem}")
        else:
            good.append(candidate)
    good.sort(key=lambda one: one.version not in as_is)  # stable: the running one stays first
    if good:
        return good[0]
    needs = "headers and shared library" if library else "headers"
    raise HostError(
        f"there is no Python {fits} with {needs} to build {release.name} with",
        cause="; ".join(rejected),
        fix="install python3-dev and libpython3-dev, or have `uv python install 3.11` bring one",
    )


def _tools(
    host: Host, release: Release, features: frozenset[str], python: Interpreter
) -> dict[str, str]:
    compiler = host.tools.get("g++")
    cuda = host.gpu.cuda if "gpu" in features else None
    found = {
        "cmake": release.cmake_pin,
        "gcc": compiler.version if compiler else "",
        "glibc": host.glibc,
        "python": python.version,
        "cuda": cuda.version if cuda else "",
        "boost": host.boost,
    }
    return {name: version for name, version in found.items() if version}


def _instead(troubles: Iterable[Trouble]) -> dict[str, Source]:
    return {
        name: dataclasses.replace(source, name=name)
        for trouble in troubles
        for name, source in trouble.sources.items()
    }
