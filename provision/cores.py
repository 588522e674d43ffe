"""How many cores there are to compute on."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """The cores this process may use: its CPU set, or less where a quota gives it less.

    A quota is how Docker's ``--cpus`` and Kubernetes' limits work; the kernel still shows every
    core. https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
    """
    allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, math.ceil(min(_quotas(), default=allowed))))


def _quotas() -> list[float]:
    """The quotas of this process's control group and of those above it, in cores."""
    try:
        entries = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    path = next((entry[3:] for entry in entries if entry.startswith("0::")), "/")
    group = _CGROUPS / path.lstrip("/")
    found = []
    for folder in (group, *group.parents):
        if not folder.is_relative_to(_CGROUPS):
            break
        with contextlib.suppress(OSError, ValueError):  # "max" is no quota
            quota, period = (folder / "cpu.max").read_text().split()
            found.append(int(quota) / int(period))
    with contextlib.suppress(OSError, ValueError):  # version 1
        quota = (_CGROUPS / "cpu" / "cpu.cfs_quota_us").read_text()
        period = (_CGROUPS / "cpu" / "cpu.cfs_period_us").read_text()
        if int(quota) > 0:
            found.append(int(quota) / int(period))
    return found
