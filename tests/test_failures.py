"""How a command line ends, seen from outside wherever a real process can show it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from provision import failures
from provision.errors import HostError, SlipwayError, all_errors
from provision.layout import REPOSITORY


def script(body: str) -> list[str]:
    """A program whose main function is `body`."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    code = (
        "import os, signal, sys\n"
        "from provision import errors, failures\n"
        f"def main():\n{lines}    return 0\n"
        "sys.exit(failures.run(main, None))\n"
    )
    return [sys.executable, "-c", code]


def run(body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        script(body), cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=30
    )


def fail(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize("code", [0, 7])
def test_returns_what_main_returns(code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert failures.run(lambda: code, None) == code
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", all_errors())
def test_each_error_has_its_exit_code(kind: type[SlipwayError]) -> None:
    result = run(f"raise errors.{kind.__name__}('it failed', fix='do this')")
    assert result.returncode == kind.exit_code
    assert (result.stdout, result.stderr) == ("", "error: it failed\nfix: do this\n")


def test_prints_cause_and_log(capsys: pytest.CaptureFixture[str]) -> None:
    error = HostError("It failed.", cause="For a reason.", fix="do this", log=Path("/a/log"))
    assert failures.run(lambda: fail(error), None) == 10
    assert capsys.readouterr().err == (
        "error: It failed. For a reason\nfix: do this\nlog: /a/log\n"
    )


def test_interrupt() -> None:
    result = run("os.kill(os.getpid(), signal.SIGINT)\nsignal.pause()")
    assert (result.returncode, result.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("lines", [1, 100_000], ids=["one-line", "many-lines"])
def test_reader_of_the_output_goes_away(lines: int) -> None:
    body = f"sys.stdin.read()\nfor n in range({lines}): print('line', n)"
    with subprocess.Popen(
        script(body),
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        process.stdin.close()
        assert process.wait(30) == 141
        assert process.stderr.read() == b""


def test_another_broken_pipe_is_not_the_output() -> None:
    result = run("r, w = os.pipe()\nos.close(r)\nos.write(w, b'x')")
    assert result.returncode == 70
    assert "BrokenPipeError" in result.stderr


def test_full_disk() -> None:
    result = run("with open('/dev/full', 'w') as file: file.write('x')")
    assert result.returncode == 13
    assert "no space left on device" in result.stderr


def test_output_to_a_full_disk() -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            script("print('x')"),
            cwd=REPOSITORY,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=30,
        )
    assert result.returncode == 13
    what, fix = result.stderr.splitlines()
    assert what.startswith("error: cannot write ")
    assert what.endswith("no space left on device")
    assert fix.startswith("fix: ")


@pytest.mark.parametrize(
    "error", [ValueError("odd"), FileNotFoundError(2, "gone", "x"), AssertionError()]
)
def test_defect_goes_to_a_log(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failures.run(lambda: fail(error), tmp_path / "logs") == 70
    what, fix, log = capsys.readouterr().err.splitlines()
    assert what.startswith(f"error: a defect in Slipway: {type(error).__name__}")
    assert fix.startswith("fix: ")
    written = Path(log.removeprefix("log: "))
    assert written.parent == tmp_path / "logs"
    assert "Traceback (most recent call last)" in written.read_text()
    assert "in fail" in written.read_text()


def test_defect_without_a_place_for_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert failures.run(lambda: fail(ValueError("odd")), file / "logs") == 70
    assert f"log: {tmp_path}/slipway-defect-" in capsys.readouterr().err
    monkeypatch.setattr(tempfile, "tempdir", str(file))
    assert failures.run(lambda: fail(ValueError("odd")), file / "logs") == 70
    assert "could not be written either\nfix: " in capsys.readouterr().err


def test_exit_is_left_alone() -> None:
    with pytest.raises(SystemExit, match="3"):
        failures.run(lambda: sys.exit(3), None)
