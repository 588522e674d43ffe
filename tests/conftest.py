"""What the tests share: a root of their own, the real environments, a small real model.

The Python environments are the user's (``SLIPWAY_ROOT`` or its default), made where they are
missing; everything else of a test's root is its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from helpers import Slipway, deploy_tiny

from pipeline.manifest import Manifest
from provision import environments
from provision.embedded_server import embedded_server
from provision.installation import ServerInstallation
from provision.layout import REPOSITORY, Layout

SHARED = REPOSITORY.parent / "shared" / "fixtures"


@pytest.fixture(scope="session")
def host() -> Layout:
    """The user's root, whose environments the tests use."""
    return Layout.from_environment()


@pytest.fixture
def layout(tmp_path: Path, host: Layout, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A root of the test's own, which is SLIPWAY_ROOT; its vendor/ is the host's."""
    host.vendor.mkdir(parents=True, exist_ok=True)
    root = tmp_path / "root"
    root.mkdir()
    (root / "vendor").symlink_to(host.vendor)
    monkeypatch.setenv("SLIPWAY_ROOT", str(root))
    return Layout(root)


@pytest.fixture
def slipway(layout: Layout) -> Iterator[Slipway]:
    """Run ``python -m pipeline …`` on the test's root, as a user does."""
    runner = Slipway(layout)
    yield runner
    runner.end()


@pytest.fixture(scope="session")
def installation(host: Layout) -> ServerInstallation:
    """The real embedded server."""
    return embedded_server(host)


@pytest.fixture(scope="session")
def export_python(host: Layout) -> Path:
    """The interpreter of the export environment, which has torch."""
    return environments.ensure(host, "export").python


@pytest.fixture
def tiny(layout: Layout) -> Manifest:
    """A small model, deployed without torch: see :func:`helpers.deploy_tiny`."""
    return deploy_tiny(layout)


@pytest.fixture(scope="session")
def fixture() -> Callable[[str], Path]:
    """A file of the fixture folder beside the clone; the test is skipped where it is absent."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.is_file():
            pytest.skip(f"needs the fixture {name} in {SHARED}")
        return path

    return find


@pytest.fixture(autouse=True)
def _no_child_left() -> Iterator[None]:
    """No test leaves a process behind."""
    yield
    left = [p for p in psutil.Process().children(recursive=True) if p.status() != "zombie"]
    gone, alive = psutil.wait_procs(left, timeout=5)
    del gone
    for process in alive:
        process.kill()
    assert not alive, f"left behind: {[p.cmdline() for p in alive]}"


def pytest_report_header() -> str:
    """Which root the environments come from."""
    root = os.environ.get("SLIPWAY_ROOT", "~/slipway")
    uv = subprocess.run(
        [Path(sys.executable).with_name("uv"), "--version"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return f"environments: {root}/vendor ({uv})"
