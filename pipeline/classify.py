"""The Python image classification client (recipe step 5).

A folder goes through two crews of threads: one on all cores reads, decodes and preprocesses, the
other sends. Each takes up only so much more than was taken out of it, so that a folder of any size
takes the same memory.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from pipeline.answers import Answer, JsonLines, Lines
from pipeline.batches import Batch, Decoded, Picture, batches, decode
from pipeline.choose_scaling import choose
from pipeline.connection import Connection, Protocol
from pipeline.crew import Crew
from pipeline.image_model import ImageModel
from pipeline.images import Source, received
from pipeline.pace import Pace, pace
from pipeline.scaling import Name
from pipeline.shared_input import Region, regions
from provision.cores import available_cores
from provision.errors import ImageError, UsageError
from provision.layout import Layout

_RECIPES = {"http": "localhost:8000", "grpc": "localhost:8001"}
_DECODED_AHEAD = 2  # images for each core that decodes: one in work, one that waits
_NAMED = 5


@dataclass(frozen=True)
class ClassifyRequest:
    """What to classify, and how.

    Attributes:
        image: A file, a folder, or ``-`` for standard input.
        model: The model's name on the server.
        version: Its version; empty for the one that its policy serves.
        batch: How many images a request holds.
        classes: How many classes to show for each image.
        scaling: How pixels become values; None for the model's own, or else the recipe's NONE.
        url: ``HOST:PORT`` of the server; None for ours, or else the recipe's.
        protocol: What to speak with it.
        in_flight: How many requests may wait for their answers at once.
        json: Whether to print JSON lines.
        shared_memory: Whether inputs go through system shared memory.
        fast: Whether to decode JPEGs at a reduced size.
        verbose: Whether to say on standard error what is sent.
    """

    image: str
    model: str
    version: str = ""
    batch: int = 1
    classes: int = 1
    scaling: Name | None = None
    url: str | None = None
    protocol: Protocol = "http"
    in_flight: int = 1
    json: bool = False
    shared_memory: bool = False
    fast: bool = False
    verbose: bool = False


_Decoders: TypeAlias = "Crew[None, Source, Decoded]"
_Senders: TypeAlias = "Crew[Connection, Batch, Answer]"


def classify(layout: Layout, request: ClassifyRequest) -> None:
    """Classify a file, or every file of a folder, and print the answers to standard output.

    Raises:
        UsageError: The model is no image classifier, or takes no such batches.
        ServerUnreachableError: No server answers.
        ModelLoadError: The server does not serve the model.
        RefusedError: It refuses a request.
        ImageError: The file, or files of the folder, are not images; the others were classified.
    """
    sources, count, folder = _sources(request.image)
    url = request.url or _our_url(layout, request.protocol)
    with contextlib.ExitStack() as held:
        connection = held.enter_context(Connection(url, request.protocol))
        model = connection.model(request.model, request.version)
        model.check_batch(request.batch)
        scaler = choose(layout, model, request.version, request.scaling, fast=request.fast)
        free = None
        if request.shared_memory:
            size = request.batch * model.image.nbytes
            free = held.enter_context(regions(connection, request.in_flight, size))
        progress = held.enter_context(pace(count, folder=folder))
        tell = progress.say if request.verbose else _say_nothing
        if request.verbose:
            tell(f"{url} over {request.protocol}: Triton {connection.server()['version']}")
            tell(f"{model.name}: {model.input_name} {model.datatype} {model.image.shape}")
            tell(scaler.describe())
        sender = _Sender(request, model, free, tell)
        decoders: _Decoders = held.enter_context(
            Crew(
                min(available_cores(), count),
                contextlib.nullcontext,
                lambda _, source: decode(scaler, source),
            )
        )
        senders: _Senders = held.enter_context(
            Crew(request.in_flight, lambda: Connection(url, request.protocol), sender.send)
        )
        about = {"model": model.name, "version": _served(model, request), "scaling": scaler.name}
        out = JsonLines(sys.stdout, about) if request.json else Lines(sys.stdout)
        _Job(request, decoders, senders, out, progress).run(sources, folder=folder)


@dataclass
class _Job:
    """One pass over the files."""

    request: ClassifyRequest
    decoders: _Decoders
    senders: _Senders
    out: Lines | JsonLines
    pace: Pace

    def run(self, sources: Iterable[Source], *, folder: bool) -> None:
        bad: list[str] = []
        ahead = _DECODED_AHEAD * available_cores() + self.request.batch
        good = self._good(self.decoders.in_order(sources, ahead=ahead), bad, folder=folder)
        requests = batches(good, self.request.batch)
        for answer in self.senders.in_order(requests, ahead=self.request.in_flight):
            with _writing():
                self.out.answer(answer)
                sys.stdout.flush()
            self.pace.step(answer.fresh)
        if bad:
            raise _not_images(self.request.image, bad, self.pace.total)
        self.out.done()

    def _good(
        self, decoded: Iterable[Decoded], bad: list[str], *, folder: bool
    ) -> Iterator[Picture]:
        """Those that are images; the others are told of, and remembered by name."""
        for one in decoded:
            if isinstance(one, Picture):
                yield one
                continue
            if not folder:
                raise one.error
            bad.append(one.file)
            self.out.bad(one.file, one.error.what)
            self.pace.say(f"skipped: {one.error.what}")
            self.pace.step(1)


@dataclass(frozen=True)
class _Sender:
    """Sends requests, in whichever thread.

    Attributes:
        request: What was asked for.
        model: What is asked.
        free: The regions that no request is using; None to send inputs along.
        tell: Told what was sent.
    """

    request: ClassifyRequest
    model: ImageModel
    free: queue.SimpleQueue[Region] | None
    tell: Callable[[str], None]

    def send(self, connection: Connection, batch: Batch) -> Answer:
        """Send a request and wait for its answer."""
        begun = time.perf_counter()
        tensors = [image.tensor for image in batch.images]
        images = np.stack(tensors) if len(tensors) > 1 else tensors[0][np.newaxis]
        if not self.model.max_batch_size:
            images = images[0]
        if self.free is None:
            rows = self._ask(connection, batch, connection.tensor(self.model, images))
        else:
            region = self.free.get()
            try:
                region.put(images)
                tensor = connection.shared(self.model, images.shape, region.name, images.nbytes)
                rows = self._ask(connection, batch, tensor)
            finally:
                self.free.put(region)
        passed = (time.perf_counter() - begun) * 1000
        self.tell(f"request {batch.number}: {images.shape}, {images.nbytes} bytes, {passed:.1f} ms")
        return Answer(batch.number, [image.file for image in batch.images], rows, batch.fresh)

    def _ask(self, connection: Connection, batch: Batch, tensor: object) -> list[list[str]]:
        return connection.classify(
            self.model,
            tensor,
            classes=self.request.classes,
            version=self.request.version,
            number=batch.number,
        )


def _sources(image: str) -> tuple[Iterable[Source], int, bool]:
    """The files to read, by name, how many they are, and whether they are a folder's.

    As in the recipe these are the files right in it; hidden ones are nobody's photos.
    """
    if not Path(image).is_dir():
        return [received(image)], 1, False
    with os.scandir(image) as entries:
        names = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_file())
    if not names:
        raise UsageError(f"there is no file in the folder {image}", fix="name another folder")
    # A path takes several times the memory of a name, so each is made when its turn comes.
    return (Path(image, name) for name in names), len(names), True


def _our_url(layout: Layout, protocol: Protocol) -> str:
    """Where our server listens, or else the recipe's address."""
    from pipeline import server_record  # which takes its time, and only here has a use

    record = server_record.running(layout)
    if record is None:
        return _RECIPES[protocol]
    if protocol == "http":
        return record.url
    if not record.grpc:
        raise UsageError(
            f"the server at {record.url} was built without gRPC", fix="leave out `-i grpc`"
        )
    return f"{record.url.rpartition(':')[0]}:{record.grpc}"


def _served(model: ImageModel, request: ClassifyRequest) -> str:
    return request.version or max(model.versions, key=int, default="")


def _not_images(folder: str, bad: Sequence[str], count: int) -> ImageError:
    named = ", ".join(Path(file).name for file in bad[:_NAMED])
    more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    others = "the others were classified" if len(bad) < count else "nothing was classified"
    return ImageError(
        f"{len(bad)} of {count} files in {folder} cannot be classified: {named}{more}; {others}",
        fix="the lines above say what is wrong with each; convert or remove them",
    )


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """Give an error of the disk the name of what could not be written."""
    try:
        yield
    except OSError as error:
        error.filename = "standard output"
        raise


def _say_nothing(_: str) -> None:
    pass
