"""The first step on a bare host: an environment in the clone that holds nox and uv.

It asks for git and Python's standard library: no pip, no python3-venv, no root. A host that forbids
installing into its own Python (PEP 668) is content, for nothing is.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import html
import http.client
import importlib.metadata
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from provision import files
from provision.errors import (
    DownloadError,
    EnvironmentBuildError,
    HostError,
    SlipwayError,
    StorageError,
    storage_error,
)

PIP_WHEEL = "pip-26.3-py3-none-any.whl"
PIP_SHA256 = "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"
PYPI = "https://pypi.org/simple"

_LAST_PYTHON = (3, 13)
_STAMP = "slipway-stamp"
_TIMEOUT_SECONDS = 30
_TRIES = 3
_LARGEST_BYTES = 32 << 20

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


@dataclass(frozen=True)
class Pip:
    """Something that a Python can run as pip, without having it installed.

    Attributes:
        script: What to give to that Python.
        origin: Its version and where it is from.
    """

    script: Path
    origin: str


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
    pip = find_pip(environment)
    _say(f"Installing nox and uv into {environment} (once), by pip {pip.origin}")
    _install(pip, environment, requirements, lock=lock)
    (environment / PIP_WHEEL).unlink(missing_ok=True)
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


def find_pip(folder: Path) -> Pip:
    """A pip: Python's own, or the host's, or else one downloaded into a folder.

    Raises:
        DownloadError: It has to be downloaded and cannot be.
    """
    ensurepip = find_spec("ensurepip")
    if ensurepip and ensurepip.origin:
        for wheel in Path(ensurepip.origin).parent.glob("_bundled/pip-*.whl"):
            return Pip(wheel / "pip", f"{wheel.name.split('-')[1]} from Python's ensurepip")
    installed = find_spec("pip")
    if installed and installed.origin:
        # What `pip --python` runs inside another environment, since pip 22.3.
        runner = Path(installed.origin).parent / "__pip-runner__.py"
        if runner.is_file():
            return Pip(runner, f"{importlib.metadata.version('pip')} of this host")
    wheel = download_pip(folder)
    return Pip(wheel / "pip", f"{wheel.name.split('-')[1]}, downloaded")


def _install(pip: Pip, environment: Path, requirements: Path, *, lock: int) -> None:
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


def download_pip(folder: Path) -> Path:
    """The wheel of the pinned pip, from PIP_INDEX_URL or PyPI by default, put into a folder.

    Raises:
        DownloadError: The index cannot be read, or has no such file, or another under its name.
    """
    index = _Index(os.environ.get("PIP_INDEX_URL") or PYPI)
    url, page = index.get(f"{index.url}/pip/")
    link = _find_link(page, PIP_WHEEL)
    if link is None:
        raise DownloadError(f"{index.url} does not list {PIP_WHEEL}", fix=index.fix)
    _, wheel = index.get(urllib.parse.urljoin(url, link))
    digest = hashlib.sha256(wheel).hexdigest()
    if digest != PIP_SHA256:
        raise DownloadError(
            f"{index.url} has another {PIP_WHEEL} than the one pinned here",
            cause=f"Expected sha256 {PIP_SHA256}, got {digest}; a mirror or a proxy may alter it",
            fix=index.fix,
        )
    path = folder / PIP_WHEEL
    path.write_bytes(wheel)
    return path


def _find_link(page: bytes, name: str) -> str | None:
    """The address of a file on an index page: JSON (PEP 691), or the HTML of older mirrors."""
    text = page.decode(errors="replace")
    try:
        listed = json.loads(text)["files"]
        return next((str(file["url"]) for file in listed if file["filename"] == name), None)
    except (ValueError, KeyError, TypeError):
        # Good enough without a parser, as the file's own digest is what is believed.
        match = re.search(rf'href\s*=\s*"([^"]*{re.escape(name)}(?:#[^"]*)?)"', text)
        return html.unescape(match[1]) if match else None


class _Index:
    """A package index, with the credentials in its address kept out of every message."""

    fix = (
        "set PIP_INDEX_URL to an index that this host reaches and you trust (https_proxy and "
        "PIP_CERT, too, are heeded), or have python3-venv installed, which brings a pip along"
    )

    def __init__(self, address: str) -> None:
        parts = urllib.parse.urlsplit(address)
        host = parts.netloc.rpartition("@")[2]
        self.url = urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", "")).rstrip("/")
        passwords = urllib.request.HTTPPasswordMgrWithPriorAuth()
        if parts.username:
            passwords.add_password(
                None,
                f"{parts.scheme}://{host}/",
                urllib.parse.unquote(parts.username),
                urllib.parse.unquote(parts.password or ""),
                is_authenticated=True,
            )
        try:
            tls = ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or None)
        except OSError as error:
            raise DownloadError(
                f"cannot read the certificates in PIP_CERT, {os.environ.get('PIP_CERT')}: {error}",
                fix="set PIP_CERT to a file of certificates, or unset it",
            ) from error
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPBasicAuthHandler(passwords),
            urllib.request.HTTPSHandler(context=tls),
        )

    def get(self, url: str) -> tuple[str, bytes]:
        """The address that answered in the end, and its content; transient failures are retried."""
        accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.1, */*;q=0.01"
        cause = ""
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(attempt)
            try:
                request = urllib.request.Request(url, headers={"Accept": accept})  # noqa: S310
                with self._opener.open(request, timeout=_TIMEOUT_SECONDS) as response:
                    data: bytes = response.read(_LARGEST_BYTES)
                    if missing := getattr(response, "length", 0):
                        raise http.client.IncompleteRead(data, missing)
                    return response.url, data
            except urllib.error.HTTPError as error:
                cause = f"It answers {error.code} {error.reason}"
                error.close()
                if error.code < http.HTTPStatus.INTERNAL_SERVER_ERROR:
                    break
            except ValueError as error:  # no address at all
                cause = str(error)
                break
            except (OSError, http.client.HTTPException) as error:
                cause = str(getattr(error, "reason", "") or error or type(error).__name__)
        raise DownloadError(f"cannot download {url}", cause=cause, fix=self.fix)


def _say(line: str) -> None:
    """Print what happens; standard output is left to nox."""
    print(line, file=sys.stderr, flush=True)
