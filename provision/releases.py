"""Triton's releases as data: what each consists of, and what it needs of a host.

The facts are in ``releases.toml``, the commits in ``locks/sources.toml``. A fact that is not known
is absent; :attr:`Release.missing` names what a release lacks to be built.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from packaging.specifiers import SpecifierSet

from provision.errors import UsageError

FACTS = Path(__file__).with_name("releases.toml")
LOCK = Path(__file__).with_name("locks") / "sources.toml"

State = Literal["declared", "configured", "built and served"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True)
class Commit:
    """The commit of a component.

    Attributes:
        id: Its 40 hexadecimal digits.
        stands_in: Why it is used although the release's own branch is not known; else empty.
    """

    id: str
    stands_in: str = ""


@dataclass(frozen=True)
class Source:
    """Something that a build downloads beside the components: a repository or an archive.

    Attributes:
        name: What Triton's build calls it.
        needed_for: The features that need it.
        git: The repository; empty for an archive.
        ref: The tag, branch or commit in it.
        commit: What the ref was when it was locked; empty where that is not known.
        url: The archive; empty for a repository.
        sha256: The archive's.
        submodules: The paths of the submodules that a build reads; None for all of them.
        whole_for: The features for which all are taken even so.
        override: The CMake variable that takes a folder of it.
        seed: Where, below the build folder, the archive is looked for before it is downloaded.
        host: What of the host is taken instead of the archive, where it fits.
    """

    name: str
    needed_for: tuple[str, ...]
    git: str = ""
    ref: str = ""
    commit: str = ""
    url: str = ""
    sha256: str = ""
    submodules: tuple[str, ...] | None = None
    whole_for: tuple[str, ...] = ()
    override: str = ""
    seed: str = ""
    host: str = ""


@dataclass(frozen=True)
class Packages:
    """The distribution's packages, for what they are needed."""

    server: tuple[str, ...]
    client: tuple[str, ...]
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Trait:
    """Something in which build.py differs from one release to another.

    Attributes:
        reason: What it is.
        since: The first release that has it; empty for the very first.
        before: The first that has it no more; empty where all newer ones have it.
        arguments: What to give build.py where it holds.
        modules: What the Python that runs the build has to be able to import.
    """

    reason: str
    since: str = ""
    before: str = ""
    arguments: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()

    def holds(self, release: str) -> bool:
        """Whether a release has it."""
        return self.since <= release and (not self.before or release < self.before)


@dataclass(frozen=True)
class Container:
    """What NVIDIA's container of the release holds; empty where it is not known."""

    cuda: str = ""
    driver: str = ""
    python: str = ""

    def __bool__(self) -> bool:
        return bool(self.cuda)


@dataclass(frozen=True)
class Proof:
    """How far Slipway has taken a release, when, and on what host."""

    state: State
    date: str = ""
    host: str = ""

    def __str__(self) -> str:
        if self.state == "declared":
            return "nobody has built it with Slipway yet"
        return f"{self.state} with Slipway on {self.date}: {self.host}"


@dataclass(frozen=True)
class Release:
    """A release of Triton. The attributes are explained in ``releases.toml``."""

    name: str
    triton: str
    commits: Mapping[str, Commit]
    sources: tuple[Source, ...]
    apt: Mapping[str, Packages]
    cmake: SpecifierSet
    cmake_pin: str
    cuda: SpecifierSet | None
    capability: str
    tensorrt: SpecifierSet | None
    python: SpecifierSet | None
    boost: SpecifierSet | None
    gcc: SpecifierSet | None
    as_is: Mapping[str, SpecifierSet]
    traits: Mapping[str, Trait]
    ngc: Container
    proved: Proof
    missing: tuple[str, ...]

    @property
    def branch(self) -> str:
        """The branch of every component."""
        return f"r{self.name}"

    @property
    def image(self) -> str:
        """NVIDIA's container of this release."""
        return f"nvcr.io/nvidia/tritonserver:{self.name}-py3"

    @property
    def arguments(self) -> tuple[str, ...]:
        """What its build.py is given beyond what every release is given."""
        return tuple(a for trait in self.traits.values() for a in trait.arguments)

    @property
    def modules(self) -> tuple[str, ...]:
        """What the Python that runs its build has to be able to import."""
        return tuple(m for trait in self.traits.values() for m in trait.modules)

    def sources_for(self, features: frozenset[str]) -> tuple[Source, ...]:
        """What a build with these features downloads."""
        return tuple(source for source in self.sources if features & set(source.needed_for))


@dataclass(frozen=True)
class Catalogue:
    """All that is known.

    Attributes:
        components: The repositories of a release, with the features that need each.
        without: For some of them, the folders that no build reads.
        releases: The releases by name, oldest first.
        refs: What each tag or branch of a third party's repository was when it was locked.
        cmake: For each CMake that can be installed, the wheel's SHA-256 by architecture.
        tensorrt: TensorRT's headers by version, each a commit of a repository.
        drivers: The oldest driver for each major version of CUDA.
        disk_bytes: What a build takes of the disk.
        memory_per_job_bytes: What each compiler takes of the memory.
    """

    components: Mapping[str, tuple[str, ...]]
    without: Mapping[str, tuple[str, ...]]
    releases: Mapping[str, Release]
    refs: Mapping[str, Mapping[str, str]]
    cmake: Mapping[str, Mapping[str, str]]
    tensorrt: Mapping[str, tuple[str, str]]
    drivers: Mapping[int, str]
    disk_bytes: int
    memory_per_job_bytes: int


@functools.cache
def catalogue() -> Catalogue:
    """What ``releases.toml`` and its lock say, read once."""
    from provision import release_file

    return release_file.read(FACTS, LOCK)


def releases() -> tuple[Release, ...]:
    """The releases, oldest first."""
    return tuple(catalogue().releases.values())


def release(name: str) -> Release:
    """A release by its NGC tag, such as 25.08, or its Triton version, such as 2.60.0.

    Raises:
        UsageError: There is none.
    """
    for known in releases():
        if name in (known.name, known.triton):
            return known
    whole = ", ".join(f"{r.name} (Triton {r.triton})" for r in releases() if not r.missing)
    partly = ", ".join(r.name for r in releases() if r.missing)
    raise UsageError(
        f"there is no release {name}",
        cause=f"These are known: {whole}" + (f"; in part: {partly}" if partly else ""),
        fix="name one of these, or `auto` for the newest that this host can build",
    )
