"""The facts of this host about NVIDIA's software: CUDA, the driver, TensorRT and cuDNN.

Where each is looked for, first to last, is what its own CMake or loader would do.
"""

from __future__ import annotations

import os
import re
import shutil
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from provision.reading import output, text

_DEFAULT_CUDA = Path("/usr/local/cuda")
_SYSTEM_HEADERS = (Path("/usr/include"), Path("/usr/local/include"))
_SYSTEM_LIBRARIES = (Path("/usr/lib"), Path("/usr/local/lib"), Path("/usr/lib64"))
_QUERY = ("name", "driver_version", "memory.total", "compute_cap")
_CUDNN_PARTS = ("CUDNN_MAJOR", "CUDNN_MINOR", "CUDNN_PATCHLEVEL")

# Newer headers define the public names by others, which are numbers.
_TENSORRT_PARTS = (
    r"(?:NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE)",
    r"(?:NV_TENSORRT_MINOR|TRT_MINOR_ENTERPRISE)",
    r"(?:NV_TENSORRT_PATCH|TRT_PATCH_ENTERPRISE)",
)


@dataclass(frozen=True)
class Cuda:
    """A CUDA toolkit.

    Attributes:
        root: Its folder.
        version: Of its compiler.
        architectures: What it compiles for, as 75, 80, ...
        newest_gcc: The newest major version of gcc that it takes; 0 where it does not say.
    """

    root: Path
    version: str
    architectures: tuple[int, ...] = ()
    newest_gcc: int = 0


@dataclass(frozen=True)
class Device:
    """A GPU, as the driver describes it."""

    name: str
    memory: str
    capability: str


@dataclass(frozen=True)
class Found:
    """A version and where it was found."""

    version: str
    path: Path


@dataclass(frozen=True)
class Gpu:
    """NVIDIA's software on a host; what is None is not there.

    Attributes:
        cuda: The toolkit.
        driver: The version of the driver; empty where there is none.
        devices: What the driver drives.
        tensorrt_python: TensorRT's Python package.
        tensorrt_libraries: ``libnvinfer.so``.
        tensorrt_headers: ``NvInfer.h``.
        cudnn: cuDNN's library.
    """

    cuda: Cuda | None = None
    driver: str = ""
    devices: tuple[Device, ...] = ()
    tensorrt_python: Found | None = None
    tensorrt_libraries: Found | None = None
    tensorrt_headers: Found | None = None
    cudnn: Found | None = None


def read_gpu(python: Path | None, vendor: Path | None = None) -> Gpu:
    """Read the facts.

    Args:
        python: The interpreter that is asked for TensorRT's package.
        vendor: The folder in which `install_cuda` and `install_tensorrt` put theirs.
    """
    cuda = read_cuda(vendor)
    ours = sorted(vendor.glob("tensorrt-*"), reverse=True) if vendor else []
    driver, devices = read_driver()
    return Gpu(
        cuda=cuda,
        driver=driver,
        devices=devices,
        tensorrt_python=tensorrt_package(python) if python else None,
        tensorrt_libraries=_library("libnvinfer.so", cuda) or _put_together(ours),
        tensorrt_headers=_tensorrt_headers(cuda, ours),
        cudnn=_library("libcudnn.so", cuda) or _cudnn_headers(cuda),
    )


def read_cuda(vendor: Path | None = None) -> Cuda | None:
    """A toolkit: of CUDA_HOME or CUDA_PATH, or else of the nvcc on PATH, the usual one, or ours.

    Args:
        vendor: The folder in which `install_cuda` puts one.
    """
    named = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    compilers = [Path(name) / "bin" / "nvcc" for name in named if name]
    if not compilers:
        on_path = shutil.which("nvcc")
        compilers = [Path(on_path)] if on_path else []
        compilers.append(_DEFAULT_CUDA / "bin" / "nvcc")
        compilers += sorted(vendor.glob("cuda-*/bin/nvcc"), reverse=True) if vendor else []
    return next(filter(None, map(read_toolkit, compilers)), None)


def read_toolkit(compiler: Path) -> Cuda | None:
    """The toolkit that a compiler is part of; None where it does not run."""
    version = re.search(r"\bV(\d+\.\d+\.\d+)", output(compiler, "--version"))
    if version is None:
        return None
    # The nvcc on PATH may be a script or a link; its own --dryrun knows its folder.
    dry = output(compiler, "--dryrun", "-x", "cu", "-c", os.devnull, complaints=True)
    top = re.search(r"^#\$ TOP=(.+)$", dry, re.MULTILINE)
    root = Path(top.group(1)) if top else compiler.resolve().parent.parent
    listed = output(compiler, "--list-gpu-arch")
    architectures = sorted(map(int, re.findall(r"^compute_(\d+)$", listed, re.MULTILINE)))
    return Cuda(root.resolve(), version.group(1), tuple(architectures), _newest_gcc(root))


def _newest_gcc(root: Path) -> int:
    limit = re.search(r"#if __GNUC__ > (\d+)", text(_in_targets(root, "crt/host_config.h")))
    return int(limit.group(1)) if limit else 0


def _in_targets(root: Path, name: str) -> Path:
    """A header of a toolkit, whose include folder may be below targets/ALONE."""
    found = root.glob(f"targets/*/include/{name}")
    return next((p for p in (root / "include" / name, *found) if p.is_file()), root / name)


def read_driver() -> tuple[str, tuple[Device, ...]]:
    """The driver's version, empty where there is none, and the GPUs that it drives."""
    program = shutil.which("nvidia-smi")
    if not program:
        return "", ()
    query = (f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader")
    rows = [line.split(", ") for line in output(program, *query).splitlines()]
    rows = [row for row in rows if len(row) == len(_QUERY)]
    devices = tuple(Device(name, memory, capability) for name, _, memory, capability in rows)
    return (rows[0][1] if rows else ""), devices


def tensorrt_package(python: Path) -> Found | None:
    """The package of TensorRT that a Python has, and where."""
    code = (
        "import importlib.metadata as m, importlib.util as u\n"
        "for n in ('tensorrt', 'tensorrt-cu13', 'tensorrt-cu12'):\n"
        "    try: print(m.version(n), m.distribution(n).locate_file('tensorrt')); break\n"
        "    except m.PackageNotFoundError: pass\n"
    )
    version, _, path = output(python, "-c", code).strip().partition(" ")
    return Found(version, Path(path)) if version else None


def _tensorrt_headers(cuda: Cuda | None, ours: Iterable[Path]) -> Found | None:
    for folder in (*_header_folders("TENSORRT_ROOT", cuda), *(root / "include" for root in ours)):
        path = folder / "NvInferVersion.h"
        version = _defined(text(path), _TENSORRT_PARTS)
        if version and (folder / "NvInfer.h").is_file():
            return Found(version, folder)
    return None


def _cudnn_headers(cuda: Cuda | None) -> Found | None:
    for folder in _header_folders("CUDNN_ROOT", cuda):
        version = _defined(text(folder / "cudnn_version.h"), _CUDNN_PARTS)
        if version:
            return Found(version, folder)
    return None


def _library(name: str, cuda: Cuda | None) -> Found | None:
    """A shared library with its whole version, which is that of the file its links lead to."""
    for folder in _library_folders(cuda):
        for path in sorted(folder.glob(f"{name}*")):
            version = path.resolve().name.removeprefix(f"{name}.")
            if re.fullmatch(r"\d+(\.\d+)*", version):
                return Found(version, path.resolve())
    return None


def _put_together(roots: Iterable[Path]) -> Found | None:
    """TensorRT's library as `install_tensorrt` puts it beside its headers: a link to a wheel's."""
    for root in roots:
        library = root / "lib" / "libnvinfer.so"
        if library.exists():
            return Found(root.name.removeprefix("tensorrt-"), library)
    return None


def _header_folders(variable: str, cuda: Cuda | None) -> Iterator[Path]:
    named = os.environ.get(variable)
    if named:
        yield Path(named) / "include"
    multiarch = sysconfig.get_config_var("MULTIARCH")
    if multiarch:
        yield Path("/usr/include") / multiarch
    yield from _SYSTEM_HEADERS
    if cuda:
        yield cuda.root / "include"


def _library_folders(cuda: Cuda | None) -> Iterator[Path]:
    for variable in ("TENSORRT_ROOT", "CUDNN_ROOT"):
        named = os.environ.get(variable)
        if named:
            yield from (Path(named) / "lib", Path(named) / "lib64")
    yield from map(Path, filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")))
    multiarch = sysconfig.get_config_var("MULTIARCH")
    if multiarch:
        yield Path("/usr/lib") / multiarch
    yield from _SYSTEM_LIBRARIES
    if cuda:
        yield from (cuda.root / "lib64", cuda.root / "lib")


def _defined(header: str, names: Iterable[str]) -> str:
    """The version that a header defines in parts; empty where a part is not a number there."""
    parts = [re.search(rf"^#define {name}\s+(\d+)", header, re.MULTILINE) for name in names]
    return ".".join(part.group(1) for part in parts if part) if all(parts) else ""
