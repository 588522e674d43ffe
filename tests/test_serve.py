"""``serve``, ``status`` and ``stop``, as a user runs them: on the real server, by exit code."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers import (
    FREE_PORTS,
    SHARED_MEMORY,
    Slipway,
    deploy_tiny,
    detached,
    left_behind,
    logits,
    own_root,
    photo_tensors,
)

from pipeline import server_record
from pipeline.client import TritonClient
from pipeline.manifest import Manifest
from pipeline.serve import load_new_version
from pipeline.server_record import ServerRecord
from provision.errors import ModelLoadError
from provision.layout import REPOSITORY, Layout


def eventually(what: Callable[[], bool], *, within: float = 30) -> bool:
    """Whether something comes true in time."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if what():
            return True
        time.sleep(0.05)
    return False


def started(layout: Layout, process: subprocess.Popen[str]) -> ServerRecord:
    """The server of a ``serve`` in the foreground, once it is ready."""
    assert process.stdout
    for line in process.stdout:
        if line.startswith("Ctrl-C"):
            break
    record = server_record.running(layout)
    assert record, process.communicate()
    return record


def crash(record: ServerRecord) -> list[psutil.Process]:
    """Kill a server outright; the stubs that it leaves."""
    stubs = [p for p in psutil.Process(record.pid).children() if "stub" in p.name()]
    assert stubs
    psutil.Process(record.pid).kill()
    assert eventually(lambda: record.process() is None)
    return stubs


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that run; one that nobody has waited for does not."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.fixture(scope="module")
def other(
    tmp_path_factory: pytest.TempPathFactory, host: Layout
) -> Iterator[tuple[Layout, ServerRecord]]:
    """A server of another root, in the background."""
    layout = own_root(tmp_path_factory.mktemp("other"), host)
    deploy_tiny(layout)
    with detached(layout) as (_, record):
        yield layout, record


# In the background


def test_serve_status_stop(slipway: Slipway, layout: Layout, tiny: Manifest) -> None:
    result = slipway("serve", "--detach", *FREE_PORTS)
    assert result.returncode == 0, result.stderr
    record = server_record.running(layout)
    assert record
    for line in (
        f"HTTP     http://{record.url}",
        f"log      {record.log}",
        "`nox -s stop` ends it",
    ):
        assert line in result.stdout
    assert result.stderr == ""

    result = slipway("status")
    assert result.returncode == 0
    assert f"process {record.pid}" in result.stdout
    assert result.stdout.splitlines()[-1].split() == (
        f"{tiny.model} version 1 random onnxruntime version 1, READY".split()
    )

    result = slipway("serve", *FREE_PORTS)
    assert result.returncode == 14
    assert f"a server runs already, at {record.url} (process {record.pid})" in result.stderr

    result = slipway("stop")
    assert result.returncode == 0
    assert f"Stop the server at {record.url}" in result.stdout
    assert "Exit timeout expired" not in Path(record.log).read_text()
    assert left_behind(layout) == []

    result = slipway("stop")
    assert (result.returncode, result.stdout) == (0, "no server of ours is running\n")

    result = slipway("status")
    assert result.returncode == 3
    assert "version 1" in result.stdout
    assert result.stderr.splitlines() == [
        "error: no server of ours is running",
        "fix: start one: `nox -s serve`",
    ]


def test_nothing_deployed(slipway: Slipway, layout: Layout) -> None:
    result = slipway("serve")
    assert result.returncode == 24
    assert f"nothing is deployed in {layout.models}" in result.stderr
    assert "nox -s deploy_resnet50" in result.stderr
    assert slipway("status").returncode == 3
    assert slipway("stop").returncode == 0


def test_port_in_use(slipway: Slipway, layout: Layout, tiny: Manifest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        result = slipway("serve", "--http-port", str(port))
    assert result.returncode == 31
    me = psutil.Process()
    assert f"port {port} (http) is taken by process {me.pid} ({me.name()})" in result.stderr
    assert "`--http-port`" in result.stderr
    assert left_behind(layout) == []
    assert tiny.version == 1


def test_full_shared_memory(layout: Layout, tiny: Manifest) -> None:
    alone = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no user namespaces here, so /dev/shm cannot be made small")
    small = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"'
    serve = [sys.executable, "-m", "pipeline", "serve", *FREE_PORTS]
    result = subprocess.run(
        [*alone, "sh", "-c", small, "sh", *serve],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 33
    assert f"cannot load {tiny.model} version 1: " in result.stderr
    assert "fix: make room in /dev/shm" in result.stderr
    assert left_behind(layout) == []


# A crash


@pytest.mark.parametrize("job", ["stop", "serve"])
def test_what_a_crashed_server_left_is_cleared_and_nothing_else(
    slipway: Slipway,
    layout: Layout,
    tiny: Manifest,
    other: tuple[Layout, ServerRecord],
    job: str,
) -> None:
    assert slipway("serve", "--detach", *FREE_PORTS).returncode == 0
    record = server_record.running(layout)
    assert record
    stubs = crash(record)
    regions = list(SHARED_MEMORY.glob(f"{record.shared_memory_prefix}*"))
    assert regions
    foreign = SHARED_MEMORY / "slipway_000000000000_of_another"
    foreign.touch()
    try:
        result = slipway("status")
        assert result.returncode == 3, "it has crashed"

        result = slipway(job, *(("--detach", *FREE_PORTS) if job == "serve" else ()))
        assert result.returncode == 0, result.stderr
        assert not any(region.exists() for region in regions)
        assert alive(stubs) == []
        assert foreign.exists()
    finally:
        foreign.unlink()
    if job == "stop":
        cleared = f"cleared up after a server that had ended by itself (process {record.pid})"
        assert result.stdout == f"{cleared}\n"
        assert left_behind(layout) == []
    _, neighbour = other
    assert neighbour.process()
    with TritonClient(neighbour.url) as client:
        assert client.model_ready(tiny.model), "the server of another root goes on"


# In the foreground


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_foreground_server_ends_in_order(
    slipway: Slipway, layout: Layout, tiny: Manifest, asked: signal.Signals
) -> None:
    process = slipway.start("serve", *FREE_PORTS)
    record = started(layout, process)
    process.send_signal(asked)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "✓ Stop the server" in out
    assert f"successfully unloaded '{tiny.model}'" in Path(record.log).read_text()
    assert left_behind(layout) == []


def test_a_second_ctrl_c_is_not_in_order_and_leaves_nothing_either(
    slipway: Slipway, layout: Layout, tiny: Manifest
) -> None:
    process = slipway.start("serve", *FREE_PORTS)
    record = started(layout, process)
    # With a request under way the server waits for it.
    with socket.create_connection((record.host, record.http)) as busy:
        busy.sendall(b"POST /v2/models/tiny/infer HTTP/1.1\r\nContent-Length: 9\r\n\r\n")
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert eventually(lambda: "Signal (15)" in Path(record.log).read_text())
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=8)
    assert (process.returncode, err) == (130, "interrupted\n")
    assert left_behind(layout) == []
    assert tiny.version == 1


def test_killed_foreground_takes_its_server_along(
    slipway: Slipway, layout: Layout, tiny: Manifest
) -> None:
    process = slipway.start("serve", *FREE_PORTS)
    record = started(layout, process)
    stubs = psutil.Process(record.pid).children()
    process.kill()
    process.communicate()
    assert eventually(lambda: not record.process() and not alive(stubs))
    assert slipway("stop").returncode == 0
    assert left_behind(layout) == []
    assert tiny.version == 1


def test_interrupted_start(slipway: Slipway, layout: Layout, tiny: Manifest) -> None:
    process = slipway.start("serve", *FREE_PORTS)
    assert eventually(lambda: server_record.running(layout) is not None)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "interrupted\n")
    assert left_behind(layout) == []
    assert tiny.version == 1


def test_stopped_from_another_terminal(slipway: Slipway, layout: Layout, tiny: Manifest) -> None:
    process = slipway.start("serve", *FREE_PORTS)
    record = started(layout, process)
    assert slipway("stop").returncode == 0
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert out.splitlines()[-1] == "stopped by `nox -s stop`"
    assert not record.process()
    assert left_behind(layout) == []
    assert tiny.version == 1


def test_a_foreground_server_that_crashes(slipway: Slipway, layout: Layout, tiny: Manifest) -> None:
    process = slipway.start("serve", *FREE_PORTS)
    record = started(layout, process)
    crash(record)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 30
    first, *words = err.splitlines()
    assert first == "error: the server ended by itself; its last words:"
    assert "Started Metrics Service" in "".join(words)
    assert words[-1] == f"log: {record.log}"
    assert left_behind(layout) == []
    assert tiny.version == 1


def test_nobody_reads_what_serve_prints(slipway: Slipway, layout: Layout, tiny: Manifest) -> None:
    process = slipway.start("serve", *FREE_PORTS)
    assert process.stdout
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=60)
    assert process.returncode not in (0, 70)
    assert "Traceback" not in err
    assert left_behind(layout) == []
    assert tiny.version == 1


# A new version while a server runs


def test_a_new_version_is_taken_live(other: tuple[Layout, ServerRecord]) -> None:
    layout, record = other
    image = photo_tensors()["coffee"][np.newaxis]
    manifest = deploy_tiny(layout, seed=1)
    load_new_version(layout, manifest)
    model = layout.models / "tiny" / str(manifest.version) / "model.onnx"
    with TritonClient(record.url) as client:
        assert client.metadata("tiny")["versions"] == [str(manifest.version)]
        assert np.array_equal(client.logits("tiny", image), logits(model, image))


def test_a_new_version_that_does_not_load_leaves_the_old_one_serving(
    other: tuple[Layout, ServerRecord],
) -> None:
    layout, record = other
    image = photo_tensors()["coffee"][np.newaxis]
    with TritonClient(record.url) as client:
        before = client.logits("tiny", image)
        sound = layout.models / "tiny"
        kept = shutil.copytree(sound, layout.root / "kept")
        manifest = deploy_tiny(layout, seed=2)
        broken = sound / str(manifest.version) / "model.onnx"
        broken.write_bytes(broken.read_bytes()[:1000])
        with pytest.raises(ModelLoadError) as raised:
            load_new_version(layout, manifest)
        assert f"cannot load tiny version {manifest.version}" in raised.value.what
        assert "serves what it served before" in raised.value.what
        assert np.array_equal(client.logits("tiny", image), before)
    shutil.rmtree(sound)
    kept.rename(sound)


def test_without_a_server_there_is_nothing_to_load_into(layout: Layout, tiny: Manifest) -> None:
    load_new_version(layout, tiny)
    assert left_behind(layout) == []
