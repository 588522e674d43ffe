"""The embedded server: the wheel's, with its stub tried first, since a broken one makes it hang."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import FREE_PORTS, Slipway, deploy_tiny

from provision import embedded_server, environments
from provision.environments import Environment
from provision.errors import HostError
from provision.installation import ServerInstallation
from provision.layout import Layout

STUB = "triton_python_backend_stub"


@pytest.fixture
def serving(host: Layout, installation: ServerInstallation) -> Environment:
    """The environment that the server is in."""
    assert installation.backends.is_dir()
    environment = environments.ready(host, "serving")
    assert environment
    return environment


@pytest.fixture
def copied(tmp_path: Path, serving: Environment) -> tuple[Layout, Path]:
    """A root with a copy of the serving environment, and the stub in it, which may be broken."""
    layout = Layout(tmp_path / "copy")
    copy = replace(serving, prefix=layout.vendor / "environments" / "serving")
    where = Path("pytriton", "tritonserver", "python_backend_stubs", copy.interpreter.minor, STUB)
    stub = copy.site_packages / where
    stub.parent.mkdir(parents=True)
    shutil.copy(serving.prefix / "slipway.json", copy.prefix)
    shutil.copy(serving.site_packages / where, stub)
    # What the stub needs lies beside it: see `readelf -d` for its search path.
    for name in ("nvidia_pytriton.libs", "pytriton/tritonserver/backends"):
        (copy.site_packages / name).symlink_to(serving.site_packages / name)
    return layout, stub


def test_backend_folder_has_the_stub_of_our_python(
    installation: ServerInstallation, serving: Environment
) -> None:
    folder = installation.backends / "python"
    links = {path.name: path.resolve() for path in folder.iterdir() if path.is_symlink()}
    assert set(links) == {"libtriton_python.so", "triton_python_backend_utils.py", STUB}
    assert links[STUB].parent.name == serving.interpreter.minor


def test_the_stub_loads_the_library_of_its_own_python(
    installation: ServerInstallation, serving: Environment
) -> None:
    listed = subprocess.run(
        ["ldd", installation.backends / "python" / STUB],
        env=installation.variables,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (line,) = (line for line in listed.splitlines() if "libpython" in line)
    library = Path(line.split("=>")[1].split()[0])
    assert serving.interpreter.libpython
    assert library.resolve() == serving.interpreter.libpython.resolve()


def test_the_servers_python_is_free_of_the_callers(
    host: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("PYTHONHOME", "/elsewhere")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/mine")
    variables = embedded_server.embedded_server(host).variables
    assert not {"PYTHONPATH", "PYTHONHOME"} & set(variables)
    assert variables["LD_LIBRARY_PATH"].endswith(":/mine")
    assert variables["ORT_DISABLE_TELEMETRY"] == "1"


def of_another_python(stub: Path) -> str:
    """The wheel's stub for a Python whose library is not on this host."""
    wheel = (stub.parents[2] / "backends").resolve().parent
    shutil.copy(wheel / "python_backend_stubs" / "3.8" / STUB, stub)
    return "libpython3.8.so.1.0"


def truncated(stub: Path) -> str:
    stub.write_bytes(stub.read_bytes()[:5000])
    return ""


def of_another_machine(stub: Path) -> str:
    content = bytearray(stub.read_bytes())
    content[18] = 0xB7  # e_machine, see elf(5): AArch64
    stub.write_bytes(content)
    return "Exec format error"


def missing(stub: Path) -> str:
    stub.unlink()
    return "No such file"


def crashing(stub: Path) -> str:
    stub.write_text("#!/bin/sh\necho out of order\nkill -SEGV $$\n")
    return "out of order"


@pytest.mark.parametrize(
    "broken", [of_another_python, truncated, of_another_machine, missing, crashing]
)
def test_a_stub_that_does_not_run_is_found_before_the_server_hangs_on_it(
    copied: tuple[Layout, Path], broken: Callable[[Path], str]
) -> None:
    layout, stub = copied
    words = broken(stub)
    with pytest.raises(HostError, match="stub does not run on this host") as raised:
        embedded_server.embedded_server(layout)
    assert words in raised.value.cause
    assert "delete vendor/environments/serving" in raised.value.fix


def test_a_stub_that_never_ends(
    copied: tuple[Layout, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, stub = copied
    stub.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(embedded_server, "_STUB_SECONDS", 0.5)
    with pytest.raises(HostError) as raised:
        embedded_server.embedded_server(layout)
    assert raised.value.cause == "it was still running after 0.5 s"


def test_serve_says_that_the_stub_is_broken(copied: tuple[Layout, Path]) -> None:
    layout, stub = copied
    missing_library = of_another_python(stub)
    deploy_tiny(layout)
    result = Slipway(layout)("serve", *FREE_PORTS, timeout=60)
    assert result.returncode == 10
    assert missing_library in result.stderr


def test_permission_that_a_hanging_server_took_from_the_stub_is_given_back(
    copied: tuple[Layout, Path],
) -> None:
    layout, stub = copied
    stub.chmod(0o100)
    embedded_server.embedded_server(layout)
    assert stub.stat().st_mode & 0o777 == 0o755
