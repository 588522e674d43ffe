"""The Python environments under the root: made from a lock, stamped, replaced whole.

Torch and its CUDA libraries take 5 GB, and the server's Python backend needs a numpy that nothing
else wants, so each lives in an environment of its own, shared by every job that needs it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uv import find_uv_bin

from provision import interpreters, processes, toml
from provision.console import step
from provision.errors import EnvironmentBuildError
from provision.files import lock, put_folder, sha256, write_atomically
from provision.layout import REPOSITORY, Layout

_HERE = Path(__file__).parent
_STAMP = "slipway.json"


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
        kept = {name: value for name, value in os.environ.items() if name not in foreign}
        kept["PATH"] = f"{self.prefix / 'bin'}{os.pathsep}{kept.get('PATH', os.defpath)}"
        kept["VIRTUAL_ENV"] = str(self.prefix)
        kept["PYTHONNOUSERSITE"] = "1"
        return kept


def lock_file(name: str) -> Path:
    """The locked requirements of an environment."""
    return _HERE / "locks" / f"{name}.txt"


def ready(layout: Layout, name: str) -> Environment | None:
    """The environment, if it is there and was made from the present lock."""
    prefix = layout.vendor / "environments" / name
    try:
        stamp = json.loads((prefix / _STAMP).read_text())
    except (OSError, ValueError):
        return None
    if stamp["lock"] != sha256(lock_file(name)):
        return None
    library = stamp["interpreter"]["libpython"]
    interpreter = interpreters.Interpreter(
        executable=Path(stamp["interpreter"]["executable"]),
        version=stamp["interpreter"]["version"],
        libpython=Path(library) if library else None,
    )
    if not interpreter.executable.is_file() or (library and not Path(library).is_file()):
        return None
    return Environment(name, prefix, interpreter)


def ensure(layout: Layout, name: str) -> Environment:
    """The environment, made first where it is missing or its lock has changed.

    It is made beside the old one and put in its place when it is complete, so that an interrupted
    or failed attempt leaves what was there.

    Raises:
        EnvironmentBuildError: A package cannot be had; the log has uv's words.
        HostError: No interpreter fits.
        StorageError: No space.
    """
    existing = ready(layout, name)
    if existing:
        return existing
    facts = toml.load(_HERE / "environments.toml")[name]
    with (
        step(f"Python environment '{name}' ({facts['purpose']}; {facts['size']})") as making,
        lock(
            layout.run / f"environment-{name}.lock",
            holder=f"making the environment '{name}'",
            waiting=lambda other: making.progress(f"waiting for {other}"),
        ),
    ):
        environment = ready(layout, name) or _make(layout, name, facts, making.progress)
        making.detail = f"Python {environment.interpreter.version}"
        return environment


def _make(
    layout: Layout, name: str, facts: dict[str, Any], progress: Callable[[str], None]
) -> Environment:
    interpreter = interpreters.find(
        facts["python"], libpython=facts["libpython"], vendor=layout.vendor
    )
    prefix = layout.vendor / "environments" / name
    staged = prefix.with_name(f".{name}.new")
    shutil.rmtree(staged, ignore_errors=True)
    staged.parent.mkdir(parents=True, exist_ok=True)
    log = layout.logs / f"environment-{name}.log"
    log.unlink(missing_ok=True)
    uv = find_uv_bin()
    # The folder is renamed when it is complete, which only a relocatable environment survives.
    create = [uv, "venv", "--relocatable", "--python", str(interpreter.executable), str(staged)]
    # The lock is complete, so nothing beside it is installed.
    install = [uv, "pip", "install", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    install += ["--python", str(staged / "bin" / "python"), "--requirements", str(lock_file(name))]
    try:
        for command in (create, install):
            code = processes.run_logged(command, log=log, cwd=REPOSITORY, on_line=progress)
            if code != 0:
                raise EnvironmentBuildError(
                    f"the Python environment '{name}' could not be made (uv exited with {code}):\n"
                    f"{processes.last_lines(log)}",
                    cause="a package registry out of reach, or no space",
                    fix="check the network and `df`, then run the same command again; "
                    "what was downloaded is kept",
                    log=log,
                )
        stamp = {
            "lock": sha256(lock_file(name)),
            "interpreter": {
                "executable": str(interpreter.executable),
                "version": interpreter.version,
                "libpython": str(interpreter.libpython) if interpreter.libpython else None,
            },
        }
        write_atomically(staged / _STAMP, json.dumps(stamp, indent=2))
        put_folder(staged, prefix)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return Environment(name, prefix, interpreter)
