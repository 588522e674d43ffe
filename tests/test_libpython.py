"""The shared library of the system's Python, really fetched from the distribution's archive."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from provision.interpreters import probe
from provision.libpython import fetch


def test_it_is_unpacked_without_root_and_loads(tmp_path: Path) -> None:
    system = probe(Path("/usr/bin/python3"))
    if system is None or shutil.which("apt-get") is None:
        pytest.skip("needs Debian's or Ubuntu's own Python")
    installed = subprocess.run(
        ["dpkg-query", "--show", f"python{system.minor}-minimal"], capture_output=True, check=False
    )
    if installed.returncode != 0:
        pytest.skip(f"the Python in /usr/bin is not the distribution's: {system.executable}")
    library = fetch(system.minor, tmp_path / "vendor")
    if library is None:
        pytest.skip("the distribution's archive is out of reach")
    assert library.is_relative_to(tmp_path / "vendor" / f"libpython-{system.minor}")
    version = ctypes.CDLL(str(library)).Py_GetVersion
    version.restype = ctypes.c_char_p
    assert version().decode().startswith(f"{system.minor}.")
    before = library.stat().st_mtime_ns
    assert fetch(system.minor, tmp_path / "vendor") == library
    assert library.stat().st_mtime_ns == before


def test_an_unknown_python_has_none(tmp_path: Path) -> None:
    if shutil.which("apt-get") is None:
        pytest.skip("needs apt")
    assert fetch("3.0", tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_without_apt_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fetch("3.11", tmp_path / "vendor") is None
