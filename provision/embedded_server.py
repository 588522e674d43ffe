"""The embedded server: the real `tritonserver` out of PyPI's nvidia-pytriton wheel.

The wheel carries Triton 2.51.0, its Python backend, and that backend's stub for each Python
version. ``pytriton`` itself is never imported.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

from provision.environments import Environment, ensure
from provision.errors import HostError
from provision.installation import ServerInstallation, keep_bytecode_out
from provision.layout import Layout

_STUB = "triton_python_backend_stub"
_STUB_MODE = 0o755
_STUB_SECONDS = 60


def embedded_server(layout: Layout) -> ServerInstallation:
    """The embedded server, installed first where it is missing, with its stub tried.

    Raises:
        HostError: The stub does not run on this host.
        DownloadError: The wheel cannot be had.
    """
    environment = ensure(layout, "serving")
    triton = environment.site_packages / "pytriton" / "tritonserver"
    backends = _backend_folder(environment, triton)
    variables = environment.variables()
    # The stub's own search path does not reach the interpreter's library; without this the loader
    # may take the one of another Python. Its folder comes first.
    assert environment.interpreter.libpython is not None  # noqa: S101 - environments.toml asks it
    folders = [str(environment.interpreter.libpython.parent), variables.get("LD_LIBRARY_PATH", "")]
    variables["LD_LIBRARY_PATH"] = ":".join(filter(None, folders))
    _try_stub(backends / "python" / _STUB, variables)
    keep_bytecode_out(environment.site_packages)
    return ServerInstallation(
        name="embedded Triton (nvidia-pytriton 0.7.0)",
        program=triton / "bin" / "tritonserver",
        backends=backends,
        variables=variables,
    )


def _backend_folder(environment: Environment, triton: Path) -> Path:
    """A backend directory with the stub of our Python version, as three links into the wheel."""
    backends = environment.prefix / "backends"
    python = backends / "python"
    python.mkdir(parents=True, exist_ok=True)
    shipped = triton / "backends" / "python"
    stub = triton / "python_backend_stubs" / environment.interpreter.minor / _STUB
    for file in (shipped / "libtriton_python.so", shipped / "triton_python_backend_utils.py", stub):
        link = python / file.name
        # Relative, so that a root that is moved or copied takes the files along.
        wanted = os.path.relpath(file, python)
        if not link.is_symlink() or os.readlink(link) != wanted:  # noqa: PTH115 - as it is written
            link.unlink(missing_ok=True)
            with contextlib.suppress(FileExistsError):
                link.symlink_to(wanted)
    return backends


def _try_stub(stub: Path, variables: dict[str, str]) -> None:
    """Run the stub once: where it cannot load, Triton does not fail, it hangs.

    Without arguments a stub that loads says which it expects, and exits with 1. A server that
    could not start its stub has also taken the stub's execute permission away, which is repaired.
    """
    try:
        if stub.stat().st_mode & 0o777 != _STUB_MODE:  # else a read-only file system will do
            stub.chmod(_STUB_MODE)
        tried = subprocess.run(
            [stub],
            env=variables,
            capture_output=True,
            text=True,
            timeout=_STUB_SECONDS,
            check=False,
        )
        if tried.returncode == 1:
            return
        how = f"exit {tried.returncode}"
        output = (tried.stdout + tried.stderr).strip().splitlines() or ["no output"]
        reason = output[-1]
    except subprocess.TimeoutExpired:
        how, reason = "no end", f"it was still running after {_STUB_SECONDS} s"
    except OSError as error:
        how, reason = "no start", str(error)
    raise HostError(
        f"the Python backend's stub does not run on this host ({how})",
        cause=reason,
        fix="delete vendor/environments/serving under the root and run the same command "
        "again; if it stays, install the library that is named above",
    )
