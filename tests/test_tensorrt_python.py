"""Finding and installing a TensorRT, from an index on this host; its wheels are made here."""

from __future__ import annotations

import functools
import http.server
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from gpu_host import install_standin, own_vendor
from upstream import GIT

from provision import tensorrt_python, toml
from provision.errors import DownloadError, HostError
from provision.layout import Layout

PACKAGE = "tensorrt_cu13-10.13.3.9"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """NVIDIA's index in small: one package, with what is looked for in it."""
    folder = tmp_path / "index" / "tensorrt-cu13"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / f"{PACKAGE}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tensorrt/__init__.py", "__version__ = '10.13.3.9'\n")
        wheel.writestr("tensorrt_libs/libnvinfer.so.10", "")
        info = f"{PACKAGE}.dist-info"
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tensorrt-cu13\nVersion: 10.13.3.9\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    handler = functools.partial(_Quiet, directory=str(folder.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        facts = tmp_path / "tensorrt_python.toml"
        text = tensorrt_python._FACTS.read_text()
        ours = f"http://127.0.0.1:{server.server_port}"
        facts.write_text(text.replace("https://pypi.nvidia.com", ours))
        (tmp_path / "environments.toml").write_text(
            tensorrt_python._FACTS.with_name("environments.toml").read_text()
        )
        monkeypatch.setattr(tensorrt_python, "_FACTS", facts)
        yield folder
        server.shutdown()


@pytest.fixture
def own(layout: Layout, host: Layout) -> Layout:
    own_vendor(layout, host)
    return layout


@pytest.mark.usefixtures("index")
def test_wheels_are_installed_and_found(own: Layout) -> None:
    libraries = tensorrt_python.install_wheels(own, "10.13.3", cuda=13)
    assert (libraries / "libnvinfer.so.10").is_file()
    found = [one for one in tensorrt_python.candidates(own) if "wheels" in str(one.folder)]
    assert [one.version for one in found] == ["10.13.3.9"]
    chosen = tensorrt_python.find(own, "10.13.3")
    assert (chosen.name, chosen.rtx) == ("TensorRT 10.13.3.9", False)
    assert chosen.environment.name == "tensorrt"
    assert chosen.folders == (libraries.parent,)


@pytest.mark.usefixtures("index")
def test_a_version_that_the_index_lacks_leaves_nothing(own: Layout) -> None:
    with pytest.raises(DownloadError, match=r"tensorrt-cu13 10\.14\.1 cannot be installed") as no:
        tensorrt_python.install_wheels(own, "10.14.1", cuda=13)
    assert no.value.log
    assert no.value.log.is_file()
    assert not list(own.vendor.glob("*tensorrt-wheels*"))


@pytest.mark.parametrize(
    ("version", "cuda", "package"),
    [
        ("11.4.0", 13, "tensorrt-cu13"),
        ("10.13.3.9", 13, "tensorrt-cu13"),
        ("10.13.3.9", 12, "tensorrt-cu12"),
        ("10.9.0", 13, "tensorrt-cu12"),
        ("8.6.1", 12, "tensorrt"),
    ],
)
def test_the_package_is_that_of_the_version_and_cuda(version: str, cuda: int, package: str) -> None:
    wheels = toml.load(tensorrt_python._FACTS)["wheels"]
    assert tensorrt_python._package(wheels, version, cuda) == package


def test_without_wheels_the_archive_is_named() -> None:
    wheels = toml.load(tensorrt_python._FACTS)["wheels"]
    for version, cuda in (("8.0.3", 11), ("10.0.1", 11), ("8.5.3", 12)):
        with pytest.raises(HostError, match=rf"no wheels of TensorRT {version} for CUDA {cuda}"):
            tensorrt_python._package(wheels, version, cuda)


def test_an_old_tensorrt_needs_an_old_python(own: Layout, host: Layout) -> None:
    install_standin(own, host, "8.0.3.4")
    with pytest.raises(HostError, match=r"TensorRT 8\.0\.3\.4 is in .* and Polygraphy is needed"):
        tensorrt_python.find(own)


def test_the_polygraphy_for_old_versions_comes_from_its_commit(
    own: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "mirror" / "github.com" / "NVIDIA" / "TensorRT.git"
    package = repository / "tools" / "Polygraphy" / "polygraphy"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "0.47.1"\n')
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "all"]):
        subprocess.run([*GIT, *command], cwd=repository, check=True)
    commit = subprocess.check_output([*GIT, "rev-parse", "HEAD"], cwd=repository, text=True).strip()
    facts = tmp_path / "facts.toml"
    text = tensorrt_python._FACTS.read_text()
    facts.write_text(
        text.replace(toml.load(tensorrt_python._FACTS)["polygraphy"]["commit"], commit)
    )
    monkeypatch.setattr(tensorrt_python, "_FACTS", facts)
    folder = tensorrt_python._old_polygraphy(own, str(tmp_path / "mirror"))
    assert folder == own.vendor / "polygraphy-0.47.1" / "tools" / "Polygraphy"
    assert (folder / "polygraphy" / "__init__.py").is_file()
