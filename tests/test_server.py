"""Starting and stopping the real server, and every way in which a start fails."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import SHARED_MEMORY, deploy_tiny, detached, left_behind, own_root
from uv import find_uv_bin

from pipeline import server, server_record
from pipeline.manifest import Manifest
from pipeline.server import ServeOptions
from pipeline.server_record import ServerRecord
from provision import processes
from provision.errors import ModelLoadError, PortInUseError, ServerStartError, UsageError
from provision.installation import ServerInstallation
from provision.layout import Layout

FREE = ServeOptions(http=0, grpc=0, metrics=0)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, host: Layout) -> Iterator[ServerRecord]:
    """A server that is only looked at, started by name for a user whose home is new."""
    layout = own_root(tmp_path_factory.mktemp("running"), host)
    deploy_tiny(layout)
    home = layout.root / "home"
    home.mkdir()
    with pytest.MonkeyPatch.context() as variables:
        variables.setenv("HOME", str(home))
        for name in ("XDG_CACHE_HOME", "CI"):  # with CI set ONNX Runtime is discreet anyway
            variables.delenv(name, raising=False)
        with detached(layout, "--host=localhost") as (_, record):
            yield record


def start(layout: Layout, installation: ServerInstallation, options: ServeOptions = FREE) -> None:
    """Start a server that is expected not to start."""
    server.stop(layout, server.start(layout, installation, options, role="temporary", bound=True))


# Running


def test_listens_on_loopback_alone(running: ServerRecord) -> None:
    process = running.process()
    assert process
    listening = [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    # gRPC binds the loopback address of version 4 on a socket of version 6.
    assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} == {"127.0.0.1"}
    assert {c.laddr.port for c in listening} == {running.http, running.grpc, running.metrics}


def test_a_name_to_listen_on_becomes_its_address(running: ServerRecord) -> None:
    # Triton itself would take "localhost" and listen where nobody finds it.
    assert running.url == f"127.0.0.1:{running.http}"


def test_processes_and_shared_memory_carry_the_mark(running: ServerRecord) -> None:
    marked = processes.marked(server_record.MARK, running.id)
    assert [p.name()[:12] for p in marked] == ["triton_pytho", "tritonserver"]
    assert list(SHARED_MEMORY.glob(f"{running.shared_memory_prefix}*"))


def test_loads_a_model_once_and_writes_nothing_into_the_repository(running: ServerRecord) -> None:
    time.sleep(2)  # it looks for changes each second
    assert Path(running.log).read_text().count('"loading: tiny:1"') == 1
    assert list(Path(running.repository).rglob("__pycache__")) == []


def test_ends_in_order_and_leaves_nothing(
    layout: Layout, installation: ServerInstallation, tiny: Manifest
) -> None:
    with server.temporary(layout, installation) as record:
        assert server_record.records(layout) == [record]
        assert server_record.running(layout) is None, "a temporary server is not for everybody"
    # An open connection of ours would have it wait for us and then break off.
    log = Path(record.log).read_text()
    assert f"successfully unloaded '{tiny.model}' version 1" in log
    assert "Exit timeout expired" not in log
    assert left_behind(layout) == []


def test_a_proxy_is_not_asked_for_the_server(
    running: ServerRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert server._is_ready(running.url)


def test_a_server_without_a_process_yet_is_not_taken_for_a_dead_one(
    layout: Layout,
    installation: ServerInstallation,
    tiny: Manifest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ThreadPoolExecutor(1) as pool:
        clearing: list[Future[list[ServerRecord]]] = []
        run: Any = subprocess.Popen

        def run_late(*command: Any, **options: Any) -> Any:
            monkeypatch.setattr(subprocess, "Popen", run)
            clearing.append(pool.submit(server_record.clear_leftovers, layout))
            wait(clearing, timeout=0.5)
            return run(*command, **options)

        monkeypatch.setattr(subprocess, "Popen", run_late)
        with server.temporary(layout, installation) as record:
            assert [cleared.result() for cleared in clearing] == [[]]
            assert server_record.records(layout) == [record]
    assert tiny.version == 1


def test_onnx_runtime_does_not_report_to_its_makers(running: ServerRecord) -> None:
    home = Path(running.repository).parent / "home"
    assert list(home.rglob("*onnxruntime*")) == []


# Ports


@pytest.fixture(params=["idle", "full"])
def taken(request: pytest.FixtureRequest) -> Iterator[int]:
    """A port that this process listens on, and perhaps accepts nothing more on."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        waiting = [socket.socket() for _ in range(3 if request.param == "full" else 0)]
        for connection in waiting:
            connection.settimeout(0)
            connection.connect_ex(("127.0.0.1", port))
        yield port
        for connection in waiting:
            connection.close()


@pytest.mark.parametrize("name", ["http", "grpc", "metrics"])
def test_a_taken_port_and_who_has_it(
    layout: Layout, installation: ServerInstallation, taken: int, name: str
) -> None:
    me = psutil.Process()
    with pytest.raises(PortInUseError) as raised:
        start(layout, installation, replace(FREE, **{name: taken}))  # type: ignore[arg-type]
    assert raised.value.what == (
        f"port {taken} ({name}) is taken by process {me.pid} ({me.name()})"
    )
    assert f"`--{name}-port`" in raised.value.fix
    assert left_behind(layout) == []


def test_a_port_that_was_just_in_use_is_free(
    layout: Layout, installation: ServerInstallation
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = listener.accept()
            accepted.close()
    assert server._ports(replace(FREE, http=port), grpc=True).http == port
    assert installation.program.is_file()
    assert left_behind(layout) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (replace(FREE, http=8000, grpc=8000), "two of the ports are the same"),
        (replace(FREE, http=70000), "cannot listen on 127.0.0.1:70000"),
        (replace(FREE, host="192.0.2.1"), "cannot listen on 192.0.2.1:0: .*[Cc]annot assign"),
        (replace(FREE, host="no.such.host.invalid"), "cannot listen on no.such.host.invalid:0"),
        (replace(FREE, host="::1"), "cannot listen on ::1:0"),
        (replace(FREE, host=""), "the address to listen on is empty"),
    ],
)
def test_ports_and_addresses_that_cannot_be(
    layout: Layout, installation: ServerInstallation, options: ServeOptions, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        start(layout, installation, options)
    assert left_behind(layout) == []


# Dying at the start


def program(folder: Path, text: str) -> Path:
    """A program in the server's place."""
    path = folder / "tritonserver"
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_the_last_words_of_a_server_that_dies(
    layout: Layout, installation: ServerInstallation, tmp_path: Path
) -> None:
    words = program(tmp_path, "#!/bin/sh\nseq 100\necho 'no room at the inn'\nexit 4\n")
    with pytest.raises(ServerStartError) as raised:
        start(layout, replace(installation, program=words))
    lines = raised.value.what.splitlines()
    assert lines[0] == "the server ended while starting; its last words:"
    assert lines[-1].strip() == "no room at the inn"
    assert len(lines) == 9
    assert raised.value.log
    assert raised.value.log.read_text().splitlines()[-1] == "no room at the inn"
    assert left_behind(layout) == []


@pytest.mark.parametrize("role", ["serve", "temporary"])
def test_a_server_that_is_not_there(
    layout: Layout, installation: ServerInstallation, role: str
) -> None:
    gone = replace(installation, program=layout.root / "tritonserver")
    with pytest.raises(ServerStartError, match="No such file or directory"):
        server.start(layout, gone, FREE, role=role, bound=role == "temporary")
    assert left_behind(layout) == []


def test_a_backend_folder_that_is_not_there(
    layout: Layout, installation: ServerInstallation, tiny: Manifest
) -> None:
    with pytest.raises(ModelLoadError, match=r"cannot load tiny version 1: .*'python'") as raised:
        start(layout, replace(installation, backends=layout.root / "nowhere"))
    assert raised.value.log
    assert raised.value.log.parent == layout.logs
    assert left_behind(layout) == []
    assert tiny.version == 1


def test_a_server_that_takes_too_long(
    layout: Layout, installation: ServerInstallation, tiny: Manifest
) -> None:
    with pytest.raises(ServerStartError, match=r"(?s)not ready after 0\.5 s; .*loading: tiny"):
        start(layout, installation, replace(FREE, timeout=0.5))
    assert left_behind(layout) == []
    assert tiny.version == 1


# Models that do not load


def truncated_model(folder: Path) -> str:
    model = folder / "1" / "model.onnx"
    model.write_bytes(model.read_bytes()[:1000])
    return "cannot load tiny version 1: .*model.onnx failed.*[Pp]rotobuf parsing failed"


def unknown_field(folder: Path) -> str:
    with (folder / "config.pbtxt").open("a") as config:
        config.write("max_happiness: 11\n")
    return "cannot load tiny: .*config.pbtxt"


def no_program(folder: Path) -> str:
    (folder / "1" / "model.py").unlink()
    return "cannot load tiny version 1: .*model.py"


def no_labels(folder: Path) -> str:
    (folder / "labels.txt").unlink()
    return "cannot load tiny.*labels.txt"


@pytest.mark.parametrize("broken", [truncated_model, unknown_field, no_program, no_labels])
def test_a_model_that_does_not_load_and_why(
    layout: Layout,
    installation: ServerInstallation,
    tiny: Manifest,
    broken: Callable[[Path], str],
) -> None:
    words = broken(layout.models / tiny.model)
    with pytest.raises(ModelLoadError, match=words) as raised:
        start(layout, installation)
    assert "nox -s deploy -- tiny --force" in raised.value.fix
    assert raised.value.log
    assert raised.value.log.is_file()
    assert left_behind(layout) == []


def test_numpy_2_in_the_servers_environment_is_refused(
    layout: Layout, installation: ServerInstallation, tiny: Manifest, tmp_path: Path
) -> None:
    serving = Path(installation.variables["VIRTUAL_ENV"])
    newer = tmp_path / "newer"
    for command in (
        f"venv --python {serving}/bin/python {newer}",
        f"pip install --only-binary=:all: --no-deps --python {newer} numpy>=2",
    ):
        uv = [find_uv_bin(), *command.split()]
        made = subprocess.run(uv, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr
    # All the rest is the serving environment's.
    (packages,) = newer.glob("lib/python*/site-packages")
    (rest,) = serving.glob("lib/python*/site-packages")
    (packages / "rest.pth").write_text(f"{rest}\n")
    variables = {
        **installation.variables,
        "VIRTUAL_ENV": str(newer),
        "PATH": f"{newer / 'bin'}:{installation.variables['PATH']}",
    }
    with pytest.raises(ModelLoadError) as raised:
        start(layout, replace(installation, variables=variables))
    assert "cannot load tiny version 1" in raised.value.what
    assert "Python backend reads numpy 2 arrays wrong without an error" in raised.value.what
    assert "install 'numpy<2' there" in raised.value.what
    assert left_behind(layout) == []
    assert tiny.version == 1


# Records


def test_a_record_that_is_no_record_is_passed_over(layout: Layout) -> None:
    folder = layout.run / "servers"
    folder.mkdir(parents=True)
    (folder / "half.json").write_text('{"id": "half", ')
    (folder / "other.json").write_text('{"format": "of another time"}')
    assert server_record.records(layout) == []
    assert server_record.running(layout) is None


def record_of(layout: Layout, **facts: Any) -> ServerRecord:
    """The record of a server that was started under a root."""
    started: dict[str, Any] = {
        "id": "0123456789ab",
        "role": "serve",
        "installation": "Triton",
        "host": "127.0.0.1",
        "http": 1,
        "grpc": 2,
        "metrics": 3,
        "repository": "",
        "log": "",
        "folder": str(layout.root),
        "where": server_record.here(),
    }
    record = ServerRecord(**{**started, **facts})
    server_record.write(layout, record)
    assert server_record.records(layout) == [record]
    return record


def test_a_process_id_that_came_again_is_not_our_server(layout: Layout) -> None:
    with subprocess.Popen(["sleep", "60"]) as another:
        record = record_of(layout, pid=another.pid)
        assert server_record.running(layout) is None
        assert server_record.clear_leftovers(layout) == [record]
        assert another.poll() is None
        another.kill()
    assert server_record.records(layout) == []


def test_a_server_of_another_host_is_left_alone(layout: Layout) -> None:
    record = record_of(layout, where="elsewhere pid:[1]", pid=1)
    assert server_record.running(layout) is None
    assert server_record.clear_leftovers(layout) == []
    assert server_record.records(layout) == [record]


def test_only_the_memory_of_a_server_of_ours_is_cleared(layout: Layout) -> None:
    record_of(layout)
    ours = SHARED_MEMORY / "slipway_0123456789ab_region"
    others = SHARED_MEMORY / "slipway_0123456789ac_region"
    ours.touch()
    others.touch()
    try:
        server_record.clear_leftovers(layout)
        assert not ours.exists()
        assert others.exists()
    finally:
        others.unlink()


# Servers that can do less


def test_a_server_that_listens_everywhere_is_started_only_when_told_so(
    layout: Layout, installation: ServerInstallation
) -> None:
    everywhere = replace(installation, addresses=False)
    with pytest.raises(UsageError, match="cannot be told the address to listen on") as caught:
        server.start(layout, everywhere, FREE, role="temporary", bound=True)
    assert "--host 0.0.0.0" in caught.value.fix
    assert server_record.records(layout) == []


def test_a_server_is_given_only_options_that_it_has(
    layout: Layout, installation: ServerInstallation
) -> None:
    record = ServerRecord(
        id="a",
        role="serve",
        installation="x",
        host="127.0.0.1",
        http=1,
        grpc=2,
        metrics=3,
        repository=str(layout.models),
        log="",
        folder=str(layout.root),
        where="",
    )
    agents = installation.backends.parent / "repoagents"
    small = replace(installation, addresses=False, grpc=False, agents=agents)
    line = " ".join(server.command(small, record))
    assert "--http-port=1" in line
    assert "address" not in line
    assert "grpc" not in line
    assert server._ports(ServeOptions(http=0, grpc=1, metrics=0), grpc=False).grpc == 0
    assert "--repoagent-directory=" in line
    whole = " ".join(server.command(installation, record))
    assert whole.count("-address=127.0.0.1") == 3
    assert "--grpc-port=2" in whole
