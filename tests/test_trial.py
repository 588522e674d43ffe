"""Trying a server, with the real embedded one; and what is said where one cannot be tried."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path

import pytest

from provision import built_server, servers
from provision.build_manifest import BuildManifest
from provision.errors import BuildError, HostError
from provision.installation import ServerInstallation
from provision.layout import Layout
from provision.shared_libraries import check_libraries
from provision.trial import try_out


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "try.log"


@pytest.fixture(scope="module")
def server(
    installation: ServerInstallation, tmp_path_factory: pytest.TempPathFactory
) -> ServerInstallation:
    """The real server, without the stubs that its wheel has for Pythons that are not there."""
    folder = tmp_path_factory.mktemp("server") / "triton"
    wheel = installation.program.parent.parent
    leave_out = shutil.ignore_patterns("python_backend_stubs")
    shutil.copytree(wheel, folder, symlinks=True, ignore=leave_out)
    libraries = next(wheel.parent.parent.glob("nvidia_pytriton.libs"))
    path = f"{libraries}:{installation.variables.get('LD_LIBRARY_PATH', '')}"
    variables = {**installation.variables, "LD_LIBRARY_PATH": path}
    program = folder / "bin" / "tritonserver"
    return dataclasses.replace(installation, program=program, variables=variables)


def test_the_real_server_passes(server: ServerInstallation, log: Path) -> None:
    tried = try_out(server, version="2.51.0", log=log)
    assert tried.version == "2.51.0"
    assert "statistics" in tried.extensions
    assert tried.options > 40
    assert tried.metrics > 0
    assert "ldd -r" in log.read_text()


def test_another_version_is_refused(server: ServerInstallation, log: Path) -> None:
    with pytest.raises(BuildError, match=r"says that it is 2\.51\.0, and was to be 2\.60\.0"):
        try_out(server, version="2.60.0", log=log)


def test_a_server_that_cannot_be_told_an_address_is_tried_in_a_network_of_its_own(
    server: ServerInstallation, log: Path
) -> None:
    allowed = subprocess.run(["unshare", "--net", "--map-root-user", "true"], check=False)
    if allowed.returncode != 0:
        pytest.skip("this host allows no network namespaces")
    everywhere = dataclasses.replace(server, addresses=False)
    assert try_out(everywhere, version="2.51.0", log=log).version == "2.51.0"
    lines = log.read_text().splitlines()
    started = next(line for line in lines if "--model-repository=" in line)
    assert "--http-address=" not in started


def test_it_is_not_tried_where_there_is_no_such_network(
    server: ServerInstallation, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    everywhere = dataclasses.replace(server, addresses=False)
    with pytest.raises(BuildError, match="cannot be tried here") as caught:
        try_out(everywhere, version="2.51.0", log=log)
    assert "listens on every interface" in caught.value.cause


def test_a_program_that_does_not_run_is_told(
    server: ServerInstallation, log: Path, tmp_path: Path
) -> None:
    absent = dataclasses.replace(server, program=tmp_path / "bin" / "tritonserver")
    with pytest.raises(BuildError, match="does not run"):
        try_out(absent, version="2.51.0", log=log)


def test_a_library_of_another_python_is_missed(installation: ServerInstallation, log: Path) -> None:
    """The embedded server's wheel has a stub for each Python, of which a host has one or two."""
    with pytest.raises(BuildError, match=r"stub lacks libpython3\.\d+\.so\.1\.0"):
        try_out(installation, version="2.51.0", log=log)


def test_a_missing_library_is_named(tmp_path: Path, log: Path) -> None:
    compiler = shutil.which("gcc")
    if not compiler:
        pytest.skip("needs gcc")
    part = tmp_path / "away" / "libpart.so"
    part.parent.mkdir()
    whole = tmp_path / "server" / "libwhole.so"
    whole.parent.mkdir()
    source = tmp_path / "a.c"
    source.write_text("int part(void) { return 1; }\n")
    build = [compiler, "-shared", "-fPIC", str(source), "-o"]
    subprocess.run([*build, str(part)], check=True)
    source.write_text("int part(void);\nint whole(void) { return part(); }\n")
    subprocess.run([*build, str(whole), f"-L{part.parent}", "-lpart"], check=True)
    with pytest.raises(BuildError, match=r"not whole: libwhole\.so lacks libpart\.so"):
        check_libraries(whole.parent, {}, log)
    check_libraries(whole.parent, {"LD_LIBRARY_PATH": str(part.parent)}, log)


def manifest(*features: str) -> BuildManifest:
    return BuildManifest(
        what="server",
        release="22.01",
        triton="2.18.0",
        features=features,
        stamp="",
        commits={},
        arguments=(),
        tools={},
        troubles={},
        python={"executable": "/usr/bin/python3", "version": "3.11.2", "libpython": ""},
        libraries=("/opt/tensorrt/lib",),
    )


def test_no_server_that_was_built_is_told_with_the_way_to_one(layout: Layout) -> None:
    with pytest.raises(HostError, match="no server was built") as caught:
        servers.server_installation(layout, "built")
    assert "nox -s build_server" in caught.value.fix


def test_one_without_the_python_backend_cannot_serve_onnx(layout: Layout) -> None:
    manifest("http", "server").write(layout.triton / "server")
    with pytest.raises(HostError, match="has no Python backend") as caught:
        servers.server_installation(layout, "built")
    assert "--backend python" in caught.value.fix


def test_what_a_built_server_can_do_is_read_off_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    found = built_server.built_server(tmp_path, manifest("http", "server"))
    assert (found.addresses, found.grpc, found.agents) == (False, False, None)
    assert found.variables["LD_LIBRARY_PATH"].split(":")[0] == str(tmp_path / "lib")
    assert "/opt/tensorrt/lib" not in found.variables["LD_LIBRARY_PATH"]  # it is not there


def test_the_embedded_server_is_the_default(
    host: Layout, installation: ServerInstallation, capsys: pytest.CaptureFixture[str]
) -> None:
    assert servers.server_installation(host).program == installation.program
    assert "the default" in capsys.readouterr().out
