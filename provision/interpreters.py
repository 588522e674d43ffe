"""Finding a Python interpreter: the search yields candidates with facts, the best is picked."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version
from uv import find_uv_bin

from provision.errors import HostError
from provision.libpython import fetch

_SYSTEM = Path("/usr/bin")

# Asked of each candidate itself: only it knows where its shared library lies. Debian builds put it
# below a multi-architecture folder, others straight into LIBDIR.
_PROBE = """
import json, os, sys, sysconfig
name = "libpython%d.%d.so.1.0" % sys.version_info[:2]
var = sysconfig.get_config_var
libdir, multiarch = var("LIBDIR") or "", var("MULTIARCH") or ""
folders = [libdir, os.path.join(libdir, multiarch), os.path.join(sys.base_prefix, "lib")]
found = [os.path.join(f, name) for f in folders if os.path.isfile(os.path.join(f, name))]
print(json.dumps({
    "executable": os.path.realpath(sys.executable),
    "version": "%d.%d.%d" % sys.version_info[:3],
    "libpython": found[0] if found else None,
}))
"""


@dataclass(frozen=True)
class Interpreter:
    """A Python interpreter that ran and told about itself.

    Attributes:
        executable: The program, links resolved.
        version: Its full version.
        libpython: Its shared library, where it has one.
    """

    executable: Path
    version: str
    libpython: Path | None

    @property
    def minor(self) -> str:
        """The version as X.Y."""
        return ".".join(self.version.split(".")[:2])


def probe(executable: Path) -> Interpreter | None:
    """Run an interpreter and read its facts; None where it does not run (a shim, say)."""
    try:
        answer = subprocess.run(
            [executable, "-I", "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        facts = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    library = facts["libpython"]
    return Interpreter(
        executable=Path(facts["executable"]),
        version=facts["version"],
        libpython=Path(library) if library else None,
    )


def candidates(fits: SpecifierSet) -> Iterator[Interpreter]:
    """The interpreters on this host, each once: the running one first, then what uv finds.

    uv looks along PATH and at the interpreters that it manages itself:
    https://docs.astral.sh/uv/concepts/python-versions/#discovery-of-python-versions
    """
    seen: set[Path] = set()
    base = Path(getattr(sys, "_base_executable", "") or sys.executable)
    for path in itertools.chain((base,), _known_to_uv(fits)):
        interpreter = probe(path)
        if interpreter and interpreter.executable not in seen:
            seen.add(interpreter.executable)
            yield interpreter


def problem(interpreter: Interpreter, *, fits: SpecifierSet, libpython: bool) -> str:
    """Why an interpreter will not do; empty where it will."""
    if Version(interpreter.version) not in fits:
        return f"not {fits}"
    if libpython and interpreter.libpython is None:
        return f"without libpython{interpreter.minor}.so.1.0"
    return ""


def find(python: str, *, libpython: bool, vendor: Path) -> Interpreter:
    """The interpreter to make an environment with.

    The running one where it fits, otherwise the first found that does. Where one fits but for its
    shared library, that is fetched from the distribution; at last uv installs an interpreter for
    the user. Neither needs root.

    Args:
        python: Which versions fit, as a PEP 440 specifier.
        libpython: Whether it must come with its shared library.
        vendor: Where a fetched library goes.

    Raises:
        HostError: None fits, and none could be had.
    """
    fits = SpecifierSet(python)
    rejected = []
    for candidate in candidates(fits):
        reason = problem(candidate, fits=fits, libpython=libpython)
        if not reason:
            return candidate
        rejected.append((candidate, reason))
    for candidate, _ in rejected:
        # Any other Python than the system's may be another build than the distribution's library.
        if not problem(candidate, fits=fits, libpython=False) and _SYSTEM in (
            candidate.executable.parents
        ):
            library = fetch(candidate.minor, vendor)
            if library:
                return replace(candidate, libpython=library)
    managed, reason = _install_managed(fits)
    if managed and not problem(managed, fits=fits, libpython=libpython):
        return managed
    wanted = f"Python {python}" + (" with its shared library" if libpython else "")
    tried = [f"{c.executable} is {c.version}, {why}" for c, why in rejected]
    lacking = [c for c, _ in rejected if not problem(c, fits=fits, libpython=False)]
    apt = f", or `apt install libpython{lacking[0].minor}`" if lacking else ""
    raise HostError(
        f"no {wanted} was found, and none could be installed",
        cause="; ".join([*tried, f"uv: {reason}"]),
        fix=f"let uv reach the network (`uv python install 3.12`){apt}, then run the same again",
    )


def _known_to_uv(fits: SpecifierSet) -> Iterator[Path]:
    answer = subprocess.run(
        [find_uv_bin(), "python", "list", "--only-installed", "--output-format", "json", str(fits)],
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode == 0:
        for entry in json.loads(answer.stdout):
            yield Path(entry["path"])


def _install_managed(fits: SpecifierSet) -> tuple[Interpreter | None, str]:
    """An interpreter that uv downloads, or why not.

    https://docs.astral.sh/uv/guides/install-python/
    """
    uv = find_uv_bin()
    env = {**os.environ, "UV_PYTHON_PREFERENCE": "only-managed"}
    for job in ("install", "find"):
        done = subprocess.run(
            [uv, "python", job, str(fits)], env=env, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            words = done.stderr.strip().splitlines()
            return None, words[-1].strip() if words else f"exit {done.returncode}"
    found = probe(Path(done.stdout.strip()))
    return found, "" if found else "what it installed does not run"
