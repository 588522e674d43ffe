"""`install_cmake`: Kitware's CMake at the version that a release is pinned to (recipe step 1).

PyPI's ``cmake`` wheel carries the program as Kitware builds it. What is taken from it has the form
of Kitware's own archive: ``vendor/cmake-VERSION/bin/cmake`` and, beside it, ``share/``.
"""

from __future__ import annotations

import argparse
import platform
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from provision import doctor, packages, releases
from provision.choice import AUTO
from provision.console import say, step
from provision.errors import DownloadError, HostError
from provision.files import fsync_tree, lock, put_folder
from provision.layout import Layout
from provision.reading import output

_PAYLOAD = Path("cmake", "data")


def installed(layout: Layout, version: str) -> Path | None:
    """The `cmake` of a version under vendor/, where it runs and is that version."""
    program = _folder(layout, version) / "bin" / "cmake"
    said = re.match(r"cmake version (\S+)", output(program, "--version"))
    return program if said and said.group(1) == version else None


def install(layout: Layout, version: str, hashes: Mapping[str, str]) -> Path:
    """Install a CMake under vendor/, if it is not there.

    It is put in place as a whole and only when it has run, so an attempt that was interrupted
    leaves what was there.

    Args:
        layout: Where.
        version: Which.
        hashes: The SHA-256 of the wheel for each architecture.

    Returns:
        The `cmake`.

    Raises:
        HostError: There is no wheel for this architecture, or the program does not run here.
        DownloadError: The wheel cannot be had, or is not the one that was pinned.
    """
    architecture = platform.machine()
    if architecture not in hashes:
        raise HostError(
            f"there is no CMake {version} for {architecture} on PyPI",
            cause=f"There is one for {' and '.join(hashes)}",
            fix="build CMake from Kitware's source, and put it first on PATH",
        )
    with (
        step(f"CMake {version}") as installing,
        lock(
            layout.run / f"cmake-{version}.lock",
            holder=f"installing CMake {version}",
            waiting=lambda other: installing.progress(f"waiting for {other}"),
        ),
    ):
        present = installed(layout, version)
        if present:
            installing.detail = f"nothing to do, it is in {present.parent.parent}"
            return present
        layout.vendor.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=layout.vendor, prefix=".cmake-") as work:
            unpacked = Path(work, "wheel")
            log = layout.logs / f"cmake-{version}.log"
            wheels = (hashes[architecture],)
            packages.put("cmake", version, wheels, unpacked, log=log, on_line=installing.progress)
            staged = Path(work, "staged")
            shutil.move(unpacked / _PAYLOAD, staged)
            _try(staged / "bin" / "cmake", version)
            fsync_tree(staged)
            put_folder(staged, _folder(layout, version))
        installing.detail = f"installed in {_folder(layout, version)}"
    return _folder(layout, version) / "bin" / "cmake"


def main(arguments: list[str]) -> int:
    """`python -m provision install_cmake`."""
    options = _parser().parse_args(arguments)
    layout = Layout.from_environment()
    if options.release == AUTO:
        choice = doctor.diagnose(layout).choice
        release = choice.release
        say(f"{release.name}: {choice.reason}")
    else:
        release = releases.release(options.release)
    version = release.cmake_pin
    program = install(layout, version, releases.catalogue().cmake[version])
    say(f'to use it: export PATH="{program.parent}:$PATH"')
    return 0


def _folder(layout: Layout, version: str) -> Path:
    return layout.vendor / f"cmake-{version}"


def _try(program: Path, version: str) -> None:
    said = output(program, "--version", complaints=True)
    if f"cmake version {version}" not in said.splitlines():
        first = said.strip().splitlines()[:1] or ["nothing"]
        if "cmake version" in first[0]:
            raise DownloadError(
                f"PyPI's cmake {version} holds another one: {first[0]}",
                fix="correct its version in provision/releases.toml",
            )
        raise HostError(
            f"CMake {version} does not run on this host: it says {first[0]!r}",
            cause="PyPI's CMake needs glibc 2.17 and a file system that is not mounted noexec",
            fix="point SLIPWAY_ROOT at another file system, or install CMake by other means",
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m provision install_cmake",
        description="Install the CMake that a release is built with into vendor/cmake-VERSION. "
        "Where it is there already, nothing is done.",
    )
    parser.add_argument(
        "--release",
        default=AUTO,
        metavar="R",
        help="such as 22.01 (default: the newest that this host can build)",
    )
    return parser
