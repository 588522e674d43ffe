"""The jobs around the server: serve, status, stop, and taking a new version live."""

from __future__ import annotations

import time
from pathlib import Path

from rich.table import Table

from pipeline import server, server_record
from pipeline.client import TritonClient
from pipeline.manifest import Manifest
from pipeline.repository import Repository
from provision.console import console, say, step
from provision.errors import (
    ModelLoadError,
    NotRunningError,
    RepositoryError,
    ServerStartError,
    SlipwayError,
)
from provision.layout import Layout
from provision.processes import last_lines
from provision.servers import Which, server_installation

_WATCH_SECONDS = 0.2
_LOADING_SECONDS = 180


def serve(
    layout: Layout, options: server.ServeOptions, *, detach: bool, which: Which | None = None
) -> None:
    """Start the server on what is deployed; stay with it until Ctrl-C unless detached.

    Raises:
        RepositoryError: Nothing is deployed.
        ServerStartError: It did not start, or died.
    """
    if not Repository(layout).models():
        raise RepositoryError(
            f"nothing is deployed in {layout.models}",
            fix="deploy a model first: `nox -s deploy_resnet50`",
        )
    # Before the installation is looked at, which may have to be made anew, under that server.
    server.refuse_second(layout)
    plans = Repository(layout).plans()
    installation = server_installation(layout, which, plans=plans)
    record = server.start(layout, installation, options, role="serve", bound=not detach)
    if detach:
        _show(record)
        say("in the background; `nox -s stop` ends it")
        return
    try:
        _show(record)
        say("Ctrl-C ends it")
        while record.process():
            time.sleep(_WATCH_SECONDS)
        # Whoever stops it says so in its record first, and removes the record last.
        known = {known.id: known for known in server_record.records(layout)}
    except KeyboardInterrupt:
        with step("Stop the server"):
            server.stop(layout, record)
        return
    finally:
        server.stop(layout, record)
    if record.id in known and not known[record.id].stopping:
        raise ServerStartError(
            f"the server ended by itself; its last words:\n{last_lines(Path(record.log))}",
            fix="read the log, then start it again",
            log=Path(record.log),
        )
    say("stopped by `nox -s stop`")


def status(layout: Layout) -> None:
    """Show what is deployed and what the server says of it.

    Raises:
        NotRunningError: No server of ours runs.
    """
    record = server_record.running(layout)
    states: dict[str, list[str]] = {}
    if record:
        _show(record)
        with TritonClient(record.url) as client:
            for entry in client.repository():
                if entry.get("reason") != "unloaded":
                    served = f"version {entry.get('version', '?')}, {_state(entry)}"
                    states.setdefault(entry["name"], []).append(served)
    table = Table(box=None, pad_edge=False)
    for column in ("model", "deployed", "weights", "engine", "served"):
        table.add_column(column, overflow="fold")
    repository = Repository(layout)
    for model in repository.models():
        try:
            manifest = repository.latest(model)
        except SlipwayError as error:
            table.add_row(model, "?", error.what, "", "")
            continue
        assert manifest is not None  # noqa: S101 - models() lists those with a version
        served = "\n".join(states.get(model, ["no"] if record else []))
        table.add_row(
            model,
            f"version {manifest.version}",
            manifest.weights["spec"],
            manifest.engine["name"],
            served,
        )
    if table.row_count:
        console.print(table)
    else:
        say(f"nothing is deployed in {layout.models}")
    if record is None:
        raise NotRunningError("no server of ours is running", fix="start one: `nox -s serve`")


def stop_all(layout: Layout) -> None:
    """End the server of ``nox -s serve``, and clear up after crashed ones."""
    record = server_record.running(layout)
    if record:
        with step(f"Stop the server at {record.url} (process {record.pid})"):
            server.stop(layout, record)
    cleared = server_record.clear_leftovers(layout)
    for dead in cleared:
        say(f"cleared up after a server that had ended by itself (process {dead.pid})")
    if not record and not cleared:
        say("no server of ours is running")


def load_new_version(layout: Layout, manifest: Manifest) -> None:
    """Have the running server, if there is one, serve a version that was just deployed.

    Raises:
        ModelLoadError: It refuses, and goes on with what it served before.
    """
    record = server_record.awaited(layout)
    if record is None:
        return
    with (
        step(f"{record.url} takes up {manifest.model} version {manifest.version}"),
        TritonClient(record.url) as client,
    ):
        deadline = time.monotonic() + _LOADING_SECONDS
        while time.monotonic() < deadline:
            entries = {
                entry.get("version"): entry
                for entry in client.repository()
                if entry["name"] == manifest.model
            }
            entry = entries.get(str(manifest.version), {})
            if entry.get("state") == "READY":
                return
            if entry.get("state") == "UNAVAILABLE" and entry.get("reason") != "unloaded":
                raise _not_loaded(record, manifest, _state(entry))
            time.sleep(_WATCH_SECONDS)
        raise _not_loaded(record, manifest, f"it was not there after {_LOADING_SECONDS} s")


def _not_loaded(
    record: server_record.ServerRecord, manifest: Manifest, reason: str
) -> ModelLoadError:
    return ModelLoadError(
        f"the server at {record.url} cannot load {manifest.model} version {manifest.version}, and "
        f"serves what it served before: {reason}",
        fix=f"read the log, then deploy again: `{manifest.redeploy}`",
        log=Path(record.log),
    )


def _state(entry: dict[str, str]) -> str:
    state = entry.get("state", "not loaded")
    reason, _, _ = entry.get("reason", "").partition("\n\nAt:")  # a traceback follows
    return f"{state} ({reason})" if reason else state


def _show(record: server_record.ServerRecord) -> None:
    say(f"{record.installation}, process {record.pid}")
    say(f"HTTP     http://{record.url}")
    if record.grpc:
        say(f"gRPC     {record.host}:{record.grpc}")
    say(f"metrics  http://{record.host}:{record.metrics}/metrics")
    say(f"log      {record.log}")
