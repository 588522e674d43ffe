"""The smoke test: prove that what is served is right, and write a report of it."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from pipeline import photos as samples
from pipeline import server, server_record, smoke_checks
from pipeline.client import TritonClient
from pipeline.deploy import DeployRequest, deploy
from pipeline.images import read_image
from pipeline.manifest import Manifest
from pipeline.preprocess import Preprocessing, preprocess
from pipeline.report import write_report
from pipeline.repository import Repository
from pipeline.serve import load_new_version
from pipeline.smoke_result import Model, Photo, Server, SmokeResult
from pipeline.weights import WeightsSpec
from provision.console import console, say, warn
from provision.embedded_server import embedded_server
from provision.errors import ServerUnreachableError, SmokeError, UsageError
from provision.files import sha256
from provision.layout import Layout

_MARKS = {"passed": ("✓", "green"), "failed": ("✗", "red"), "skipped": ("-", "yellow")}
# What nearly every classifier was trained with, for a model that we have no manifest of.
_IMAGENET = Preprocessing(256, 224, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
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
    """

    model: str
    url: str | None = None
    images: tuple[Path, ...] = ()
    expected: tuple[str, ...] = ()
    report: Path = Path("report")
    command: str = "nox -s smoke"


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
    started = datetime.datetime.now(datetime.timezone.utc)
    begun = time.monotonic()
    manifest = _manifest(layout, request)
    subjects = _subjects(layout, request, manifest)
    with _server(layout, request) as (url, chosen, exclusive):
        say(f"server {url}: {chosen}")
        with TritonClient(url, concurrency=smoke_checks.CONCURRENCY) as client:
            if not client.live():
                raise ServerUnreachableError(
                    f"no Triton server answers at {url}",
                    fix="start one (`nox -s serve`), or name another with `--url HOST:PORT`",
                )
            run = smoke_checks.Run(
                client=client,
                model=request.model,
                manifest=manifest,
                subjects=subjects,
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
    _, page = write_report(result, request.report)
    say(f"report: {page.resolve()}")
    if manifest and manifest.weights["note"]:
        warn(manifest.weights["note"])
    if result.verdict == "failed":
        failed = "; ".join(f"{check.name}: {check.detail}" for check in result.failures)
        raise SmokeError(
            f"{result.summary} {failed or 'no check ran'}",
            fix=f"read {page}; `nox -s deploy -- {request.model} --force` makes the version anew",
        )
    say(result.summary, style="bold green")
    return result


def _manifest(layout: Layout, request: SmokeRequest) -> Manifest | None:
    """The manifest of the model under test; ours is deployed first where it is missing."""
    repository = Repository(layout)
    manifest = repository.latest(request.model)
    if manifest or request.url:
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
    record = server_record.running(layout)
    if request.url:
        yield request.url, "named with --url", False
    elif record:
        yield record.url, "ours, which runs already", False
    else:
        with server.temporary(layout, embedded_server(layout)) as started:
            yield started.url, "started for this test, since none was named and none runs", True


def _subjects(
    layout: Layout, request: SmokeRequest, manifest: Manifest | None
) -> list[smoke_checks.Subject]:
    """The photos to send: the samples with their references, then the user's."""
    preprocessing = Preprocessing.from_json(manifest.preprocessing) if manifest else _IMAGENET
    references = {}
    if manifest:
        folder = layout.models / manifest.model / str(manifest.version)
        with np.load(folder / "reference.npz", allow_pickle=False) as stored:
            references = {name: stored[name] for name in stored.files}
    subjects = []
    for photo in samples.sample_photos():
        known = manifest is not None and manifest.photos.get(photo.name) == sha256(photo.path)
        subjects.append(
            smoke_checks.Subject(
                name=photo.name,
                path=photo.path,
                credit=photo.credit,
                accepted=photo.accepted if manifest and manifest.pretrained else (),
                tensor=preprocess(read_image(photo.path), preprocessing),
                reference=references.get(photo.name) if known else None,
            )
        )
    expected = request.expected or ("",) * len(request.images)
    for path, label in zip(request.images, expected, strict=True):
        subjects.append(
            smoke_checks.Subject(
                name=path.stem,
                path=path,
                credit="",
                accepted=(label.upper(),) if label else (),
                tensor=preprocess(read_image(path), preprocessing),
                reference=None,
            )
        )
    return subjects


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
    )


def _environment() -> dict[str, str]:
    return {
        "operating system": _os_name(),
        "kernel": platform.release(),
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
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
