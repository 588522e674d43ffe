"""`install_tensorrt`: what a build needs of TensorRT, put together under vendor/, without root.

The wheels of ``tensorrt`` bring the libraries, without the headers and without the names that a
linker looks for; the headers are in NVIDIA's open repository. https://github.com/NVIDIA/TensorRT
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

from packaging.version import Version

from provision import tensorrt_python
from provision.build_tree import check_out
from provision.console import say, step
from provision.errors import HostError
from provision.fetch_sources import fetch, mirror_of
from provision.files import put_folder
from provision.gpu import read_cuda, read_driver
from provision.layout import Layout
from provision.mirror import Pin
from provision.options import add_mirror
from provision.releases import catalogue
from provision.sources import Wanted

_USUAL_CUDA = 12
_LIBRARIES = ("nvinfer", "nvinfer_plugin")
# Of the repository, the rest: plugins, samples and parsers that no build of Triton reads.
_UNREAD = ("plugin", "samples", "parsers", "python", "demo", "tools", "docker", "quickstart")


def install(layout: Layout, libraries: Path, mirror: str | None = None) -> Path:
    """Put headers and libraries together under vendor/.

    Args:
        layout: Where.
        libraries: The folder with the libraries, such as ``libnvinfer.so.10``.
        mirror: A mirror to take the headers from.

    Returns:
        The folder, which is a TENSORRT_ROOT.

    Raises:
        HostError: There are no such libraries, or no headers are known for them.
        DownloadError: The headers cannot be had.
    """
    version = _version(libraries)
    known = catalogue().tensorrt
    if version not in known:
        raise HostError(
            f"the headers of TensorRT {version} are not known here",
            cause=f"Known are those of {', '.join(sorted(known, key=Version))}",
            fix="unpack NVIDIA's archive of TensorRT, which has them, and set TENSORRT_ROOT to it",
        )
    url, commit = known[version]
    pin = Pin(url, commit, commit, without=_UNREAD)
    fetch(layout, Wanted((pin,), ()), mirror, what=f"TensorRT {version}'s headers")
    target = layout.vendor / f"tensorrt-{version}"
    with step(f"TensorRT {version}") as installing:
        layout.vendor.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=layout.vendor, prefix=".tensorrt-") as work:
            source, staged = Path(work, "source"), Path(work, "staged")
            check_out(mirror_of(layout), pin, commit, source)
            (staged / "lib").mkdir(parents=True)
            (source / "include").rename(staged / "include")
            for name in _LIBRARIES:
                found = _library(libraries, name)
                (staged / "lib" / found.name).symlink_to(found)
                (staged / "lib" / f"lib{name}.so").symlink_to(found.name)
            put_folder(staged, target, exchange=False)
        installing.detail = f"in {target}, with the libraries of {libraries}"
    return target


def _library(folder: Path, name: str) -> Path:
    found = sorted(folder.glob(f"lib{name}.so.*"), key=lambda path: len(path.name))
    if not found:
        raise HostError(
            f"there is no lib{name}.so in {folder}",
            fix="install TensorRT's wheels (`pip install tensorrt`), or name the folder that has "
            "them: --libraries DIR",
        )
    return found[-1]


def _version(libraries: Path) -> str:
    """The version of the libraries: in the name of the file, or in the package's beside it."""
    name = _library(libraries, "nvinfer").resolve().name
    whole = re.search(r"\.so\.(\d+\.\d+\.\d+)", name)
    if whole:
        return whole.group(1)
    for info in sorted(libraries.parent.glob("tensorrt*_libs-*.dist-info")):
        packaged = re.search(r"_libs-(\d+\.\d+\.\d+)", info.name)
        if packaged:
            return packaged.group(1)
    raise HostError(
        f"the version of {libraries / name} cannot be told",
        fix="unpack NVIDIA's archive of TensorRT, and set TENSORRT_ROOT to it",
    )


def _cuda(layout: Layout) -> int:
    """The major version of CUDA that wheels should be for: what the driver knows, or the host has.

    https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
    """
    driver, _ = read_driver()
    oldest = catalogue().drivers
    known = [major for major in oldest if driver and Version(driver) >= Version(oldest[major])]
    toolkit = read_cuda(layout.vendor)
    return max(known, default=int(toolkit.version.partition(".")[0]) if toolkit else _USUAL_CUDA)


def _on_host(layout: Layout) -> Path:
    """The folder of the libraries that the wheels of this host brought, ours first."""
    found = next(tensorrt_python.candidates(layout), None)
    if found is None:
        raise HostError(
            "no Python on this host has TensorRT's wheels",
            fix="install them: `nox -s install_tensorrt -- --wheels VERSION`, or name a folder "
            "that has the libraries: --libraries DIR",
        )
    return found.folder / "tensorrt_libs"


def main(arguments: list[str]) -> int:
    """`python -m provision install_tensorrt`."""
    options = _parser().parse_args(arguments)
    layout = Layout.from_environment()
    if options.wheels:
        wheels = tensorrt_python.install_wheels(layout, options.wheels, cuda=_cuda(layout))
        libraries = options.libraries or wheels
    else:
        libraries = options.libraries or _on_host(layout)
    folder = install(layout, libraries.expanduser().absolute(), options.mirror)
    say(f"builds take it from there; to use it elsewhere: export TENSORRT_ROOT={folder}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m provision install_tensorrt",
        description="Put TensorRT's headers (from NVIDIA's open repository) and libraries (those "
        "that its wheels brought) together under vendor/, in the form that a build needs.",
    )
    parser.add_argument(
        "--libraries",
        type=Path,
        metavar="DIR",
        help="the folder with libnvinfer.so.N (default: that of the wheels on this host)",
    )
    parser.add_argument(
        "--wheels",
        metavar="VERSION",
        help="install TensorRT's wheels of this version first, such as 10.13.3, into an "
        "environment of their own under vendor/",
    )
    add_mirror(parser)
    return parser
