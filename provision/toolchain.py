"""What every nested CMake project of a build is told: a toolchain file, and the environment.

The environment reaches what Triton's build starts through git, pip, make and CMake; the toolchain
file reaches projects that are handed no other variable.
https://cmake.org/cmake/help/latest/envvar/CMAKE_TOOLCHAIN_FILE.html
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from provision import git
from provision.build_python import BuildPython
from provision.gpu import Cuda
from provision.mirror import Mirror
from provision.troubles import INCLUDES, Trouble

# What a build is let know of the user's environment; everything else could make it another build.
_KEPT = (
    *("HOME", "LOGNAME", "TERM", "TMPDIR", "USER"),
    *("CC", "CXX", "CUDAHOSTCXX", "CFLAGS", "CXXFLAGS", "LDFLAGS"),
    *("LD_LIBRARY_PATH", "BOOST_ROOT"),
)
_CACHE_PREFIX = "CCACHE_"
_NOWHERE = "http://127.0.0.1:9"  # the discard port, on which nobody listens
# pybind11 asks for one of these, each by what it is found with.
_PYTHON_VARIABLES = ("PYTHON_EXECUTABLE", "Python_EXECUTABLE", "Python3_EXECUTABLE")


@dataclass(frozen=True)
class Tools:
    """What a build is built with.

    Attributes:
        cmake: Its folder, with bin/.
        python: What runs build.py and makes the wheels.
        cuda: The toolkit; None for a build without it.
        ccache: What keeps the compilers' results; None for nothing.
    """

    cmake: Path
    python: BuildPython
    cuda: Cuda | None = None
    ccache: Path | None = None


def find_ccache(*, wanted: bool = True) -> Path | None:
    """The ccache on PATH."""
    found = shutil.which("ccache") if wanted else None
    return Path(found) if found else None


def toolchain(
    troubles: Iterable[Trouble], tools: Tools, more: Mapping[str, str | Path] | None = None
) -> str:
    """The toolchain file.

    Args:
        troubles: What is injected.
        tools: What it is built with.
        more: Other variables, such as the folders that stand for downloads.
    """
    python = dict.fromkeys(_PYTHON_VARIABLES, tools.python.environment.python)
    return variable_lines(troubles, {**python, **(more or {})})


def variable_lines(troubles: Iterable[Trouble], more: Mapping[str, str | Path]) -> str:
    """CMake's lines that set variables, with the reason of each trouble that asks for some."""
    troubles = tuple(troubles)
    variables = dict(more)
    for trouble in troubles:
        variables.update(trouble.variables)
        for name, file in trouble.includes.items():
            variables[f"CMAKE_PROJECT_{name}_INCLUDE"] = INCLUDES / file
    lines = ["# Written by Slipway for this build. Why each is here:"]
    lines += [f"#   {trouble.name}: {trouble.reason}" for trouble in troubles]
    # In the cache, where the projects' own options find it and leave it be.
    lines += [f'set({name} [==[{value}]==] CACHE STRING "")' for name, value in variables.items()]
    return "\n".join(lines) + "\n"


def variables(
    mirror: Mirror,
    skipped: Iterable[str],
    troubles: Iterable[Trouble],
    tools: Tools,
    *,
    toolchain_file: Path,
    mark: tuple[str, str],
) -> dict[str, str]:
    """The environment of a build: the same whoever builds, and with no way to a network.

    Args:
        mirror: Where all repositories come from.
        skipped: The submodules that are not cloned.
        troubles: What is injected.
        tools: What it is built with.
        toolchain_file: What every CMake project is told.
        mark: A variable and its value, by which the build's processes are told from others.
    """
    given = os.environ
    found = {name: given[name] for name in _KEPT if name in given}
    found |= {name: value for name, value in given.items() if name.startswith(_CACHE_PREFIX)}
    found["LC_ALL"] = "C.UTF-8"  # errors are looked for in English
    # CMake downloads by itself what nobody listed; here it cannot.
    found |= dict.fromkeys(("http_proxy", "https_proxy", "ALL_PROXY"), _NOWHERE)
    # The user's own settings of git could lead elsewhere again.
    found |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    found |= git.variables(mirror.settings(skipped))
    found["CMAKE_TOOLCHAIN_FILE"] = str(toolchain_file)
    # `python -m build` makes an environment by pip, for each wheel.
    found |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tools.python.wheels)}
    found |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_CONFIG_FILE": os.devnull}
    found["VIRTUAL_ENV"] = str(tools.python.environment.prefix)
    folders = [tools.python.environment.prefix / "bin", tools.cmake / "bin"]
    if tools.cuda:
        folders.append(tools.cuda.root / "bin")
        found |= {"CUDA_HOME": str(tools.cuda.root), "CUDAToolkit_ROOT": str(tools.cuda.root)}
        found["CUDACXX"] = str(tools.cuda.root / "bin" / "nvcc")
    if tools.ccache:
        for language in ("C", "CXX", "CUDA"):
            found[f"CMAKE_{language}_COMPILER_LAUNCHER"] = str(tools.ccache)
    found["PATH"] = os.pathsep.join([*map(str, folders), given.get("PATH", os.defpath)])
    for trouble in troubles:
        found.update(trouble.environment)
    name, value = mark
    return {**found, name: value}
