"""The first step on a bare host: an environment in the clone that holds nox and uv.

It asks for git and Python's standard library: no pip, no python3-venv, no root. A host that forbids
installing into its own Python (PEP 668) is content, for nothing is.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

from provision import files, pip_wheel
from provision.errors import (
    DownloadError,
    EnvironmentBuildError,
    HostError,
    SlipwayError,
    StorageError,
    storage_error,
)

_LAST_PYTHON = (3, 13)
_STAMP = "slipway-stamp"
# pip's options that would put the packages elsewhere.
_DIVERSIONS = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON", "PIP_DRY_RUN")

_PIP_INSTALL = (
    "install",
    "--require-hashes",
    "--no-deps",
    "--only-binary=:all:",
    "--no-input",
    "--disable-pip-version-check",
    "--no-warn-script-location",
    "--progress-bar=off",
)

_INDEX_FIX = (
    "check the network, set PIP_INDEX_URL to an index that this host reaches (https_proxy and "
    "PIP_CERT, too, are heeded), then run the same command again"
)

_SPACE_FIX = "free some space there, or clone to a folder of yours with 200 MB free"

# What pip prints, why that is, and what to do; the first that matches counts.
_SYMPTOMS: tuple[tuple[str, type[SlipwayError], str, str], ...] = (
    (
        "DO NOT MATCH THE HASHES",
        DownloadError,
        "A package is not the one that was locked; a mirror or a proxy may have altered it",
        "set PIP_INDEX_URL to an index that you trust, then run the same command again",
    ),
    (
        "No space left on device|Disk quota exceeded",
        StorageError,
        "The disk or the quota is full, of the clone or of TMPDIR",
        _SPACE_FIX,
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        DownloadError,
        "This host does not trust the certificate of the package index",
        "install ca-certificates, or set PIP_CERT to the bundle of your proxy's authority",
    ),
    (
        "connection broken by|Could not fetch URL|ReadTimeoutError|ProxyError|NewConnectionError",
        DownloadError,
        "The package index does not answer",
        _INDEX_FIX,
    ),
    (
        "No matching distribution found",
        DownloadError,
        "The package index lacks a package, or a wheel of it for this host",
        _INDEX_FIX,
    ),
)


def ensure_nox(clone: Path) -> Path:
    """The nox of a clone, installed into ``.slipway/nox`` first where it is not there.

    The environment is trusted for its stamp alone, which is written last and removed first; so
    one that was interrupted is made anew, as is one for other requirements or another Python.

    Raises:
        HostError: This Python is newer than the requirements.
        DownloadError: A package cannot be had, or is not the one that was locked.
        StorageError: The clone cannot be written.
        EnvironmentBuildError: It failed otherwise.
    """
    home = clone.resolve() / ".slipway"
    environment = home / "nox"
    requirements = clone / "provision" / "locks" / "bootstrap.txt"
    try:
        stamp = _stamp(environment, requirements)
        if not _is_whole(environment, stamp):
            home.mkdir(exist_ok=True)
            with _lock(home / "nox.lock") as lock:
                # Another run may have made it in the meantime.
                if not _is_whole(environment, stamp):
                    _make(environment, requirements, lock=lock)
                    files.write_atomically(environment / _STAMP, stamp)
    except OSError as error:
        storage = storage_error(error, home)
        if storage:
            raise StorageError(storage.what, fix=_SPACE_FIX) from error
        raise EnvironmentBuildError(
            f"cannot make {environment}: {error}", fix=f"remove {home} and run the same again"
        ) from error
    return environment / "bin" / "nox"


def _stamp(environment: Path, requirements: Path) -> str:
    """What an environment depends on: a moved one is stale too, its scripts name its path."""
    return (
        f"requirements {files.sha256(requirements)}\n"
        f"python {sys.implementation.cache_tag} {sys.base_prefix}\n"
        f"path {environment}\n"
    )


def _is_whole(environment: Path, stamp: str) -> bool:
    try:
        found = (environment / _STAMP).read_text()
    except (OSError, UnicodeDecodeError):
        return False
    # A Python that the host has removed since leaves a dangling link.
    programs = (environment / "bin" / name for name in ("python", "nox"))
    return found == stamp and all(os.access(program, os.X_OK) for program in programs)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[int]:
    """Hold a lock, and give its file descriptor for children to hold on to.

    After a `kill -9` of this process alone its pip goes on writing, and nobody else must.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("Waiting for another run that is installing nox into this clone")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _make(environment: Path, requirements: Path, *, lock: int) -> None:
    (environment / _STAMP).unlink(missing_ok=True)
    if environment.exists():
        shutil.rmtree(environment)
    _create(environment)
    pip = pip_wheel.find_pip(environment)
    _say(f"Installing nox and uv into {environment} (once), by pip {pip.origin}")
    _install(pip, environment, requirements, lock=lock)
    (environment / pip_wheel.PIP_WHEEL).unlink(missing_ok=True)
    files.fsync_tree(environment)


def _create(environment: Path) -> None:
    if sys.version_info[:2] > _LAST_PYTHON:
        raise HostError(
            f"Slipway needs Python 3.10 to 3.13, and this is {sys.version.split()[0]}",
            fix="run it with one of those, for example: python3.13 -m provision",
        )
    try:
        venv.EnvBuilder(symlinks=True).create(environment)
    except ValueError as error:
        raise EnvironmentBuildError(
            f"cannot make {environment}: {error}", fix="move the clone to a path without a colon"
        ) from error


def _install(pip: pip_wheel.Pip, environment: Path, requirements: Path, *, lock: int) -> None:
    log = environment.with_suffix(".log")
    command: list[str | Path] = [
        environment / "bin" / "python",
        "-I",  # the user's PYTHONPATH may hold packages that pip would take for installed ones
        pip.script,
        *_PIP_INSTALL,
        "--requirement",
        requirements,
    ]
    settings = {name: value for name, value in os.environ.items() if name not in _DIVERSIONS}
    settings["PIP_USER"] = "0"
    with log.open("w") as output:
        result = subprocess.run(
            command,
            check=False,
            env=settings,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[lock],
        )
    if result.returncode == 0:
        return
    printed = log.read_text(errors="replace")
    what = f"cannot install nox into {environment}"
    for symptom, kind, cause, fix in _SYMPTOMS:
        if re.search(symptom, printed):
            raise kind(what, cause=cause, fix=fix, log=log)
    errors = re.findall(r"^ERROR: (.+)", printed, re.MULTILINE)
    raise EnvironmentBuildError(
        what,
        cause=errors[-1] if errors else f"pip ended with exit code {result.returncode}",
        fix="read the log, then run the same command again",
        log=log,
    )


def _say(line: str) -> None:
    """Print what happens; standard output is left to nox."""
    print(line, file=sys.stderr, flush=True)
