"""Cores are those that may be used, not those that can be seen."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from provision import cores


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Our control group, in a hierarchy that a test may write to."""
    entries = Path("/proc/self/cgroup").read_text().splitlines()
    path = next((entry[3:] for entry in entries if entry.startswith("0::")), None)
    if path is None:
        pytest.skip("this host has no unified control groups")
    monkeypatch.setattr(cores, "_CGROUPS", tmp_path)
    folder = tmp_path / path.lstrip("/")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_without_a_quota_they_are_the_cpu_set(group: Path) -> None:
    (group / "cpu.max").write_text("max 100000\n")
    assert cores.available_cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("quota", "expected"), [("100000 100000", 1), ("5000 100000", 1)])
def test_a_quota_gives_less(group: Path, quota: str, expected: int) -> None:
    (group / "cpu.max").write_text(quota)
    assert cores.available_cores() == expected


def test_the_quota_of_a_group_above_counts_too(group: Path, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000")
    assert cores.available_cores() == 1
    del group


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_a_smaller_cpu_set_gives_less() -> None:
    whole = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(whole)})
    try:
        assert cores.available_cores() == 1
    finally:
        os.sched_setaffinity(0, whole)
