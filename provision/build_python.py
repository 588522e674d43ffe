"""The Python that runs a build: with what build.py imports, and wheels for what builds install."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from provision import environments, processes
from provision.console import step
from provision.environments import Environment
from provision.errors import DownloadError
from provision.files import sha256, write_atomically
from provision.interpreters import Interpreter
from provision.layout import Layout

_STAMP = "slipway-stamp"


@dataclass(frozen=True)
class BuildPython:
    """What a build does with Python.

    Attributes:
        environment: Runs build.py, and the clients' setup.py.
        wheels: The folder that pip takes packages from in place of an index.
    """

    environment: Environment
    wheels: Path


def ensure(layout: Layout, interpreter: Interpreter) -> BuildPython:
    """The Python of a build, made first where it is missing.

    Since 25.01 wheels are made by `python -m build`, which installs what a pyproject.toml asks for
    into an environment of its own; so that this needs no network, the wheels lie beside.

    Raises:
        DownloadError: A package cannot be had, or is not the one that was locked.
    """
    environment = environments.ensure(layout, "build", interpreter)
    wheels = layout.vendor / f"wheels-{interpreter.minor}"
    requirements = environments.lock_file("build_wheels")
    stamp = sha256(requirements)
    mark = wheels / _STAMP
    if not mark.is_file() or mark.read_text() != stamp:
        with step("Wheels for building wheels") as fetching:
            shutil.rmtree(wheels, ignore_errors=True)
            _download(environment, requirements, wheels, layout.logs / "build-wheels.log")
            write_atomically(mark, stamp)
            fetching.detail = f"{len(list(wheels.glob('*.whl')))} in {wheels}"
    return BuildPython(environment, wheels)


def _download(environment: Environment, requirements: Path, wheels: Path, log: Path) -> None:
    command = [str(environment.python), "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--requirement", str(requirements), "--dest", str(wheels)]
    settings = environment.variables()
    index = os.environ.get("UV_DEFAULT_INDEX")
    if index:  # what the rest of Slipway takes packages from
        settings.setdefault("PIP_INDEX_URL", index)
    log.unlink(missing_ok=True)
    code = processes.run_logged(command, log=log, env=settings)
    if code != 0:
        raise DownloadError(
            f"the wheels for building wheels cannot be had (pip exited with {code}):\n"
            f"{processes.last_lines(log)}",
            fix="check the network, or set PIP_INDEX_URL to an index that this host reaches",
            log=log,
        )
