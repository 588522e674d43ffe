"""The smoke test: prove that what is served is right, and write a report of it."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from tritonclient.utils import InferenceServerException

from pipeline import server, server_record, smoke_checks
from pipeline.client import TritonClient
from pipeline.deploy import DeployRequest, deploy
from pipeline.images import read_image
from pipeline.manifest import Manifest
from pipeline.preprocess import Preprocessing
from pipeline.report import write_report
from pipeline.repository import Repository
from pipeline.serve import load_new_version
from pipeline.smoke_result import Model, Photo, Server, SmokeResult
from pipeline.subjects import Picture, gather
from pipeline.weights import WeightsSpec
from provision.console import console, say, warn
from provision.cores import available_cores
from provision.errors import ServerUnreachableError, SmokeError, UsageError, storage_error
from provision.layout import Layout
from provision.servers import Which, server_installation

_MARKS = {"passed": ("✓", "green"), "failed": ("✗", "red"), "skipped": ("-", "yellow")}
_LIBRARIES = ("tritonclient", "numpy", "pillow")


@dataclass(frozen=True)
class SmokeRequest:
    """What to test.

    Attributes:
        model: The model's name on the server.
        url: ``HOST:PORT`` of a server; None for ours.
        images: Photos of the user's, besides the sample photos.
        expected: The label that each of `images` must get; empty, or one each.
        report: The folder for the report.
        command: How this test was started, for the report.
        which: The server to test, if it has to be a certain one.
    """

    model: str
    url: str | None = None
    images: tuple[Path, ...] = ()
    expected: tuple[str, ...] = ()
    report: Path = Path("report")
    command: str = "nox -s smoke"
    which: Which | None = None


def smoke(layout: Layout, request: SmokeRequest) -> SmokeResult:
    """Run every check against a server, print the outcome and write the report.

    Raises:
        SmokeError: A check failed; the report says which and why.
        ServerUnreachableError: No server answers at the URL.
        ImageError: One of the user's images cannot be read.
    """
    if request.expected and len(request.expected) != len(request.images):
        raise UsageError(
            f"there are {len(request.images)} images and {len(request.expected)} expected labels",
            fix="give --expect once for each --image, or not at all",
        )
    if request.url is not None and request.which:
        raise UsageError("both a server and an address are named", fix="give --server or --url")
    started = datetime.datetime.now(datetime.timezone.utc)
    begun = time.monotonic()
    # First, for a file that is no image should not cost a deploy.
    expected = request.expected or ("",) * len(request.images)
    pictures = [
        Picture(path, read_image(path), label)
        for path, label in zip(request.images, expected, strict=True)
    ]
    manifest = _manifest(layout, request)
    with _server(layout, request) as (url, chosen, exclusive):
        say(f"server {url}: {chosen}")
        with TritonClient(url, concurrency=smoke_checks.CONCURRENCY) as client:
            if not client.live():
                raise ServerUnreachableError(
                    f"no Triton server answers at {url}",
                    fix="start one (`nox -s serve`), or name another with `--url HOST:PORT`",
                )
            preprocessing = _preprocessing(client, request.model, manifest)
            run = smoke_checks.Run(
                client=client,
                model=request.model,
                manifest=manifest,
                layout=layout,
                subjects=gather(layout.models, manifest, preprocessing, pictures),
                exclusive=exclusive,
                told=_tell,
            )
            run.all()
            about = client.server() if client.live() else {}
    result = SmokeResult(
        time=started,
        duration_s=time.monotonic() - begun,
        command=request.command,
        server=Server(
            url=url,
            version=about.get("version", ""),
            name=about.get("name", ""),
            chosen=chosen,
            extensions=tuple(about.get("extensions", ())),
        ),
        model=_model(request.model, manifest),
        checks=tuple(run.checks),
        photos=tuple(run.photos),
        latency=run.latency,
        environment=_environment(),
        manifest=manifest.to_json() if manifest else None,
    )
    _print_photos(result.photos)
    if manifest and manifest.weights["note"]:
        warn(f"{manifest.weights['note']} (deployed {manifest.created})")
        if manifest.weights["kind"] == "random":
            say(f"`nox -s deploy -- {manifest.architecture}` deploys it with pretrained weights")
    _write_report(result, request.report)
    if result.verdict == "failed":
        failed = "; ".join(f"{check.name}: {check.detail}" for check in result.failures)
        again = f"; `{manifest.redeploy}` makes the version anew" if manifest else ""
        raise SmokeError(
            f"{result.summary} {failed or 'no check ran'}",
            fix=f"read {request.report / 'smoke.html'}{again}",
        )
    say(result.summary, style="bold green")
    return result


def _write_report(result: SmokeResult, folder: Path) -> None:
    try:
        _, page = write_report(result, folder)
    except OSError as error:
        storage = storage_error(error, folder)
        if storage is None:
            raise
        say(result.summary)
        storage.fix = "give another folder for the report: `--report FOLDER`"
        raise storage from None
    say(f"report: {page.resolve()}")


def _manifest(layout: Layout, request: SmokeRequest) -> Manifest | None:
    """The manifest of the model under test; ours is deployed first where it is missing."""
    repository = Repository(layout)
    manifest = repository.latest(request.model)
    if manifest or request.url is not None:
        return manifest
    say(f"{request.model} is not deployed yet, so it is deployed first")
    wanted = DeployRequest(architecture=request.model, weights=WeightsSpec.parse("auto"))
    deployed = deploy(layout, wanted)
    if deployed.changed:
        load_new_version(layout, deployed.manifest)
    return deployed.manifest


@contextlib.contextmanager
def _server(layout: Layout, request: SmokeRequest) -> Iterator[tuple[str, str, bool]]:
    """The URL of the server to ask, why that one, and whether nobody else asks it."""
    if request.url is not None:
        yield request.url, "named with --url", False
        return
    record = server_record.awaited(layout)
    plans = Repository(layout).plans()
    installation = (
        None
        if record and not request.which
        else server_installation(layout, request.which, plans=plans)
    )
    if record and (installation is None or record.installation == installation.name):
        yield record.url, "ours, which runs already", False
        return
    assert installation  # noqa: S101 - it is None only where a server runs
    other = f"{record.installation} runs" if record else "none runs"
    with server.temporary(layout, installation) as started:
        yield started.url, f"started for this test, since none was named and {other}", True


def _preprocessing(client: TritonClient, model: str, manifest: Manifest | None) -> Preprocessing:
    """What the manifest says, or the usual at the size that the server takes."""
    if manifest:
        return Preprocessing.from_json(manifest.preprocessing)
    try:
        side = int(client.metadata(model)["inputs"][0]["shape"][-1])
    except (InferenceServerException, LookupError, ValueError):
        side = 0  # the checks will say what is wrong
    return Preprocessing.usual(side) if side > 0 else Preprocessing.usual()


def _model(name: str, manifest: Manifest | None) -> Model:
    if manifest is None:
        return Model(
            name=name,
            note="The model was not deployed from here: there is no manifest and no reference.",
        )
    return Model(
        name=manifest.model,
        version=str(manifest.version),
        weights=manifest.weights["spec"],
        weights_kind=manifest.weights["kind"],
        note=manifest.weights["note"],
        engine=manifest.engine["name"],
        engine_reason=manifest.engine["reason"],
        precision=manifest.engine["precision"],
    )


def _environment() -> dict[str, str]:
    return {
        "operating system": _os_name(),
        "kernel": platform.release(),
        "processor": _processor(),
        "cores": str(available_cores()),
        "Python": platform.python_version(),
        **{library: importlib.metadata.version(library) for library in _LIBRARIES},
    }


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _tell(name: str, status: str, detail: str) -> None:
    mark, style = _MARKS[status]
    console.print(f"[{style}]{mark}[/] ", end="")
    say(f"{name}: {detail}" if detail else name)


def _print_photos(photos: tuple[Photo, ...]) -> None:
    table = Table(title="Top 5", title_justify="left", box=None, pad_edge=False)
    for column in ("photo", "score", "class", "label", "max. error"):
        numeric = column in {"score", "class", "max. error"}
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for photo in photos:
        for rank, best in enumerate(photo.top5):
            error = "" if photo.max_abs_diff is None or rank else f"{photo.max_abs_diff:.1e}"
            name = "" if rank else photo.name
            table.add_row(name, f"{best.score:.4f}", str(best.index), best.label, error)
    console.print(table)
