"""What a release needs of a host, held against what the host has, row by row.

Pure functions of facts: nothing is read here, and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from provision.gpu import Cuda, Found
from provision.host import Host, Python
from provision.releases import Catalogue, Release

State = Literal["ok", "note", "missing", "wrong"]

_GIGABYTE = 10**9
_OUR_CUDA = "13.0"  # what install_cuda brings
_GIT = SpecifierSet(">=2.31")  # which is told by the environment where to clone from
_CUDA_SITE = "https://developer.nvidia.com/cuda-toolkit-archive"
_TENSORRT_SITE = "https://developer.nvidia.com/tensorrt"


@dataclass(frozen=True)
class Row:
    """One thing that a build needs.

    Attributes:
        name: What it is.
        state: `ok`; `note` for what is worth knowing and no hindrance; `missing` for what has to be
            added; `wrong` for what is there and rules the release out.
        found: What there is.
        needed: What there has to be; empty where anything will do.
        fix: What to do about it.
        package: The distribution's package that brings it, where that is certain.
        only: The kind of build that needs it, where not all do: server, client, examples (of the
            client, in the recipe's form) or tensorrt.
    """

    name: str
    state: State
    found: str
    needed: str = ""
    fix: str = ""
    package: str = ""
    only: str = ""

    @property
    def hinders(self) -> bool:
        """Whether the release cannot be built for it."""
        return self.state in {"missing", "wrong"}


def check(release: Release, host: Host, catalogue: Catalogue, *, gpu: bool = True) -> Iterator[Row]:
    """Everything that a build of a release needs, in the order in which to look at it."""
    yield from _machine(release, host, catalogue)
    yield from _tools(release, host, gpu=gpu)
    yield _cmake(release, host)
    yield _python(release, host)
    yield replace(_boost(release, host), only="server")
    if gpu:
        yield from _cuda(release, host, catalogue)
        yield from (replace(row, only="tensorrt") for row in _tensorrt(release, host))
    yield from _packages(release, host)


def jobs(host: Host, catalogue: Catalogue) -> int:
    """How many compilers may run at once."""
    return max(1, min(host.cores, host.memory_bytes // catalogue.memory_per_job_bytes))


def _machine(release: Release, host: Host, catalogue: Catalogue) -> Iterator[Row]:
    unknown = "nothing is known of its packages; see what the others need"
    known = host.distribution in release.apt
    yield _row("system", known, host.system, " or ".join(release.apt), unknown, "note")
    there = catalogue.cmake.get(release.cmake_pin, {})
    fits = host.architecture in there
    other = "use another machine: Slipway has no CMake for this one"
    yield _row("processor", fits, host.architecture, " or ".join(there), other, "wrong")
    yield Row("cores", "ok", f"{host.cores}, of which {jobs(host, catalogue)} can compile at once")
    size, each = host.memory_bytes, catalogue.memory_per_job_bytes
    swap = "add swap space: a compiler may be killed"
    yield _row("memory", size >= each, _size(size), f"{_size(each)} a compiler", swap, "note")
    size, need = host.disk_bytes, catalogue.disk_bytes
    larger = "free some space, or point SLIPWAY_ROOT at a larger disk"
    yield _row("disk", size >= need, f"{_size(size)} free", _size(need), larger)
    if host.glibc:
        yield Row("glibc", *_as_is(release, "glibc", host.glibc))
    else:
        yield Row("glibc", "wrong", "another C library", "glibc", "use a host with glibc")


def _tools(release: Release, host: Host, *, gpu: bool) -> Iterator[Row]:
    for name in ("g++", "gcc"):
        yield _compiler(name, release, host, host.gpu.cuda if gpu else None)
    git, make = host.tools.get("git"), host.tools.get("make")
    recent = bool(git and _in(git.version, _GIT))
    how = f"install a git {_said(_GIT)}"
    yield _row("git", recent, git.version if git else "", _said(_GIT), how)
    yield _row("make", bool(make), make.version if make else "", "any", "install make")
    ccache = host.tools.get("ccache")
    why = "install ccache, and a second build takes an eighth of the time"
    yield _row("ccache", bool(ccache), ccache.version if ccache else "none", "", why, "note")


def _compiler(name: str, release: Release, host: Host, cuda: Cuda | None) -> Row:
    tool = host.tools.get(name)
    needed = _said(release.gcc)
    if tool is None:
        return Row(name, "missing", "", needed, f"install {name}")
    if not _in(tool.version, release.gcc):
        return Row(name, "wrong", tool.version, needed, f"install a {name} {needed}")
    if cuda and cuda.newest_gcc and Version(tool.version).major > cuda.newest_gcc:
        limit = cuda.newest_gcc
        return Row(
            name,
            "missing",
            tool.version,
            f"{needed},<{limit + 1}".lstrip(","),
            f"CUDA {cuda.version} takes {limit} at most: install gcc-{limit} and g++-{limit}, and "
            f"set CC, CXX and CUDAHOSTCXX to them",
        )
    state, found, limit_text, fix = _as_is(release, "gcc", tool.version)
    return Row(name, state, found, limit_text or needed, fix)


def _cmake(release: Release, host: Host) -> Row:
    needed = _said(release.cmake)
    if release.cmake_pin in host.cmakes:
        return Row("cmake", "ok", f"{release.cmake_pin} in vendor/", needed)
    on_path = host.tools.get("cmake")
    found = on_path.version if on_path else ""
    install = f"nox -s install_cmake -- --release {release.name}"
    if not found or not _in(found, release.cmake):
        return Row("cmake", "missing", found, needed, install)
    state, found, limit, fix = _as_is(release, "cmake", found)
    return Row("cmake", state, found, limit or needed, f"{fix}, or: {install}" if fix else "")


def _python(release: Release, host: Host) -> Row:
    needed = f"{_said(release.python)} with headers".strip()
    fits = [p for p in host.pythons if _in(p.version, release.python)]
    with_headers = [p for p in fits if p.headers]
    if with_headers:
        as_is = release.as_is.get("python")
        best = next((p for p in with_headers if _in(p.version, as_is)), with_headers[0])
        state, _, limit, fix = _as_is(release, "python", best.version)
        return Row("python", state, _describe(best), limit or needed, fix)
    found = ", ".join(map(_describe, fits or host.pythons))
    return Row(
        "python",
        "missing",
        found,
        needed,
        "install the headers of Python, or `uv python install` one that fits, which has them",
    )


def _boost(release: Release, host: Host) -> Row:
    needed = _said(release.boost)
    if release.boost is None or not needed:
        return Row("boost", "ok", host.boost or "none", "not needed")
    if host.boost and _in(host.boost, release.boost):
        return Row("boost", "ok", host.boost, needed)
    packages = release.apt.get(host.distribution)
    offered = next((p for p in packages.server if "boost" in p), "") if packages else ""
    elsewhere = "unpack Boost's headers, and set BOOST_ROOT to the folder that holds boost/"
    fix = f"install {offered}" if offered else elsewhere
    return Row("boost", "missing", host.boost, needed, fix)


def _cuda(release: Release, host: Host, catalogue: Catalogue) -> Iterator[Row]:
    cuda, driver = host.gpu.cuda, host.gpu.driver
    needed = _said(release.cuda)
    ours = ", or run `nox -s install_cuda`" if _in(_OUR_CUDA, release.cuda) else ""
    get = f"install a CUDA toolkit {needed} ({_CUDA_SITE}){ours}, or build without it: --no-gpu"
    if cuda is None:
        yield Row("cuda", "missing", "", needed, get)
    elif not _in(cuda.version, release.cuda):
        yield Row("cuda", "wrong", cuda.version, needed, f"{get}; CUDA_HOME chooses between two")
    else:
        listed = f", for {', '.join(map(_capability, cuda.architectures))}"
        yield Row("cuda", "ok", cuda.version + (listed if cuda.architectures else ""), needed)
    if not driver:
        yield Row("driver", "note", "none", "", "this host can build for a GPU, not serve on one")
        return
    oldest = catalogue.drivers.get(Version(cuda.version).major, "") if cuda else ""
    if oldest and Version(driver) < Version(oldest):
        yield Row(
            "driver",
            "wrong",
            driver,
            f">={oldest}",
            f"update the driver, or take an older CUDA: {cuda.version if cuda else ''} needs it",
        )
    else:
        yield Row("driver", "ok", driver, f">={oldest}" if oldest else "")
    for device in host.gpu.devices:
        old = Version(device.capability) < Version(release.capability)
        found = f"{device.name}, {device.memory}, compute capability {device.capability}"
        fix = "take an older release, which supports it"
        yield _row("gpu", not old, found, f">={release.capability}", fix, "wrong")


def _tensorrt(release: Release, host: Host) -> Iterator[Row]:
    gpu, needed = host.gpu, _said(release.tensorrt)
    get = (
        f"unpack TensorRT {needed} ({_TENSORRT_SITE}), and set TENSORRT_ROOT to it; or, with its "
        "wheels installed, run `nox -s install_tensorrt`; or build without it: --no-gpu"
    )
    both: list[tuple[str, Found | None]] = [
        ("tensorrt libraries", gpu.tensorrt_libraries),
        ("tensorrt headers", gpu.tensorrt_headers),
    ]
    for name, found in both:
        if found is None:
            yield Row(name, "missing", "", needed, get)
        else:
            fits = _in(found.version, release.tensorrt)
            yield _row(name, fits, f"{found.version} in {found.path}", needed, get, "wrong")
    for name, there, why in (
        ("tensorrt python", gpu.tensorrt_python, "not needed to build; it makes plans"),
        ("cudnn", gpu.cudnn, "not needed to build"),
    ):
        yield _row(name, bool(there), there.version if there else "none", "", why, "note")


def _packages(release: Release, host: Host) -> Iterator[Row]:
    packages = release.apt.get(host.distribution)
    if packages is None or host.packages is None:
        return
    for name in dict.fromkeys((*packages.server, *packages.client)):
        version = host.packages.get(name, "")
        row = _row(name, bool(version), version, "any", f"install {name}", package=name)
        both = name in packages.server and name in packages.client
        kind = "server" if name in packages.server else "client"
        yield row if both else replace(row, only=kind)
    absent = [name for name in packages.examples if name not in host.packages]
    if absent:
        why = f"the client's examples need {', '.join(absent)}"
        yield Row("examples", "note", "", "", why, only="examples")


def _row(
    name: str,
    fine: bool,  # noqa: FBT001 - the one thing that every row decides
    found: str,
    needed: str,
    fix: str,
    otherwise: State = "missing",
    *,
    package: str = "",
) -> Row:
    """A row that needs its fix only where it is not fine."""
    if fine:
        return Row(name, "ok", found, needed)
    return Row(name, otherwise, found, needed, fix, package)


def _as_is(release: Release, what: str, found: str) -> tuple[State, str, str, str]:
    """A row's fields for what is good, but may lie where the release needs help to be built."""
    limit = release.as_is.get(what)
    if limit is None or _in(found, limit):
        return "ok", found, "", ""
    return "note", found, f"{_said(limit)} as it is", "a known trouble, which needs help"


def _in(version: str, range_: SpecifierSet | None) -> bool:
    return range_ is None or Version(version) in range_


def _said(range_: SpecifierSet | None) -> str:
    """A range with its lower end first."""
    return ",".join(sorted(map(str, range_ or ()), key=lambda part: part.startswith("<")))


def _describe(python: Python) -> str:
    return f"{python.version} ({python.executable}{'' if python.headers else ', without headers'})"


def _capability(architecture: int) -> str:
    return f"{architecture // 10}.{architecture % 10}"


def _size(size: int) -> str:
    return f"{size / _GIGABYTE:.1f} GB"
