"""Reading ``releases.toml`` and its lock: every key known, every value of its kind.

The files are part of Slipway, so what is wrong in them is a defect.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from packaging.specifiers import SpecifierSet

from provision import toml
from provision.releases import (
    STATES,
    Catalogue,
    Commit,
    Container,
    Packages,
    Proof,
    Release,
    Source,
    Trait,
)
from provision.toml_table import Table, wrong

_T = TypeVar("_T")
_NAME = re.compile(r"\d\d\.\d\d")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIGABYTE = 10**9


def read(facts: Path, lock: Path) -> Catalogue:
    """Read both files.

    Raises:
        InternalError: One of them is not as it has to be.
    """
    whole = Table(toml.load(facts), facts.name)
    commits, refs = locked(lock)
    components = _read_lists(whole.table("components"))
    without = _read_lists(whole.table("without"))
    sources = _read_sources(whole.table("sources"), refs)
    packages = {n: _read_packages(t) for n, t in whole.table("apt").tables().items()}
    traits = {n: _read_trait(t) for n, t in whole.table("traits").tables().items()}
    cmake = {v: _read_hashes(t) for v, t in whole.table("cmake").tables().items()}
    tensorrt = _read_tensorrt(whole.table("tensorrt"))
    drivers = whole.table("drivers")
    build = whole.table("build")
    found = {}
    for name, table in sorted(whole.table("releases").tables().items()):
        if not _NAME.fullmatch(name):
            wrong(table.where, "is not the name of a release, such as 25.08")
        found[name] = _read_release(
            name,
            table,
            components=tuple(components),
            commits=commits.get(name, {}),
            sources=sources,
            packages=packages,
            traits=traits,
        )
        if found[name].cmake_pin not in cmake:
            wrong(f"{table.where}.cmake_pin", f"is {found[name].cmake_pin}, which has no hashes")
    catalogue = Catalogue(
        components=components,
        without=without,
        releases=found,
        refs=refs,
        cmake=cmake,
        tensorrt=tensorrt,
        drivers={int(major): drivers.version(major) for major in drivers},
        disk_bytes=build.take("disk_gb", int) * _GIGABYTE,
        memory_per_job_bytes=build.take("memory_per_job_gb", int) * _GIGABYTE,
    )
    build.end()
    whole.end()
    return catalogue


def locked(lock: Path) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]]:
    """The commits of the components by release, and those of other repositories by ref."""
    if not lock.exists():
        return {}, {}
    whole = Table(toml.load(lock), lock.name)
    found: list[dict[str, dict[str, str]]] = []
    for kind in ("releases", "repositories"):
        tables = whole.table(kind).tables()
        found.append({n: {k: t.matching(k, _COMMIT) for k in t} for n, t in tables.items()})
    whole.end()
    return found[0], found[1]


def _read_release(
    name: str,
    table: Table,
    *,
    components: tuple[str, ...],
    commits: Mapping[str, str],
    sources: Mapping[str, tuple[Source, ...]],
    packages: Mapping[str, Mapping[str, Packages]],
    traits: Mapping[str, Trait],
) -> Release:
    stand_ins = {
        n: Commit(t.matching("commit", _COMMIT), stands_in=t.take("reason", str))
        for n, t in table.table("stand_ins").tables().items()
    }
    own = {n: Commit(commits[n]) for n in components if n in commits}
    known = {
        n: (own | {k: v for k, v in stand_ins.items() if k not in own}).get(n) for n in components
    }
    as_is = table.table("as_is")
    ranges = {key: table.versions(key) for key in ("cuda", "tensorrt", "python", "boost", "gcc")}
    cmake = table.versions("cmake")
    if cmake is None:
        wrong(table.where, "lacks cmake")
    chosen_sources = _chosen(table, "sources", sources)
    chosen_packages = _chosen(table, "apt", packages)
    missing = [f"the commit of {n}" for n, commit in known.items() if commit is None]
    missing += [key for key, value in ranges.items() if value is None]
    missing += ["third-party sources"] * (chosen_sources is None)
    missing += ["apt packages"] * (chosen_packages is None)
    made = Release(
        name=name,
        triton=table.version("triton"),
        commits={n: commit for n, commit in known.items() if commit is not None},
        sources=chosen_sources or (),
        apt=chosen_packages or {},
        cmake=cmake,
        cmake_pin=table.version("cmake_pin"),
        capability=table.version("capability"),
        as_is={key: _required(as_is, key) for key in as_is},
        traits={key: trait for key, trait in traits.items() if trait.holds(name)},
        ngc=_read_container(table.table("ngc")),
        proved=_read_proof(table.table("proved")),
        missing=tuple(missing),
        **ranges,
    )
    as_is.end()
    table.end()
    return made


def _chosen(table: Table, key: str, known: Mapping[str, _T]) -> _T | None:
    name = table.take(key, str, "")
    if name and name not in known:
        wrong(f"{table.where}.{key}", f"is {name}, of which there is nothing")
    return known.get(name)


def _required(table: Table, key: str) -> SpecifierSet:
    found = table.versions(key)
    assert found is not None  # noqa: S101 - asked for a key that it has
    return found


def _read_sources(
    table: Table, refs: Mapping[str, Mapping[str, str]]
) -> dict[str, tuple[Source, ...]]:
    return {name: tuple(_read_source(row, refs) for row in table.rows(name)) for name in table}


def _read_source(table: Table, refs: Mapping[str, Mapping[str, str]]) -> Source:
    git, ref = table.take("git", str, ""), table.take("ref", str, "")
    source = Source(
        name=table.take("name", str),
        needed_for=table.texts("needed_for"),
        git=git,
        ref=ref,
        commit=ref if _COMMIT.fullmatch(ref) else refs.get(git, {}).get(ref, ""),
        url=table.take("url", str, ""),
        sha256=table.matching("sha256", _SHA256, ""),
        submodules=table.texts("submodules") if "submodules" in table else None,
        whole_for=table.texts("whole_for"),
        override=table.take("override", str, ""),
        seed=table.take("seed", str, ""),
        host=table.take("host", str, ""),
    )
    table.end()
    if source.url and not source.sha256:
        wrong(table.where, "is an archive without its sha256")
    if bool(source.git) == bool(source.url) or bool(source.git) != bool(source.ref):
        wrong(table.where, "is neither a repository with a ref nor an archive")
    if not source.needed_for:
        wrong(table.where, "is needed for nothing")
    return source


def _read_packages(table: Table) -> dict[str, Packages]:
    found = {}
    for distribution, lists in table.tables().items():
        found[distribution] = Packages(
            server=lists.texts("server"),
            client=lists.texts("client"),
            examples=lists.texts("examples"),
        )
        lists.end()
    return found


def _read_trait(table: Table) -> Trait:
    trait = Trait(
        reason=table.take("reason", str),
        since=table.matching("since", _NAME, ""),
        before=table.matching("before", _NAME, ""),
        arguments=table.texts("arguments"),
        modules=table.texts("modules"),
    )
    table.end()
    return trait


def _read_tensorrt(table: Table) -> dict[str, tuple[str, str]]:
    repository = table.take("repository", str, "")
    headers = table.table("headers")
    found = {version: (repository, headers.matching(version, _COMMIT)) for version in headers}
    table.end()
    if found and not repository:
        wrong(table.where, "lacks the repository")
    return found


def _read_lists(table: Table) -> dict[str, tuple[str, ...]]:
    return {key: table.texts(key) for key in table}


def _read_hashes(table: Table) -> dict[str, str]:
    return {architecture: table.matching(architecture, _SHA256) for architecture in table}


def _read_container(table: Table) -> Container:
    container = Container(**{key: table.version(key, "") for key in ("cuda", "driver", "python")})
    table.end()
    return container


def _read_proof(table: Table) -> Proof:
    said = table.take("state", str)
    state = next((known for known in STATES if known == said), None)
    if state is None:
        wrong(f"{table.where}.state", f"is none of {', '.join(STATES)}")
    proof = Proof(state, table.take("date", str, ""), table.take("host", str, ""))
    table.end()
    if state != "declared" and not (proof.date and proof.host):
        wrong(table.where, "lacks the date or the host")
    return proof
