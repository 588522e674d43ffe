"""The calls of TensorRT against the signatures of TensorRT's own bindings, from 8.6 to 11.

The bindings' wheels are real; the libraries that they load are empty ones, compiled here, for
nothing is called. What mypy reads are stubs, made from what the bindings say of themselves.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from uv import find_uv_bin

from provision.layout import REPOSITORY

WORKER = REPOSITORY / "pipeline" / "tensorrt_worker.py"
BINDINGS = (
    *("tensorrt-bindings==8.6.1", "tensorrt-cu12-bindings==10.0.1"),
    *("tensorrt-cu12-bindings==10.11.0.33", "tensorrt-cu13-bindings==10.13.3.9"),
    *("tensorrt-cu13-bindings==11.4.0.106", "tensorrt-rtx-cu13-bindings==1.7.1.116"),
)
_GUARDED = "IProgressMonitor"  # which came with 10.0, and is asked for first
_INTERPRETER = "3.10"  # the oldest that we run on; all of these have wheels for it


def _fetch(requirement: str, folder: Path) -> Path:
    """Install the bindings alone; the folder of their extension module."""
    command = [find_uv_bin(), "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    command += ["--python-version", version, "--only-binary=:all:", requirement]
    subprocess.run(command, check=True)
    return next(folder.glob("tensorrt*_bindings"))


def _empty_libraries(package: Path) -> None:
    """The libraries that an extension module needs, with the names that it looks for."""
    extension = next(package.glob("*.so"))
    dynamic = subprocess.check_output(["readelf", "-d", str(extension)], text=True)
    names = re.findall(r"\[(lib(?:nv|tensorrt)\S+)\]", dynamic)
    symbols = subprocess.check_output(["nm", "-D", "--undefined-only", str(extension)], text=True)
    wanted = [line.split()[-1] for line in symbols.splitlines() if line.split()[0] == "U"]
    ours = [n for n in wanted if "@" not in n and not n.startswith(("Py", "_Py", "dl"))]
    code = "".join(
        f'void* f{i}(void) __asm__("{name}"); void* f{i}(void) {{ return 0; }}\n'
        for i, name in enumerate(ours)
    )
    for position, name in enumerate(names):
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(package / name)],
            input=code if position == 0 else "",
            text=True,
            check=True,
        )


def _stubs(folder: Path, package: Path) -> Path:
    """Stubs of a module ``tensorrt`` with what these bindings say of themselves."""
    stubs = folder / "stubs"
    extension = next(package.glob("*.so")).stem
    arguments = ["--quiet", "--inspect-mode", "--output", str(stubs)]
    arguments += ["--module", f"{package.name}.{extension}"]
    code = f"import sys; from mypy.stubgen import main; main({arguments!r})"
    subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(folder), "LD_LIBRARY_PATH": str(package)},
        check=True,
        capture_output=True,
    )
    made = stubs / package.name / f"{extension}.pyi"
    (stubs / "tensorrt.pyi").write_text(_readable(made.read_text()) + "\n__version__: str\n")
    shutil.rmtree(stubs / package.name)
    return stubs


def _readable(stub: str) -> str:
    """A stub without the few signatures that no Python could have; those take anything."""
    lines = stub.splitlines()
    while (number := _wrong_line("\n".join(lines))) > 0:
        head = lines[number - 1].partition("(")[0]
        lines[number - 1] = f"{head}(*args: Any, **kwargs: Any) -> Any: ..."
    return "from typing import Any\n" + "\n".join(lines)


def _wrong_line(code: str) -> int:
    try:
        ast.parse(code)
    except SyntaxError as error:
        return error.lineno or 1
    return 0


@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc, for the empty libraries")
@pytest.mark.parametrize("requirement", BINDINGS)
def test_the_calls_fit_the_bindings(requirement: str, tmp_path: Path) -> None:
    package = _fetch(requirement, tmp_path / "site")
    _empty_libraries(package)
    stubs = _stubs(tmp_path / "site", package)
    command = [sys.executable, "-m", "mypy", "--config-file=", "--check-untyped-defs"]
    command += ["--follow-imports=silent", "--ignore-missing-imports"]
    command += [f"--cache-dir={tmp_path / 'cache'}", f"--python-version={_INTERPRETER}"]
    done = subprocess.run(
        [*command, str(WORKER)],
        env={**os.environ, "MYPYPATH": str(stubs)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in done.stdout.splitlines() if line.startswith(str(WORKER))]
    found = [line for line in ours if _GUARDED not in line and ": error: " in line]
    assert found == []  # what it says of the stubs themselves is the bindings' business
    assert "checked 1 source file" in done.stdout


def test_the_worker_is_written_for_python_3_8() -> None:
    """TensorRT 8.0's wheels end with 3.9, and it imports nothing that would need more."""
    tree = ast.parse(WORKER.read_text(), feature_version=(3, 8))
    imported = {
        (node.module or "").partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
    }
    assert not imported & {"pipeline", "provision"}
