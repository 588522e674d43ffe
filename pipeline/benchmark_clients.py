"""How quick the Python client's folder mode is, against a client that does one thing after another.

Both are timed from start to exit, in turns, on the same JPEGs and a model that computes nothing, so
that what differs is the client. With a real model, the server's statistics say whether the client
keeps it busy.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline import server
from pipeline.benchmark import deployed, refuse_a_running_server
from pipeline.benchmark_result import SCHEMA, Figure, show
from pipeline.client import TritonClient
from pipeline.measure import add_null_model
from pipeline.photos import sample_photos
from provision.console import say, step
from provision.cores import available_cores
from provision.embedded_server import embedded_server
from provision.errors import SmokeError
from provision.files import lock, write_atomically
from provision.layout import REPOSITORY, Layout

_REPORT = Path("report") / "benchmark-clients.json"
_SIZE = (1024, 768)
_QUALITY = 90
_SHARE = (0.4, 1.0)  # of a photo's width that a crop shows
_GRAIN = 4.0  # grey levels: what a camera's sensor adds, and JPEG has to keep
_WHOLE, _FAST, _BUSY = 1.7, 3.0, 0.95
_IN_SECONDS = re.compile(r" files in ([\d.]+) s")
_PARTS = ("compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        photos: How many JPEGs are sent to the null model.
        rounds: How often, by each client in turns.
        real: How many of them are sent to the real model.
    """

    photos: int
    rounds: int
    real: int


QUICK = Effort(photos=1000, rounds=1, real=100)
FULL = Effort(photos=1000, rounds=5, real=500)


def main(arguments: list[str]) -> int:
    """`nox -s benchmark -- clients`."""
    options = _parser().parse_args(arguments)
    benchmark(
        Layout.from_environment(), model=options.model, effort=QUICK if options.quick else FULL
    )
    return 0


def benchmark(layout: Layout, *, model: str, effort: Effort) -> None:
    """Measure, print a table of the figures against their targets, and write the report.

    Raises:
        RepositoryError: The model is not deployed.
        BusyError: A server of ours runs, or another benchmark.
        SmokeError: A client failed.
    """
    started = datetime.datetime.now(datetime.timezone.utc)
    manifest = deployed(layout, model)
    refuse_a_running_server(layout)
    work = layout.transit / "benchmark-clients"
    with lock(layout.run / "benchmark.lock", holder="benchmark"), _emptied(work):
        photos = work / "photos"
        write_photos(photos, effort.photos)
        null = add_null_model(work / "models")
        (work / "models" / model).symlink_to(layout.models / model)
        installation = embedded_server(layout)
        with server.temporary(layout, installation, repository=work / "models") as target:
            bench = _Bench(layout, target.url, photos, work)
            figures = bench.against(null, effort.rounds)
            figures += (bench.busy(model, effort.real),)
            # Random weights rank by differences that any rounding turns round.
            meant = manifest.weights["kind"] != "random"
            equal = bench.top1(model, effort.real) if meant else None
    show(figures)
    for figure in figures:
        say(f"{figure.name}: {figure.note}")
    if equal is not None:
        say(f"--fast-decode leaves the first class of {equal} of {effort.real} photos as it is")
    report = {
        "schema": SCHEMA,
        "time": started.isoformat(timespec="seconds"),
        "cores": available_cores(),
        "photos": {"count": effort.photos, "size": _SIZE, "quality": _QUALITY},
        "model": {"name": model, "version": manifest.version, "weights": manifest.weights["kind"]},
        "fast_decode_same_top1": {"photos": effort.real, "same": equal},
        "figures": [figure.to_json() for figure in figures],
    }
    write_atomically(_REPORT.absolute(), json.dumps(report, indent=2) + "\n")
    say(f"report: {_REPORT.absolute()}")


def write_photos(folder: Path, count: int) -> None:
    """Write JPEGs: seeded crops of the sample photos, enlarged, with a camera's grain.

    Args:
        folder: Where to, made anew.
        count: How many.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with step(f"{count} JPEGs of {_SIZE[0]}x{_SIZE[1]}") as writing:
        photos = [Image.open(photo.path).convert("RGB") for photo in sample_photos()]
        for number in range(count):
            photo = photos[number % len(photos)]
            width = rng.uniform(*_SHARE) * min(photo.width, photo.height * _SIZE[0] / _SIZE[1])
            height = width * _SIZE[1] / _SIZE[0]
            left, top = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - height)
            box = (left, top, left + width, top + height)
            crop = np.asarray(photo.resize(_SIZE, Image.Resampling.BICUBIC, box), np.float32)
            grain = rng.normal(0, _GRAIN, (_SIZE[1], _SIZE[0], 1))
            pixels = (crop + grain).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:05}.jpg", quality=_QUALITY)
            writing.progress(f"{number + 1}")
        size = statistics.mean(path.stat().st_size for path in folder.iterdir())
        writing.detail = f"{size / 1024:.0f} KiB each"


@contextlib.contextmanager
def _emptied(folder: Path) -> Iterator[None]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class _Bench:
    """What the measurements share."""

    layout: Layout
    url: str
    photos: Path
    work: Path
    _seconds: dict[str, list[float]] = field(default_factory=dict)

    def against(self, null: str, rounds: int) -> tuple[Figure, ...]:
        """The folder mode against the sequential client, in turns."""
        classify = ["pipeline", "classify", "-m", null, "-u", self.url, "-s", "INCEPTION"]
        alone = ["pipeline.sequential_client", self.url, null, "input", "output"]
        runs = {"one by one": alone, "folder": classify, "fast": [*classify, "--fast-decode"]}
        with step("The folder mode and a sequential client, in turns") as measuring:
            for turn in range(rounds):
                for name, arguments in runs.items():
                    measuring.progress(f"round {turn + 1} of {rounds}, {name}")
                    begun = time.perf_counter()
                    self._run(*arguments, str(self.photos))
                    self._seconds.setdefault(name, []).append(time.perf_counter() - begun)
            measuring.detail = ", ".join(self._rate(name) for name in runs)
        return (self._ratio("folder", _WHOLE), self._ratio("fast", _FAST))

    def busy(self, model: str, count: int) -> Figure:
        """The share of the time from the first file to the last answer that the server computes."""
        folder = self._some(count)
        with step(f"{count} photos for {model}"), TritonClient(self.url) as client:
            before = _computed(client.statistics(model))
            said = self._run("pipeline", "classify", "-m", model, "-u", self.url, str(folder))
            computed = _computed(client.statistics(model)) - before
        found = _IN_SECONDS.search(said.stderr)
        seconds = float(found[1]) if found else float("nan")
        return Figure(
            name=f"share of the time that {model} computes",
            unit="",
            target=_BUSY,
            at_least=True,
            samples=(computed / seconds,),
            note=f"{computed:.1f} s of {seconds:.1f} s, {count / seconds:.1f} images/s",
        )

    def top1(self, model: str, count: int) -> int:
        """How many photos get the same first class with ``--fast-decode``."""
        options = ["-m", model, "-u", self.url, "--json", str(self._some(count))]
        with step("The first class of each photo, with --fast-decode and without"):
            answers = [
                [json.loads(line)["classes"][0]["index"] for line in run.stdout.splitlines()]
                for run in (
                    self._run("pipeline", "classify", *options),
                    self._run("pipeline", "classify", "--fast-decode", *options),
                )
            ]
        return sum(whole == fast for whole, fast in zip(*answers, strict=True))

    def _some(self, count: int) -> Path:
        folder = self.work / "some"
        if not folder.is_dir():
            folder.mkdir()
            for path in sorted(self.photos.iterdir())[:count]:
                (folder / path.name).hardlink_to(path)
        return folder

    def _ratio(self, name: str, target: float) -> Figure:
        pairs = zip(self._seconds["one by one"], self._seconds[name], strict=True)
        what = "folder mode with --fast-decode" if name == "fast" else "folder mode"
        return Figure(
            name=f"{what} ÷ sequential client",
            unit="",
            target=target,
            at_least=True,
            samples=tuple(alone / ours for alone, ours in pairs),
            note=f"{self._rate(name)}, {self._rate('one by one')}, with start and exit",
        )

    def _rate(self, name: str) -> str:
        count = len(list(self.photos.iterdir()))
        return f"{name} {count / statistics.median(self._seconds[name]):.0f} images/s"

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=REPOSITORY,
            env={**os.environ, "SLIPWAY_ROOT": str(self.layout.root)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise SmokeError(
                f"`python -m {' '.join(arguments)}` failed (exit {done.returncode}): {last}",
                fix="put right what it names, then measure again",
            )
        return done


def _computed(found: dict[str, Any]) -> float:
    """How many seconds a model's executions have taken.

    https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md
    """
    batches = [b for entry in found["model_stats"] for b in entry.get("batch_stats", ())]
    nanoseconds = sum(int(batch[part].get("ns", 0)) for batch in batches for part in _PARTS)
    return nanoseconds / 1e9


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline benchmark clients",
        description="Measure the folder mode of `classify` against a client that does one thing "
        "after another, as the recipe's, with a model that computes nothing; and how busy it keeps "
        "a real one.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one round, and fewer photos for the model"
    )
    parser.add_argument("--model", default="resnet50", metavar="NAME", help="default: %(default)s")
    return parser
