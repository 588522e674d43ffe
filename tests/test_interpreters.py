"""Which Python an environment is made with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from provision import interpreters
from provision.errors import HostError
from provision.interpreters import Interpreter

EVERY = SpecifierSet(">=3.10,<3.14")


def test_interpreter_tells_about_itself() -> None:
    found = interpreters.probe(Path(sys.executable))
    assert found is not None
    assert found.version == "{}.{}.{}".format(*sys.version_info[:3])
    assert found.minor == "{}.{}".format(*sys.version_info[:2])
    assert found.executable.is_file()
    assert not found.executable.is_symlink()
    assert found.libpython is None or found.libpython.name == f"libpython{found.minor}.so.1.0"


@pytest.mark.parametrize(
    "script", ["#!/bin/sh\nexit 1\n", "#!/bin/sh\necho hello\n", "#!/not/there\n", None]
)
def test_what_is_no_interpreter(tmp_path: Path, script: str | None) -> None:
    shim = tmp_path / "python3"
    if script:
        shim.write_text(script)
        shim.chmod(0o755)
    assert interpreters.probe(shim) is None


def test_candidates_come_once_the_running_one_first() -> None:
    found = list(interpreters.candidates(EVERY))
    assert found[0] == interpreters.probe(Path(sys.executable))
    assert len({candidate.executable for candidate in found}) == len(found)


@pytest.mark.parametrize(
    ("version", "library", "wanted", "said"),
    [
        ("3.11.7", None, False, ""),
        ("3.11.7", Path("/lib/x"), True, ""),
        ("3.9.1", None, False, "not <3.14,>=3.10"),
        ("3.14.0", Path("/lib/x"), True, "not <3.14,>=3.10"),
        ("3.12.1", None, True, "without libpython3.12.so.1.0"),
    ],
)
def test_why_one_will_not_do(version: str, library: Path | None, wanted: bool, said: str) -> None:  # noqa: FBT001 - a parameter of the test
    candidate = Interpreter(Path("/bin/python"), version, library)
    assert interpreters.problem(candidate, fits=EVERY, libpython=wanted) == said


def test_running_one_is_taken_where_it_fits(tmp_path: Path) -> None:
    running = interpreters.probe(Path(sys.executable))
    assert interpreters.find(str(EVERY), libpython=False, vendor=tmp_path) == running


def test_none_fits_and_none_can_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(tmp_path / "pythons"))
    with pytest.raises(HostError, match=r"no Python ==3\.99\.\* was found") as caught:
        interpreters.find("==3.99.*", libpython=False, vendor=tmp_path)
    assert caught.value.exit_code == 10
    running = interpreters.probe(Path(sys.executable))
    assert running is not None
    assert f"{running.executable} is {running.version}, not ==3.99.*" in caught.value.cause
    assert "let uv reach the network" in caught.value.fix
