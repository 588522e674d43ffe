"""CUDA and TensorRT under vendor/: the real wheels and compiler, NVIDIA's repository in small."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from upstream import GIT

from provision import cuda, gpu, releases, tensorrt
from provision.errors import DownloadError, HostError
from provision.layout import Layout

HEADER = """\
#define NV_TENSORRT_MAJOR 10
#define NV_TENSORRT_MINOR 13
#define NV_TENSORRT_PATCH 3
"""


@pytest.fixture
def root(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "root")


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """NVIDIA's repository in small, and the fact that it has the headers of 10.13.3."""
    folder = tmp_path / "mirror"
    repository = folder / "github.com" / "NVIDIA" / "TensorRT.git"
    (repository / "include").mkdir(parents=True)
    (repository / "samples").mkdir()
    (repository / "include" / "NvInferVersion.h").write_text(HEADER)
    (repository / "include" / "NvInfer.h").write_text("int createInferRuntime();\n")
    (repository / "samples" / "big").write_text("nobody reads this\n")
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "all"]):
        subprocess.run([*GIT, *command], cwd=repository, check=True)
    commit = subprocess.check_output([*GIT, "rev-parse", "HEAD"], cwd=repository, text=True).strip()
    text = releases.FACTS.read_text()
    known = dict(releases.catalogue().tensorrt)["10.13.3"][1]
    facts = tmp_path / "releases.toml"
    facts.write_text(text.replace(known, commit))
    monkeypatch.setattr(releases, "FACTS", facts)
    releases.catalogue.cache_clear()
    yield folder
    releases.catalogue.cache_clear()


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """The libraries as TensorRT's wheels lay them down."""
    folder = tmp_path / "site-packages" / "tensorrt_libs"
    folder.mkdir(parents=True)
    for name in ("libnvinfer.so.10", "libnvinfer_plugin.so.10"):
        (folder / name).write_bytes(b"\x7fELF")
    (folder.parent / "tensorrt_cu13_libs-10.13.3.9.dist-info").mkdir()
    return folder


def test_headers_and_libraries_are_put_together(root: Layout, mirror: Path, wheel: Path) -> None:
    folder = tensorrt.install(root, wheel, str(mirror))
    assert folder == root.vendor / "tensorrt-10.13.3"
    assert (folder / "include" / "NvInfer.h").is_file()
    assert not (folder / "samples").exists()
    assert (folder / "lib" / "libnvinfer.so").resolve() == wheel / "libnvinfer.so.10"
    assert (folder / "lib" / "libnvinfer_plugin.so").exists()
    again = tensorrt.install(root, wheel, str(mirror))
    assert again == folder


def test_a_build_finds_them_where_the_host_has_none(
    root: Layout, mirror: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tensorrt.install(root, wheel, str(mirror))
    monkeypatch.delenv("TENSORRT_ROOT", raising=False)
    found = gpu.read_gpu(None, root.vendor)
    if found.tensorrt_headers is None or found.tensorrt_headers.path.parent != folder:
        pytest.skip("this host has a TensorRT of its own")
    assert found.tensorrt_headers == gpu.Found("10.13.3", folder / "include")
    assert found.tensorrt_libraries == gpu.Found("10.13.3", folder / "lib" / "libnvinfer.so")


def test_libraries_of_an_unknown_version_are_told(root: Layout, mirror: Path, wheel: Path) -> None:
    info = wheel.parent / "tensorrt_cu13_libs-10.13.3.9.dist-info"
    info.rename(info.with_name("tensorrt_cu13_libs-10.99.0.1.dist-info"))
    with pytest.raises(HostError, match=r"headers of TensorRT 10\.99\.0 are not known"):
        tensorrt.install(root, wheel, str(mirror))


def test_a_folder_without_libraries_is_told(root: Layout, tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"there is no libnvinfer\.so in"):
        tensorrt.install(root, tmp_path)


def test_headers_that_cannot_be_had_are_told(root: Layout, wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DownloadError, match="there is no repository"):
        tensorrt.install(root, wheel, str(tmp_path / "empty"))
    assert not list(root.vendor.glob("tensorrt-*"))


def test_cuda_is_installed_completed_and_compiles(
    root: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    try:
        toolkit = cuda.install(root)
    except DownloadError as error:
        if "not what was pinned" in error.cause:
            raise
        pytest.skip(f"no package index: {error}")
    assert toolkit.root == root.vendor / f"cuda-{cuda.version()}"
    assert toolkit.version.startswith("13.0.")
    assert 75 in toolkit.architectures
    for name in ("libcudart.so", "libcupti.so"):
        assert (toolkit.root / "lib64" / name).is_file()
    begun = toolkit.root.stat().st_mtime_ns
    assert cuda.install(root) == toolkit
    assert toolkit.root.stat().st_mtime_ns == begun
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(gpu, "_DEFAULT_CUDA", root.root / "none")
    assert gpu.read_cuda(root.vendor) == toolkit
