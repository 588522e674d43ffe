"""A host with a GPU, as far as these tests need one: the driver's words, and a stand-in TensorRT.

What is faked is what no machine without a GPU has: nvidia-smi, and running a plan; see
``standin_tensorrt``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from uv import find_uv_bin

from provision import environments
from provision.build_manifest import BuildManifest
from provision.layout import Layout

STANDIN = Path(__file__).with_name("standin_tensorrt")
VERSION = "11.4.0.106"
SERVER_TENSORRT = "11.4.0"
GPU = "NVIDIA L4, 580.82.07, 23034 MiB, 8.9"


def nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str = GPU) -> None:
    """Put a driver on PATH that answers the query for names, versions, memory and capability."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def own_vendor(layout: Layout, host: Layout) -> None:
    """Give a root a vendor/ of its own, with the host's environments in it."""
    layout.vendor.unlink()
    layout.vendor.mkdir()
    for entry in host.vendor.iterdir():
        if not entry.name.startswith("tensorrt"):
            (layout.vendor / entry.name).symlink_to(entry)


def install_standin(layout: Layout, host: Layout, version: str = VERSION) -> Path:
    """Install the stand-in as `install_tensorrt --wheels` installs wheels; its package's folder."""
    folders = [
        environments.ensure(host, name).site_packages for name in ("tensorrt_rtx", "convert")
    ]
    prefix = layout.vendor / f"tensorrt-wheels-{version}"
    interpreter = environments.ensure(host, "tensorrt_rtx").interpreter.executable
    command = [find_uv_bin(), "venv", "--quiet", "--python", str(interpreter), str(prefix)]
    subprocess.run(command, check=True)
    site = next(prefix.glob("lib/python3*/site-packages"))
    package = site / "tensorrt"
    shutil.copytree(STANDIN, package)
    (package / "paths.txt").write_text("\n".join(map(str, folders)))
    (package / "version.txt").write_text(version)
    info = site / f"tensorrt-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tensorrt\nVersion: {version}\n")
    return package


def server_built_with(layout: Layout, tensorrt: str = SERVER_TENSORRT) -> BuildManifest:
    """The manifest of a server with the TensorRT backend; the server itself is not needed."""
    manifest = BuildManifest(
        what="server",
        release="25.08",
        triton="2.60.0",
        features=("gpu", "http", "python", "tensorrt") if tensorrt else ("http", "python"),
        stamp="",
        commits={},
        arguments=(),
        tools={"cuda": "13.0.88", **({"tensorrt": tensorrt} if tensorrt else {})},
        troubles={},
        python={"executable": "/usr/bin/python3", "version": "3.11.2", "libpython": ""},
        libraries=(),
    )
    folder = layout.triton / "server"
    folder.mkdir(parents=True, exist_ok=True)
    manifest.write(folder)
    return manifest


def edit_record(plan: Path, **changes: object) -> None:
    """Change a plan's record."""
    path = plan.with_name(f"{plan.name}.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
