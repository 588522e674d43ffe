"""The facts of this host: read, never changed, in about a second.

A fact that cannot be read is None or empty; what that means is for :mod:`provision.requirements`
to say.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from packaging.specifiers import SpecifierSet

from provision import interpreters
from provision.cores import available_cores
from provision.gpu import Gpu, read_gpu
from provision.layout import Layout
from provision.reading import output, text

_VERSION = re.compile(r"\d+(?:\.\d+)+")
_MEMINFO = Path("/proc/meminfo")
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
_BOOST_VERSION = re.compile(r"^#define BOOST_VERSION (\d+)", re.MULTILINE)
_TOOLS = ("gcc", "g++", "cmake", "git", "make", "ccache")
_VARIABLES = {"gcc": "CC", "g++": "CXX"}  # CMake's, which go before PATH

# Asked of the interpreter itself: only it knows where its headers would lie.
_HAS_HEADERS = """
import os, sysconfig
print(os.path.isfile(os.path.join(sysconfig.get_path("include"), "Python.h")))
"""


@dataclass(frozen=True)
class Tool:
    """A program on PATH and its version."""

    path: Path
    version: str


@dataclass(frozen=True)
class Python:
    """A real interpreter.

    Attributes:
        executable: The program, links and shims resolved.
        version: Its full version.
        headers: Whether its Python.h is there.
    """

    executable: Path
    version: str
    headers: bool


@dataclass(frozen=True)
class Host:
    """What there is on a host.

    Attributes:
        system: What the distribution calls itself.
        distribution: The ID and VERSION_ID of its os-release, such as debian-12.
        architecture: Of the processor, such as x86_64.
        glibc: Its version; empty for another C library.
        cores: That this process may use.
        memory_bytes: That this process may use.
        disk_bytes: Free under the root.
        tools: The programs on PATH by name.
        cmakes: The CMakes that `install_cmake` installed, by version.
        pythons: The interpreters, the running one first.
        boost: The version of the Boost headers; empty where there are none.
        boost_folder: The folder that holds ``boost/``; None where there are none.
        packages: The installed packages of the distribution and their versions; None where it
            does not use dpkg.
        gpu: CUDA, the driver, TensorRT and cuDNN.
    """

    system: str = ""
    distribution: str = ""
    architecture: str = ""
    glibc: str = ""
    cores: int = 1
    memory_bytes: int = 0
    disk_bytes: int = 0
    tools: Mapping[str, Tool] = field(default_factory=dict)
    cmakes: Mapping[str, Path] = field(default_factory=dict)
    pythons: tuple[Python, ...] = ()
    boost: str = ""
    boost_folder: Path | None = None
    packages: Mapping[str, str] | None = None
    gpu: Gpu = field(default_factory=Gpu)


def read_host(layout: Layout, packages: Iterable[str]) -> Host:
    """Read the facts.

    Args:
        layout: Where the build would be.
        packages: The distribution's packages to ask about.
    """
    release = _os_release()
    boost, boost_folder = _boost()
    pythons = _pythons()
    names = (release.get("ID", ""), release.get("VERSION_ID", ""))
    return Host(
        system=release.get("PRETTY_NAME", platform.system()),
        distribution="-".join(filter(None, names)),
        architecture=platform.machine(),
        glibc=_glibc(),
        cores=available_cores(),
        memory_bytes=_memory(),
        disk_bytes=_free(layout.root),
        tools={name: tool for name in _TOOLS if (tool := find_tool(name))},
        cmakes=_own_cmakes(layout),
        pythons=pythons,
        boost=boost,
        boost_folder=boost_folder,
        packages=_installed(packages),
        gpu=read_gpu(pythons[0].executable if pythons else None, layout.vendor),
    )


def find_tool(name: str) -> Tool | None:
    """A program that its variable names, or that is on PATH, where it runs and has a version."""
    words = shlex.split(os.environ.get(_VARIABLES.get(name, ""), ""))
    # As in CXX="ccache g++-12": the compiler is the last program there.
    path = next(filter(None, map(shutil.which, reversed([name, *words]))), None)
    said = _VERSION.search(output(path, "--version")) if path else None
    return Tool(Path(path), said.group()) if path and said else None


def _os_release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def _glibc() -> str:
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (OSError, ValueError):
        return ""
    return version if name == "glibc" else ""


def _memory() -> int:
    """The host's memory, or less where a control group allows less."""
    kibibytes = re.search(r"^MemTotal:\s+(\d+) kB", text(_MEMINFO), re.MULTILINE)
    whole = int(kibibytes.group(1)) * 1024 if kibibytes else 0
    limit = text(_MEMORY_LIMIT).strip()
    return min(whole, int(limit)) if limit.isdigit() else whole


def _free(folder: Path) -> int:
    """The free space where a folder is or would be."""
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    return shutil.disk_usage(there).free


def _own_cmakes(layout: Layout) -> dict[str, Path]:
    found = layout.vendor.glob("cmake-*/bin/cmake")
    return {path.parent.parent.name.removeprefix("cmake-"): path for path in sorted(found)}


def _pythons() -> tuple[Python, ...]:
    found = []
    for one in interpreters.candidates(SpecifierSet(">=3.6")):
        headers = output(one.executable, "-I", "-c", _HAS_HEADERS).strip() == "True"
        found.append(Python(one.executable, one.version, headers))
    return tuple(found)


def _boost() -> tuple[str, Path | None]:
    root = os.environ.get("BOOST_ROOT")
    folders = [Path(root) / "include", Path(root)] if root else []
    for folder in (*folders, Path("/usr/local/include"), Path("/usr/include")):
        number = _BOOST_VERSION.search(text(folder / "boost" / "version.hpp"))
        if number:
            # 108100 is 1.81.0: https://www.boost.org/doc/libs/release/libs/config/
            value = int(number.group(1))
            return f"{value // 100000}.{value // 100 % 1000}.{value % 100}", folder
    return "", None


def _installed(packages: Iterable[str]) -> dict[str, str] | None:
    """The versions of those packages that are installed."""
    if not shutil.which("dpkg-query"):
        return None
    # It fails for a name that dpkg has never seen, and lists the others all the same.
    form = "--showformat=${Package} ${db:Status-Status} ${Version}\\n"
    listed = output("dpkg-query", "--show", form, "--", *sorted(set(packages)))
    rows = (line.split(" ") for line in listed.splitlines())
    return {name: version for name, status, version in rows if status == "installed"}
