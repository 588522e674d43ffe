"""`install_cuda`: CUDA's compiler and libraries under vendor/, without root.

PyPI has the parts of NVIDIA's toolkit as wheels, and their names in the package ``cuda-toolkit``.
Put together they have the form of an installed toolkit, but for the names that a linker looks for.
CUDA 12's wheels have no `nvcc`, so it is CUDA 13, which release 25.08 and newer ones fit.
https://pypi.org/project/cuda-toolkit/
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from provision import environments, packages
from provision.console import say, step
from provision.errors import DownloadError, HostError
from provision.files import fsync_tree, lock, put_folder
from provision.gpu import Cuda, read_toolkit
from provision.layout import Layout

_GROUP = "cuda"
_PAYLOAD = Path("nvidia", "cu13")
_KERNEL = "__global__ void scale(float *x) { x[threadIdx.x] *= 2; }\n"


def version() -> str:
    """The version that is locked."""
    locked = environments.lock_file(_GROUP).read_text()
    found = re.search(r"^cuda-toolkit(?:\[[^]]*\])?==(\S+)", locked, re.MULTILINE)
    assert found  # noqa: S101 - the lock is ours
    return found.group(1)


def install(layout: Layout) -> Cuda:
    """Install the toolkit under vendor/, if it is not there.

    It is put in place as a whole and only when it has compiled something.

    Raises:
        DownloadError: A wheel cannot be had, or is not the one that was locked.
        HostError: The compiler does not work on this host.
    """
    folder = layout.vendor / f"cuda-{version()}"
    with (
        step(f"CUDA {version()}") as installing,
        lock(
            layout.run / "cuda.lock",
            holder="installing CUDA",
            waiting=lambda other: installing.progress(f"waiting for {other}"),
        ),
    ):
        present = read_toolkit(folder / "bin" / "nvcc")
        if present:
            installing.detail = f"nothing to do, it is in {folder}"
            return present
        layout.vendor.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=layout.vendor, prefix=".cuda-") as work:
            unpacked, staged = Path(work, "wheels"), Path(work, "staged")
            log = layout.logs / "cuda.log"
            requirements = environments.lock_file(_GROUP)
            packages.put_all(requirements, unpacked, log=log, on_line=installing.progress)
            shutil.move(unpacked / _PAYLOAD, staged)
            complete(staged)
            _try(staged, Path(work))
            fsync_tree(staged)
            put_folder(staged, folder, exchange=False)
        toolkit = read_toolkit(folder / "bin" / "nvcc")
        if toolkit is None:
            raise DownloadError(
                f"the wheels of CUDA {version()} hold no toolkit", fix="correct the lock"
            )
        installing.detail = f"installed in {folder}"
    return toolkit


def complete(toolkit: Path) -> None:
    """Add the names that the wheels leave out: lib64, and each library's without a version."""
    (toolkit / "lib64").symlink_to("lib")
    for library in sorted((toolkit / "lib").glob("lib*.so.*")):
        link = library.with_name(f"{library.name.partition('.so.')[0]}.so")
        if not link.exists():
            link.symlink_to(library.name)


def _try(toolkit: Path, work: Path) -> None:
    """Compile a kernel."""
    source = work / "kernel.cu"
    source.write_text(_KERNEL)
    command: list[str | Path] = [toolkit / "bin" / "nvcc", "-c", source, "-o", work / "kernel.o"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HostError(
            "CUDA's compiler does not work on this host",
            cause=(done.stderr.strip().splitlines() or ["it said nothing"])[0],
            fix="install g++, at a version that CUDA 13 takes (`nox -s doctor`)",
        )


def main(arguments: list[str]) -> int:
    """`python -m provision install_cuda`."""
    argparse.ArgumentParser(
        prog="python -m provision install_cuda",
        description=f"Install CUDA {version()} (the compiler, its runtime, CUPTI) from PyPI into "
        "vendor/, without root. Builds take it where the host has no toolkit of its own.",
    ).parse_args(arguments)
    toolkit = install(Layout.from_environment())
    say(f"to use it elsewhere: export CUDA_HOME={toolkit.root}")
    return 0
