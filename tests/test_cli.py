"""The command line: what ``--help`` says, how quickly, and what it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter

import pytest
from helpers import Slipway

from provision.errors import SlipwayError, all_errors
from provision.layout import REPOSITORY, Layout

JOBS = [
    *("deploy", "serve", "status", "stop", "smoke", "benchmark"),
    *("classify", "preprocess", "build_image_client"),
]
HEAVY = {
    "PIL",
    "gevent",
    "google",
    "jinja2",
    "numpy",
    "onnxruntime",
    "psutil",
    "requests",
    "rich",
    "torch",
    "tritonclient",
    "uv",
}


@pytest.mark.parametrize("job", ["", *JOBS])
def test_help_imports_nothing_that_takes_time(job: str) -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pipeline", *job.split(), "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: python -m pipeline {job}".rstrip())
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "pipeline.cli" in imported
    assert {name.partition(".")[0] for name in imported} & HEAVY == set()


def test_help_names_every_job_and_every_exit_code(layout: Layout) -> None:
    shown = Slipway(layout)("--help").stdout
    for job in JOBS:
        assert re.search(rf"^    {job}\s+\w", shown, re.MULTILINE), job
    codes = [int(code) for code in re.findall(r"^ +(\d+)  \w", shown, re.MULTILINE)]
    failures = [kind.exit_code for kind in all_errors() if kind is not SlipwayError]
    assert codes == [0, *sorted(failures)]


def test_every_failure_has_an_exit_code_of_its_own() -> None:
    codes = Counter(kind.exit_code for kind in all_errors())
    assert [code for code, count in codes.items() if count > 1] == []
    assert all(0 < code < 126 or code == 130 for code in codes), "the shell has the others"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: JOB"),
        (["fly"], "invalid choice: 'fly'"),
        (["deploy"], "the following arguments are required: MODEL"),
        (["deploy", "resnet50", "--max-batch-size", "-1"], "must not be negative"),
        (["deploy", "resnet50", "--max-batch-size", "many"], "'many' is not a whole number"),
        (["deploy", "resnet50", "--instances", "0"], "must be 1 or more"),
        (["deploy", "resnet50", "--threads", "1.5"], "'1.5' is not a whole number"),
        (["serve", "--http-port", "-8000"], "must not be negative"),
        (["serve", "--timeout", "soon"], "invalid float value: 'soon'"),
        (["stop", "everything"], "unrecognized arguments: everything"),
    ],
)
def test_wrong_usage(layout: Layout, arguments: list[str], words: str) -> None:
    result = Slipway(layout)(*arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert "usage: python -m pipeline" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--http-port", "70000"], "cannot listen on 127.0.0.1:70000"),
        (["serve", "--http-port", "8001"], "two of the ports are the same"),
        (["serve", "--host", "192.0.2.1", "--http-port", "0"], "cannot listen on 192.0.2.1:0"),
    ],
)
@pytest.mark.usefixtures("tiny")
def test_ports_and_addresses_that_cannot_be(
    layout: Layout, arguments: list[str], words: str
) -> None:
    result = Slipway(layout)(*arguments)
    assert result.returncode == 2
    what, fix = result.stderr.splitlines()
    assert words in what
    assert fix.startswith("fix: give ")
