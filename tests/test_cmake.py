"""CMake under vendor/: the real wheel, and small ones for what goes wrong."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_bootstrap import Index

from provision import cmake, releases
from provision.errors import DownloadError, HostError, StorageError
from provision.layout import REPOSITORY, Layout

MACHINE = platform.machine()
VERSION = "3.22.2"

INSTALL = """
import sys
from pathlib import Path
from provision import cmake, failures
from provision.layout import Layout
def main():
    cmake.install(Layout(Path(sys.argv[1])), "3.22.2", {sys.argv[2]: sys.argv[3]})
    return 0
sys.exit(failures.run(main, None))
"""


def make_wheel(folder: Path, *, says: str = f"cmake version {VERSION}", more: str = "") -> str:
    """A `cmake` wheel with a program that is a script; its SHA-256."""
    info = f"cmake-{VERSION}.dist-info"
    content = {
        "cmake/__init__.py": more,
        "cmake/data/bin/cmake": f"#!/bin/sh\necho {says}\n",
        "cmake/data/share/cmake-3.22/Modules/A.cmake": "# a module\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: cmake\nVersion: {VERSION}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    path = folder / f"cmake-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in content.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (0o755 if "/bin/" in name else 0o644) << 16
            wheel.writestr(entry, text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """A package index of our own, and nothing else."""
    for name in [name for name in os.environ if name.startswith(("UV_", "PIP_"))]:
        monkeypatch.delenv(name)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    (tmp_path / "wheels").mkdir()
    server = Index(tmp_path / "wheels")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("UV_DEFAULT_INDEX", server.url)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def root(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "root")


def left_over(layout: Layout) -> list[str]:
    """What there is under vendor/ beside what was asked for."""
    return [p.name for p in layout.vendor.iterdir() if p.name != f"cmake-{VERSION}"]


def test_it_is_put_whole_under_vendor_and_tried(index: Index, root: Layout) -> None:
    sha256 = make_wheel(index.wheels)
    program = cmake.install(root, VERSION, {MACHINE: sha256})
    assert program == root.vendor / f"cmake-{VERSION}" / "bin" / "cmake"
    said = subprocess.check_output([program, "--version"], text=True)
    assert said == f"cmake version {VERSION}\n"
    assert (program.parent.parent / "share" / "cmake-3.22" / "Modules" / "A.cmake").is_file()
    assert left_over(root) == []


def test_a_second_run_does_nothing(index: Index, root: Layout) -> None:
    hashes = {MACHINE: make_wheel(index.wheels)}
    first = cmake.install(root, VERSION, hashes).stat()
    index.requests.clear()
    assert cmake.install(root, VERSION, hashes).stat() == first
    assert index.requests == []


def test_one_that_does_not_run_any_more_is_replaced(index: Index, root: Layout) -> None:
    hashes = {MACHINE: make_wheel(index.wheels)}
    program = cmake.install(root, VERSION, hashes)
    program.write_text("")
    assert cmake.installed(root, VERSION) is None
    cmake.install(root, VERSION, hashes)
    assert cmake.installed(root, VERSION) == program
    assert left_over(root) == []


def test_another_wheel_than_the_pinned_is_refused(index: Index, root: Layout) -> None:
    pinned = make_wheel(index.wheels)
    make_wheel(index.wheels, more="# altered\n")
    with pytest.raises(DownloadError, match=r"cmake 3\.22\.2 cannot be had") as caught:
        cmake.install(root, VERSION, {MACHINE: pinned})
    assert "not what was pinned" in caught.value.cause
    assert list(root.vendor.iterdir()) == []


def test_an_index_without_it_is_told(index: Index, root: Layout) -> None:
    assert not list(index.wheels.iterdir())
    with pytest.raises(DownloadError) as caught:
        cmake.install(root, VERSION, {MACHINE: "0" * 64})
    assert "UV_DEFAULT_INDEX" in caught.value.fix
    assert caught.value.log
    assert caught.value.log.is_file()


def test_an_index_that_does_not_answer_is_told(
    index: Index, root: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(DownloadError, match=r"cannot be had") as caught:
        cmake.install(root, VERSION, {MACHINE: make_wheel(index.wheels)})
    assert "check the network" in caught.value.fix


def test_a_wheel_of_another_version_is_refused(index: Index, root: Layout) -> None:
    sha256 = make_wheel(index.wheels, says="cmake version 3.22.3")
    with pytest.raises(DownloadError, match=r"holds another one: cmake version 3\.22\.3"):
        cmake.install(root, VERSION, {MACHINE: sha256})
    assert list(root.vendor.iterdir()) == []


def test_a_program_that_does_not_run_here_is_told(index: Index, root: Layout) -> None:
    sha256 = make_wheel(index.wheels, says="version GLIBC_2.99 not found >&2; exit 1")
    with pytest.raises(HostError, match="does not run on this host"):
        cmake.install(root, VERSION, {MACHINE: sha256})
    assert list(root.vendor.iterdir()) == []


def test_an_architecture_without_a_wheel_is_told(root: Layout) -> None:
    with pytest.raises(HostError, match=f"for {MACHINE} on PyPI") as caught:
        cmake.install(root, VERSION, {"s390x": "0" * 64})
    assert "s390x" in caught.value.cause


def test_a_cache_that_is_not_ours_is_told(
    index: Index, root: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_CACHE_DIR", "/sys/slipway")  # where not even root may make a folder
    with pytest.raises(StorageError) as caught:
        cmake.install(root, VERSION, {MACHINE: make_wheel(index.wheels)})
    assert "UV_CACHE_DIR" in caught.value.fix


def test_killed_at_work_it_leaves_nothing_that_counts(index: Index, root: Layout) -> None:
    sha256 = make_wheel(index.wheels)
    index.may_send.clear()
    command = [sys.executable, "-c", INSTALL, str(root.root), MACHINE, sha256]
    first = subprocess.Popen(command, cwd=REPOSITORY)
    assert index.asked_for_wheel.wait(30)
    first.send_signal(signal.SIGKILL)
    first.wait()
    index.may_send.set()
    assert cmake.installed(root, VERSION) is None
    assert subprocess.run(command, cwd=REPOSITORY, check=False).returncode == 0
    assert cmake.installed(root, VERSION)


def test_two_at_once_install_it_once(index: Index, root: Layout) -> None:
    sha256 = make_wheel(index.wheels)
    command = [sys.executable, "-c", INSTALL, str(root.root), MACHINE, sha256]
    both = [
        subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = sorted(process.communicate(timeout=60)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert sum("installed in" in text for text in said) == 1
    assert sum("nothing to do" in text for text in said) == 1
    assert left_over(root) == []


def test_the_recipes_cmake_from_the_real_index(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "provision", "install_cmake", "--release", "22.01"]
    env = {**os.environ, "SLIPWAY_ROOT": str(tmp_path)}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False
        )

    done = run()
    if done.returncode == DownloadError.exit_code and "not what was pinned" not in done.stderr:
        pytest.skip(f"no package index: {done.stderr}")
    assert done.returncode == 0, done.stderr
    program = tmp_path / "vendor" / "cmake-3.22.2" / "bin" / "cmake"
    assert f'export PATH="{program.parent}:$PATH"' in done.stdout
    said = subprocess.check_output([program, "--version"], text=True)
    assert said.startswith("cmake version 3.22.2\n")
    script = tmp_path / "works.cmake"
    script.write_text('include(FetchContent)\nmessage(STATUS "FetchContent is there")\n')
    ran = subprocess.check_output([program, "-P", script], text=True)
    assert "FetchContent is there" in ran
    again = run()
    assert re.search(r"CMake 3\.22\.2: nothing to do", again.stdout)


def test_every_release_has_a_cmake_for_both_architectures() -> None:
    for release in releases.releases():
        assert set(releases.catalogue().cmake[release.cmake_pin]) == {"x86_64", "aarch64"}
