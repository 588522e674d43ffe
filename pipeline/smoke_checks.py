"""The checks of the smoke test, in the order in which they run.

Each is a method that returns what it saw, or raises :class:`CheckFailed`; one that cannot apply
raises :class:`CheckSkipped`.
"""

from __future__ import annotations

import concurrent.futures
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from pipeline import malformed, smoke_clients
from pipeline.client import TritonClient
from pipeline.interface import differences
from pipeline.manifest import Manifest, damaged
from pipeline.smoke_result import Check, Latency, Photo, Prediction
from pipeline.subjects import Subject
from pipeline.verify import TOP, Tolerance, same_ranking
from provision.errors import SlipwayError
from provision.layout import Layout

Array = NDArray[np.float32]
CONCURRENCY = 8
_LARGEST_BATCH = 8
_LATENCY_SAMPLES = 40
_LATENCY_SECONDS = 10
_BOOKING_SECONDS = 3


class CheckFailed(Exception):  # noqa: N818 - it is an outcome
    """The check found something wrong; the message says what."""


class CheckSkipped(Exception):  # noqa: N818 - it is an outcome
    """The check does not apply; the message says why."""


@dataclass
class Run:
    """One pass over all checks.

    Attributes:
        client: The server.
        model: The model's name on it.
        manifest: What was deployed; None for a model that is not from here.
        layout: Where the manifest and the clients are from.
        subjects: The photos.
        exclusive: Whether nobody else sends requests to the server.
        told: Called with name, status and detail of each check as it ends.
        checks: The outcomes so far.
        photos: The photos with their answers so far.
        latency: The measured latencies, once measured.
    """

    client: TritonClient
    model: str
    manifest: Manifest | None
    layout: Layout
    subjects: list[Subject]
    exclusive: bool
    told: Callable[[str, str, str], None]
    checks: list[Check] = field(default_factory=list)
    photos: list[Photo] = field(default_factory=list)
    latency: Latency | None = None
    _answers: dict[str, Array] = field(default_factory=dict)
    _sent_requests: int = 0
    _sent_images: int = 0

    def all(self) -> None:
        """Run every check; a failed one does not keep the next from running."""
        before = self._counts()
        self._check("server and model ready", self._ready)
        self._check("metadata and configuration as deployed", self._interface)
        self._check("files are those of the manifest", self._files)
        for subject in self.subjects:
            self._check(f"photo {subject.name}", functools.partial(self._photo, subject))
        self._check("logits equal the reference of the deploy", self._reference)
        self._check("batches give the same answers", self._batches)
        self._check(f"{CONCURRENCY} requests at once give the same answers", self._concurrent)
        self._check("the clients give the same answers", self._clients)
        self._check("latency, one request after another", self._latencies)
        self._check("statistics grew by what was sent", lambda: self._statistics(before))
        self._check("malformed requests are refused", self._malformed)

    def _check(self, name: str, look: Callable[[], str]) -> None:
        start = time.perf_counter()
        try:
            status, detail = "passed", look()
        except CheckSkipped as skipped:
            status, detail = "skipped", str(skipped)
        except CheckFailed as failed:
            status, detail = "failed", str(failed)
        except InferenceServerException as refused:
            status, detail = "failed", f"the server refuses: {refused.message()}"
        except SlipwayError as error:
            status, detail = "failed", error.what
        except OSError as lost:
            status, detail = "failed", f"the server broke off: {lost}"
        except Exception as odd:  # noqa: BLE001 - no answer, however odd, ends the test
            status, detail = "failed", f"{type(odd).__name__}: {odd}"
        duration = (time.perf_counter() - start) * 1000
        self.checks.append(Check(name, status, detail, duration))  # type: ignore[arg-type] # the three above
        self.told(name, status, detail)

    def _ready(self) -> str:
        if not self.client.ready():
            raise CheckFailed("the server is live and not ready")
        if not self.client.model_ready(self.model):
            states = [e for e in self.client.repository() if e["name"] == self.model]
            reason = states[0].get("reason", "") if states else "it is not in its repository"
            raise CheckFailed(f"the server does not serve {self.model}: {reason or 'not loaded'}")
        return f"Triton {self.client.server()['version']}"

    def _interface(self) -> str:
        metadata = self.client.metadata(self.model)
        config = self.client.config(self.model)
        names = [t["name"] for t in (*metadata["inputs"], *metadata["outputs"])]
        if names != ["input", "output"]:
            raise CheckFailed(f"the tensors are {', '.join(names)}, not input and output")
        if self.manifest is None:
            raise CheckSkipped(f"there is no manifest of {self.model} here to compare with")
        deployed = self.layout.models / self.model / "config.pbtxt"
        found = differences(metadata, config, self.manifest, deployed)
        if found:
            raise CheckFailed("; ".join(found))
        return f"version {self.manifest.version}, input {metadata['inputs'][0]['shape']}, FP32"

    def _files(self) -> str:
        if self.manifest is None:
            raise CheckSkipped(f"there is no manifest of {self.model} here")
        found = damaged(self.manifest, self.layout.models / self.model)
        if found:
            raise CheckFailed(f"{', '.join(found)}: not what was deployed")
        return f"{len(self.manifest.files)} files, by SHA-256"

    def _photo(self, subject: Subject) -> str:
        image = self._request(subject.tensor[np.newaxis])
        start = time.perf_counter()
        (best,) = self.client.classify(self.model, image, classes=TOP)
        latency = (time.perf_counter() - start) * 1000
        self._count(1)
        logits = self._ask(subject.tensor)
        if subject.reference is not None and logits.shape != subject.reference.shape:
            raise CheckFailed(f"{len(logits)} logits, and not {len(subject.reference)}")
        self._answers[subject.name] = logits
        error = tolerance = None
        if subject.reference is not None:
            error = float(np.abs(logits - subject.reference).max())
            tolerance = float(self._tolerance().allowed(subject.reference).max())
        probabilities = _softmax(logits)
        self.photos.append(
            Photo(
                file=subject.path,
                name=subject.name,
                credit=subject.credit,
                accepted=subject.accepted,
                top5=tuple(
                    Prediction(c.score, c.index, c.label, float(probabilities[c.index]))
                    for c in best
                ),
                max_abs_diff=error,
                tolerance=tolerance,
                latency_ms=latency,
            )
        )
        if len(best) != TOP:
            raise CheckFailed(f"{TOP} classes were asked for, and {len(best)} came back")
        # The server's text has six decimals, so it is compared with the tensor at that precision.
        for found in best:
            if abs(found.score - float(logits[found.index])) > 1e-5 + 1e-5 * abs(found.score):
                raise CheckFailed(
                    f"class {found.index} has the score {found.score} as text and "
                    f"{logits[found.index]} as tensor"
                )
        if not np.isclose(best[0].score, logits.max(), atol=1e-5, rtol=1e-5):
            raise CheckFailed(f"{best[0].label} is not the best class of the tensor")
        if not all(found.label for found in best):
            raise CheckFailed("classes come back without labels")
        if subject.accepted and best[0].label.upper() not in subject.accepted:
            raise CheckFailed(f"{best[0].label}, and not {' or '.join(subject.accepted)}")
        return f"{best[0].label} ({best[0].score:.4f})"

    def _reference(self) -> str:
        compared = {s.name: s.reference for s in self.subjects if s.reference is not None}
        if not compared:
            raise CheckSkipped("no photo has a reference here")
        tolerance = self._tolerance()
        worst = 0.0
        for name, reference in compared.items():
            if name not in self._answers:
                raise CheckFailed(f"{name} got no answer")
            error = np.abs(self._answers[name] - reference)
            worst = max(worst, float(error.max()))
            allowed = tolerance.allowed(reference)
            if not (error <= allowed).all():
                at = int((error / allowed).argmax())
                raise CheckFailed(
                    f"{name}, class {at}: {self._answers[name][at]:.6f}, and the reference is "
                    f"{reference[at]:.6f}, allowed is {allowed[at]:.2e}"
                )
            if not same_ranking(reference, self._answers[name], allowed=float(allowed.max())):
                raise CheckFailed(f"{name}: the five best classes are others")
        return f"largest error {worst:.1e}, allowed {tolerance}"

    def _batches(self) -> str:
        largest = int(self.client.config(self.model)["max_batch_size"])
        if largest <= 1:
            raise CheckSkipped(f"the model takes one image a request (max_batch_size {largest})")
        names = list(self._answers)
        if not names:
            raise CheckFailed("no photo got an answer to compare with")
        tensors = {s.name: s.tensor for s in self.subjects}
        sizes = sorted({2, min(largest, _LARGEST_BATCH)})
        for size in sizes:
            row = [names[i % len(names)] for i in range(size)]
            logits = self.client.logits(self.model, np.stack([tensors[n] for n in row]))
            self._count(size)
            for name, got in zip(row, logits, strict=True):
                self._same(name, got, f"in a batch of {size}")
        return f"batches of {' and '.join(map(str, sizes))}"

    def _concurrent(self) -> str:
        names = list(self._answers)
        if not names:
            raise CheckFailed("no photo got an answer to compare with")
        row = [names[i % len(names)] for i in range(CONCURRENCY)]
        tensors = {s.name: s.tensor for s in self.subjects}
        # Each thread has a client of its own: gevent's connections belong to their thread.
        with concurrent.futures.ThreadPoolExecutor(CONCURRENCY) as pool:
            answers = list(pool.map(lambda name: self._ask_alone(tensors[name]), row))
        for _ in row:
            self._count(1)
        for name, got in zip(row, answers, strict=True):
            self._same(name, got, "among others")
        return f"{len(row)} answers compared"

    def _clients(self) -> str:
        """The clients of the recipe's steps 5 and 6, as users start them."""
        answered = {photo.name: photo.top5 for photo in self.photos}
        subject = next((s for s in self.subjects if s.name in answered), None)
        if subject is None:
            raise CheckFailed("no photo got an answer to compare with")
        url, model = self.client.url, self.model
        answers = smoke_clients.ask(self.layout, url, model, subject, classes=TOP)
        for _ in answers:
            self._count(1)
        scores = np.array([best.score for best in answered[subject.name]], np.float32)
        allowed = float(self._tolerance().allowed(scores).max())
        problem, detail = smoke_clients.judge(answers, answered[subject.name], allowed)
        if problem:
            raise CheckFailed(problem)
        return detail

    def _latencies(self) -> str:
        tensor = self.subjects[0].tensor
        samples: list[float] = []
        while len(samples) < _LATENCY_SAMPLES and sum(samples) < _LATENCY_SECONDS * 1000:
            start = time.perf_counter()
            self._ask(tensor)
            samples.append((time.perf_counter() - start) * 1000)
        self.latency = Latency("a photo as a binary tensor, one at a time", tuple(samples))
        return (
            f"p50 {self.latency.percentile(50):.1f} ms, p90 {self.latency.percentile(90):.1f} ms, "
            f"p99 {self.latency.percentile(99):.1f} ms"
        )

    def _counts(self) -> tuple[int, int] | None:
        """Requests and images that succeeded so far, over all versions."""
        try:
            versions = self.client.statistics(self.model)["model_stats"]
        except (InferenceServerException, SlipwayError):
            return None
        return (
            sum(int(v["inference_stats"]["success"].get("count", 0)) for v in versions),
            sum(int(v.get("inference_count", 0)) for v in versions),
        )

    def _statistics(self, before: tuple[int, int] | None) -> str:
        sent = (self._sent_requests, self._sent_images)
        deadline = time.monotonic() + _BOOKING_SECONDS
        while True:
            after = self._counts()
            if before is None or after is None:
                raise CheckFailed("the server gives no statistics")
            grown = (after[0] - before[0], after[1] - before[1])
            # The server books a request after it has answered it.
            if (grown[0] >= sent[0] and grown[1] >= sent[1]) or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        # Others may use a server that is not ours alone.
        if grown != sent and (self.exclusive or grown[0] < sent[0] or grown[1] < sent[1]):
            raise CheckFailed(
                f"{sent[0]} requests with {sent[1]} images were sent, and the server counted "
                f"{grown[0]} with {grown[1]}"
            )
        return f"{grown[0]} requests, {grown[1]} images"

    def _malformed(self) -> str:
        shape = list(self._request(self.subjects[0].tensor[np.newaxis]).shape)
        sender = malformed.Sender(self.client.url, self.model, shape)
        for case, send in sender.cases().items():
            problem = send()
            if problem:
                raise CheckFailed(f"{case}: {problem}")
            if not (self.client.live() and self.client.model_ready(self.model)):
                raise CheckFailed(f"after {case} the server is no longer ready")
        return f"{', '.join(sender.cases())}; the server stays ready"

    def _ask(self, tensor: Array) -> Array:
        logits = self._answer(self.client, tensor)
        self._count(1)
        return logits

    def _ask_alone(self, tensor: Array) -> Array:
        with TritonClient(self.client.url) as client:
            return self._answer(client, tensor)

    def _answer(self, client: TritonClient, tensor: Array) -> Array:
        logits = client.logits(self.model, self._request(tensor[np.newaxis]))
        return logits.reshape(-1)

    def _request(self, image: Array) -> Array:
        """An image with or without its batch dimension, as the server takes it."""
        return image if self._batched else image[0]

    @functools.cached_property
    def _batched(self) -> bool:
        return int(self.client.config(self.model)["max_batch_size"]) > 0

    def _count(self, images: int) -> None:
        self._sent_requests += 1
        self._sent_images += images

    def _tolerance(self) -> Tolerance:
        if self.manifest is None:
            return Tolerance.of("fp32")
        if self.manifest.engine["precision"] != "fp32":
            return Tolerance.of(self.manifest.engine["precision"])
        facts = self.manifest.verification
        return Tolerance(facts["atol"], facts["rtol"], facts["reason"])

    def _same(self, name: str, got: Array, where: str) -> None:
        expected = self._answers[name]
        error = np.abs(got - expected)
        allowed = self._tolerance().allowed(expected)
        if not (error <= allowed).all():
            at = int((error / allowed).argmax())
            raise CheckFailed(
                f"{name} {where}: class {at} is {got[at]:.6f}, and alone it is {expected[at]:.6f}"
            )


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum(), np.float32)
