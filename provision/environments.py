"""The Python environments under the root: made from a lock, stamped, replaced whole.

Torch and its CUDA libraries take 5 GB, and the server's Python backend needs a numpy that nothing
else wants, so each lives in an environment of its own, shared by every job that needs it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uv import find_uv_bin

from provision import interpreters, processes, toml
from provision.console import step
from provision.errors import DownloadError, EnvironmentBuildError, SlipwayError, StorageError
from provision.files import lock, put_folder, sha256, write_atomically
from provision.layout import REPOSITORY, Layout

_HERE = Path(__file__).parent
_STAMP = "slipway.json"

# What uv says, why that is, and what to do; the first that matches counts.
_SYMPTOMS: tuple[tuple[str, type[SlipwayError], str, str], ...] = (
    (
        r"os error (28|122)\b",
        StorageError,
        "The disk or the quota is full, of the root or of uv's cache",
        "free some space there, or point SLIPWAY_ROOT and UV_CACHE_DIR at a larger disk",
    ),
    (
        r"os error (1|13|30)\b",
        StorageError,
        "The root or uv's cache cannot be written",
        "make them yours and writable, or point SLIPWAY_ROOT and UV_CACHE_DIR at folders that are",
    ),
    (
        "Hash mismatch",
        DownloadError,
        "A package is not the one that was locked; a mirror or a proxy may have altered it",
        "set UV_DEFAULT_INDEX to an index that you trust, then run the same command again",
    ),
    (
        "Failed to fetch|Failed to download|error sending request",
        DownloadError,
        "The package index does not answer",
        "check the network, or set UV_DEFAULT_INDEX to an index that this host reaches",
    ),
    (
        "No solution found",
        DownloadError,
        "The package index lacks a package, or a wheel of it for this host",
        "set UV_DEFAULT_INDEX to an index that has it, then run the same command again",
    ),
)


@dataclass(frozen=True)
class Environment:
    """A Python environment that is ready.

    Attributes:
        name: Its dependency group.
        prefix: Its folder.
        interpreter: What it was made with.
    """

    name: str
    prefix: Path
    interpreter: interpreters.Interpreter

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.prefix / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        """Where its packages are."""
        return self.prefix / "lib" / f"python{self.interpreter.minor}" / "site-packages"

    def variables(self) -> dict[str, str]:
        """The process environment for programs that run in it, free of this process's Python."""
        foreign = {"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV"}
        foreign.add("PYTHONDONTWRITEBYTECODE")  # without bytecode torch takes twice as long
        kept = {name: value for name, value in os.environ.items() if name not in foreign}
        kept["PATH"] = f"{self.prefix / 'bin'}{os.pathsep}{kept.get('PATH', os.defpath)}"
        kept["VIRTUAL_ENV"] = str(self.prefix)
        kept["PYTHONNOUSERSITE"] = "1"
        # ONNX Runtime's wheels report to their makers since 1.29, unless told not to.
        kept["ORT_DISABLE_TELEMETRY"] = "1"
        return kept


def lock_file(name: str) -> Path:
    """The locked requirements of an environment."""
    return _HERE / "locks" / f"{name}.txt"


def ready(
    layout: Layout, name: str, interpreter: interpreters.Interpreter | None = None
) -> Environment | None:
    """The environment, if it is there and was made from the present lock, with that interpreter."""
    prefix = _prefix(layout, name, interpreter)
    wanted = interpreter
    try:
        stamp = json.loads((prefix / _STAMP).read_text())
        locked, facts = stamp["lock"], stamp["interpreter"]
        library = facts["libpython"]
        interpreter = interpreters.Interpreter(
            executable=Path(facts["executable"]),
            version=facts["version"],
            libpython=Path(library) if library else None,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if locked != sha256(lock_file(name)) or wanted not in {None, interpreter}:
        return None
    if not interpreter.executable.is_file() or (library and not Path(library).is_file()):
        return None
    return Environment(name, prefix, interpreter)


def ensure(
    layout: Layout, name: str, interpreter: interpreters.Interpreter | None = None
) -> Environment:
    """The environment, made first where it is missing or its lock has changed.

    It is made beside the old one and put in its place when it is complete, so that an interrupted
    or failed attempt leaves what was there.

    Args:
        layout: Where.
        name: Its dependency group.
        interpreter: What to make it with; it then lies beside the one of that name for everybody.

    Raises:
        HostError: No interpreter fits.
        DownloadError: A package cannot be had, or is not the one that was locked.
        StorageError: No space, or not ours to write.
        EnvironmentBuildError: It failed otherwise; the log has uv's words.
    """
    existing = ready(layout, name, interpreter)
    if existing:
        return existing
    facts = toml.load(_HERE / "environments.toml")[name]
    with (
        step(f"Python environment '{name}' ({facts['purpose']}; {facts['size']})") as making,
        lock(
            layout.run / f"environment-{_prefix(layout, name, interpreter).name}.lock",
            holder=f"making the environment '{name}'",
            waiting=lambda other: making.progress(f"waiting for {other}"),
        ),
    ):
        environment = ready(layout, name, interpreter) or _make(
            layout, name, facts, making.progress, interpreter
        )
        making.detail = f"Python {environment.interpreter.version}"
        return environment


def _prefix(layout: Layout, name: str, interpreter: interpreters.Interpreter | None) -> Path:
    folder = f"{name}-{interpreter.minor}" if interpreter else name
    return layout.vendor / "environments" / folder


def _make(
    layout: Layout,
    name: str,
    facts: dict[str, Any],
    progress: Callable[[str], None],
    wanted: interpreters.Interpreter | None,
) -> Environment:
    interpreter = wanted or interpreters.find(
        facts["python"], libpython=facts["libpython"], vendor=layout.vendor
    )
    locked = sha256(lock_file(name))
    prefix = _prefix(layout, name, wanted)
    staged = prefix.with_name(f".{prefix.name}.new")
    shutil.rmtree(staged, ignore_errors=True)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    log = layout.logs / f"environment-{name}.log"
    log.unlink(missing_ok=True)
    uv = find_uv_bin()
    # The folder is renamed when it is complete, which only a relocatable environment survives.
    create = [uv, "venv", "--relocatable", "--python", str(interpreter.executable), str(staged)]
    # The lock is complete, so nothing beside it is installed.
    install = [uv, "pip", "install", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    install += [f"--no-binary={package}" for package in facts.get("sdists", ())]
    install += ["--python", str(staged / "bin" / "python"), "--requirements", str(lock_file(name))]
    try:
        for command in (create, install):
            code = processes.run_logged(command, log=log, cwd=REPOSITORY, on_line=progress)
            if code != 0:
                raise _failure(name, code, log)
        stamp = {
            "lock": locked,
            "interpreter": {
                "executable": str(interpreter.executable),
                "version": interpreter.version,
                "libpython": str(interpreter.libpython) if interpreter.libpython else None,
            },
        }
        write_atomically(staged / _STAMP, json.dumps(stamp, indent=2))
        put_folder(staged, prefix, exchange=False)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return Environment(name, prefix, interpreter)


def _failure(name: str, code: int, log: Path) -> SlipwayError:
    what = f"the Python environment '{name}' cannot be made"
    said = " ".join(log.read_text(errors="replace").split())  # uv breaks its lines
    for symptom, kind, cause, fix in _SYMPTOMS:
        if re.search(symptom, said):
            return kind(what, cause=cause, fix=fix, log=log)
    return EnvironmentBuildError(
        f"{what} (uv exited with {code}):\n{processes.last_lines(log)}",
        fix="read the log, then run the same command again",
        log=log,
    )
