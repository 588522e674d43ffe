"""The README says what is true: its jobs exist, its exit codes are the code's."""

from __future__ import annotations

import re
import subprocess
import sys

from provision.errors import SlipwayError, all_errors
from provision.layout import REPOSITORY

README = (REPOSITORY / "README.md").read_text()


def test_every_job_it_names_is_a_session_and_every_session_is_named() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "nox", "--list", "--nocolor"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    sessions = set(re.findall(r"^[-*] (\w+) ->", listed.stdout, re.MULTILINE))
    used = set(re.findall(r"nox -s (\w+)", README)) - {"JOB"}
    assert used <= sessions
    for session in sessions:
        assert f"`{session}" in README or f"-s {session}" in README, session


def test_it_lists_the_exit_codes() -> None:
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| (\d*) ?\| [^|]*\|$", README, re.MULTILINE)
    assert {int(code) for row in rows for code in row if code} == {
        e.exit_code for e in all_errors() if e is not SlipwayError
    }


def test_it_has_one_line_for_smoke_and_one_for_tests() -> None:
    blocks = re.findall(r"```sh\n(python3 -m provision nox -s \w+)[^\n]*\n```", README)
    assert blocks == ["python3 -m provision nox -s smoke", "python3 -m provision nox -s tests"]
