"""What a smoke test found, as data: the shape of ``report/smoke.json``."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = 1
"""Raised whenever a field is renamed, is removed or changes its meaning."""

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
Status: TypeAlias = Literal["passed", "failed", "skipped"]
Verdict: TypeAlias = Literal["passed", "failed"]


@dataclass(frozen=True)
class Server:
    """The server that was asked.

    Attributes:
        url: Its HTTP address, as host:port.
        version: The version it reports; empty where it did not answer.
        name: The name it reports.
        chosen: Why this server, in words.
        extensions: The protocol extensions it reports.
    """

    url: str
    version: str = ""
    name: str = ""
    chosen: str = ""
    extensions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Model:
    """The model that was asked.

    Attributes:
        name: Its name on the server.
        version: The version that answered; empty where none did.
        weights: Where the weights come from, as the manifest spells it.
        weights_kind: What they are; unknown where there is no manifest. Random ones have labels
            that mean nothing.
        note: What a reader has to know before believing an answer; empty where there is nothing.
        engine: What computes the answers.
        engine_reason: Why this engine, in words.
        precision: What it computes in.
    """

    name: str
    version: str = ""
    weights: str = ""
    weights_kind: Literal["pretrained", "file", "random", "unknown"] = "unknown"
    note: str = ""
    engine: str = ""
    engine_reason: str = ""
    precision: str = ""


@dataclass(frozen=True)
class Check:
    """One thing that has to hold, and whether it did.

    Attributes:
        name: What has to hold, in words.
        status: Whether it did.
        detail: What was seen, or why the check was skipped.
        duration_ms: How long it took.
    """

    name: str
    status: Status
    detail: str = ""
    duration_ms: float | None = None


@dataclass(frozen=True)
class Prediction:
    """One of the classes that the server ranks highest.

    Attributes:
        score: The raw output, before any softmax.
        index: The class.
        label: The name of the class, as the server gives it.
        probability: The softmax of the score over all classes.
    """

    score: float
    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class Photo:
    """One photo, and what the server takes it for.

    Attributes:
        file: Where it is.
        name: What it is called.
        credit: Whose it is, and under which licence.
        accepted: The labels that are right, spelled as in `top5`; empty where any will do.
        top5: The best first.
        max_abs_diff: The largest difference to the reference scores; None where not compared.
        tolerance: The largest difference that passes.
        latency_ms: The time from request to answer.
    """

    file: Path
    name: str
    credit: str = ""
    accepted: tuple[str, ...] = ()
    top5: tuple[Prediction, ...] = ()
    max_abs_diff: float | None = None
    tolerance: float | None = None
    latency_ms: float | None = None


@dataclass(frozen=True)
class Latency:
    """How long the same request took, time after time.

    Attributes:
        what: What was sent, and how.
        samples_ms: The durations, in the order of the requests.
    """

    what: str
    samples_ms: tuple[float, ...]

    def percentile(self, percent: float) -> float:
        """The duration that so many percent of the samples stay within, interpolated linearly."""
        ordered = sorted(self.samples_ms)
        place = (len(ordered) - 1) * percent / 100
        below = math.floor(place)
        above = math.ceil(place)
        return ordered[below] + (ordered[above] - ordered[below]) * (place - below)

    def to_json(self) -> dict[str, Any]:
        """The samples and their percentiles, null where there is no sample."""
        percentiles = {
            f"p{percent}_ms": self.percentile(percent) if self.samples_ms else None
            for percent in (50, 90, 99)
        }
        return {"what": self.what, **percentiles, "samples_ms": list(self.samples_ms)}


@dataclass(frozen=True)
class SmokeResult:
    """Everything that a smoke test found.

    Attributes:
        time: When it started.
        duration_s: How long it took.
        command: How to run it again.
        server: The server that was asked.
        model: The model that was asked.
        checks: In the order in which they ran.
        photos: In the order in which they were sent.
        latency: None where it was not measured.
        environment: What else the answers may depend on, by name.
        manifest: The manifest of the deployed version; None where the server is not ours.
    """

    time: datetime
    duration_s: float
    command: str
    server: Server
    model: Model
    checks: tuple[Check, ...] = ()
    photos: tuple[Photo, ...] = ()
    latency: Latency | None = None
    environment: Mapping[str, str] | None = None
    manifest: Mapping[str, Any] | None = None

    @property
    def utc(self) -> datetime:
        """When it started, in UTC."""
        return self.time.astimezone(timezone.utc)

    def count(self, status: Status) -> int:
        """How many checks ended so."""
        return sum(check.status == status for check in self.checks)

    @property
    def failures(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if check.status == "failed"]

    @property
    def verdict(self) -> Verdict:
        """Passed when no check failed and one passed: a test that ran nothing proves nothing."""
        return "passed" if self.count("passed") and not self.count("failed") else "failed"

    @property
    def summary(self) -> str:
        """The outcome in one sentence."""
        model = f"{self.model.name} version {self.model.version}".removesuffix(" version ")
        where = f"Triton {self.server.version}" if self.server.version else self.server.url
        failed, skipped = self.count("failed"), self.count("skipped")
        if len(self.checks) == 1 and not skipped:
            share = f"{self.verdict} its only check"
        elif failed:
            share = f"failed {failed} of {len(self.checks)} checks"
        elif not self.count("passed"):
            share = "was not tested: no check ran"
        elif skipped:
            share = f"passed {self.count('passed')} checks, with {skipped} skipped,"
        else:
            share = f"passed all {len(self.checks)} checks"
        return f"{model} {share} on {where} in {self.duration_s:.1f} s."

    def to_json(self) -> dict[str, Any]:
        """The result as plain data that any JSON reader takes."""
        data = plain(
            {
                "schema": SCHEMA,
                "verdict": self.verdict,
                "summary": self.summary,
                "time": self.utc.isoformat(timespec="seconds"),
                "duration_s": self.duration_s,
                "command": self.command,
                "server": asdict(self.server),
                "model": asdict(self.model),
                "checks": [asdict(check) for check in self.checks],
                "photos": [asdict(photo) for photo in self.photos],
                "latency": self.latency.to_json() if self.latency else None,
                "environment": self.environment or {},
                "manifest": self.manifest,
            }
        )
        assert isinstance(data, dict)  # noqa: S101 - for the type checker
        return data


def plain(value: object) -> Json:
    """The value as JSON can hold it, which has neither NaN nor infinity: those become null."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value)
