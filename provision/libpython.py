"""The shared library of the system's Python, where the distribution keeps it in a package apart.

On Debian and Ubuntu ``python3`` does not bring ``libpython3.X.so.1.0``. Its package can be had and
unpacked without root: apt checks it against the archive's signature as in any install.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from provision.files import fsync_tree, put_folder

_TIMEOUT_SECONDS = 300


def fetch(minor: str, vendor: Path) -> Path | None:
    """The library of Python `minor` from the distribution, unpacked below `vendor`.

    The package's version is that of the installed interpreter, where the archive still has it.

    Args:
        minor: The Python version as X.Y.
        vendor: Where to unpack it, as ``libpython-X.Y/``.

    Returns:
        The library, or None where this is not Debian or Ubuntu, or the archive is out of reach.
    """
    target = vendor / f"libpython-{minor}"
    existing = _library(target, minor)
    if existing:
        return existing
    if not all(map(shutil.which, ("apt-get", "dpkg-deb", "dpkg-query"))):
        return None
    vendor.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=vendor, prefix=".libpython-") as name:
        work = Path(name)
        version = _installed(f"python{minor}-minimal")
        # Ubuntu 24.04's carries the mark of the 64-bit time_t transition.
        names = (f"libpython{minor}", f"libpython{minor}t64")
        package = next(filter(None, (_download(name, version, work) for name in names)), None)
        if package is None:
            return None
        unpacked = work / "unpacked"
        if _run("dpkg-deb", "--extract", str(package), str(unpacked)) is None:
            return None
        if _library(unpacked, minor) is None:
            return None
        fsync_tree(unpacked)
        put_folder(unpacked, target)
    return _library(target, minor)


def _library(folder: Path, minor: str) -> Path | None:
    return next(folder.glob(f"usr/lib/**/libpython{minor}.so.1.0"), None)


def _download(package: str, version: str, work: Path) -> Path | None:
    """The .deb, with the host's package lists, or with fresh ones of our own."""
    wanted = [f"{package}={version}"] if version else []
    own = [
        f"-oDir::State::Lists={work / 'lists'}",
        f"-oDir::Cache={work / 'cache'}",
    ]
    for options in ([], own):
        if options and not (work / "lists").is_dir():
            (work / "lists" / "partial").mkdir(parents=True)
            (work / "cache" / "archives" / "partial").mkdir(parents=True)
            if _run("apt-get", *options, "--quiet", "update") is None:
                return None
        for name in (*wanted, package):
            _run("apt-get", *options, "--quiet", "download", name, cwd=work)
            found = next(work.glob("*.deb"), None)
            if found:
                return found
    return None


def _installed(package: str) -> str:
    """The installed version of a package; empty where it is not installed."""
    return (_run("dpkg-query", "--show", "--showformat=${Version}", package) or "").strip()


def _run(*command: str, cwd: Path | None = None) -> str | None:
    """What a program printed, or None where it failed."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
