"""The report of a smoke test: ``smoke.json`` for programs, ``smoke.html`` for people.

The page is one file that asks for nothing: no script, no font, no image from elsewhere. Its
content security policy makes the browser hold it to that.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from pipeline.images import read_image
from provision.files import write_atomically

if TYPE_CHECKING:
    from pipeline.smoke_result import Latency, SmokeResult

_PHOTO_SIZE = (800, 800)
_MOST_BINS = 40
_FEWEST_BINS = 5
_MOST_TICKS = 5


def write_report(result: SmokeResult, folder: Path) -> tuple[Path, Path]:
    """Write both reports; a reader finds the old ones or the new ones, never half of one.

    Returns:
        The paths of ``smoke.json`` and of ``smoke.html``.
    """
    data = json.dumps(result.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    page = _render(result)
    folder.mkdir(parents=True, exist_ok=True)
    return _write(folder / "smoke.json", data), _write(folder / "smoke.html", page)


def _write(path: Path, text: str) -> Path:
    # A file name that is not UTF-8 reaches us as lone surrogates. Backslashed, they are valid
    # JSON, and harmless in HTML.
    write_atomically(path, text.encode("utf-8", "backslashreplace"))
    return path


def _render(result: SmokeResult) -> str:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "ms": _ms,
        "score": "{:.2f}".format,
        "percent": _percent,
        "length_percent": _length_percent,
        "brief": _brief,
        "pretty": _pretty,
    }
    manifest = dict(result.manifest or {})
    return templates.get_template("report.html.j2").render(
        result=result,
        photos=[(photo, thumbnail(photo.file)) for photo in result.photos],
        histogram=Histogram.of(result.latency) if result.latency else None,
        manifest=manifest,
        verification=_verification(manifest),
    )


def thumbnail(file: Path) -> str | None:
    """The photo as the model sees its colours, upright and small, or None if it cannot be read."""
    jpeg = io.BytesIO()
    try:
        small = read_image(file)
        small.thumbnail(_PHOTO_SIZE)
        # It has no metadata any more, and so none of where the photo was taken.
        small.save(jpeg, "JPEG", quality=82, optimize=True)
    except Exception:  # noqa: BLE001 - decoders raise what they like, and the report comes first
        return None
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode("ascii")


@dataclass(frozen=True)
class Mark:
    """A place on an axis, in percent of its length, and what is written there."""

    at: float
    text: str


@dataclass(frozen=True)
class Bar:
    """A bar from `at` to `at + width` percent of the axis."""

    at: float
    width: float
    height: float
    text: str


@dataclass(frozen=True)
class Histogram:
    """A histogram as its drawing needs it: every place and length in percent."""

    bars: list[Bar]
    across: list[Mark]
    up: list[Mark]
    percentiles: list[Mark]

    @classmethod
    def of(cls, latency: Latency) -> Histogram | None:
        """The histogram of the samples, or None if there is none."""
        samples = latency.samples_ms
        if not samples:
            return None
        low, high = min(samples), max(samples)
        if high - low <= high / 1000:  # as good as equal: one bar in the middle
            low, high = low - (high / 10 or 1), high + (high / 10 or 1)
        # The rule of Freedman and Diaconis, kept within what can be drawn.
        spread = latency.percentile(75) - latency.percentile(25)
        width = 2 * spread / len(samples) ** (1 / 3)
        span = high - low
        step = _round_up(min(max(width, span / _MOST_BINS), span / _FEWEST_BINS))
        first, last = math.floor(max(low, 0) / step), math.floor(high / step) + 1
        counts = [0] * (last - first)
        for sample in samples:
            counts[math.floor(sample / step) - first] += 1
        most = max(counts)

        def place(value: float) -> float:
            return 100 * (value / step - first) / len(counts)

        return cls(
            bars=[
                Bar(
                    100 * i / len(counts),
                    100 / len(counts),
                    100 * count / most,
                    f"{(first + i) * step:g} to {(first + i + 1) * step:g} ms: {count}",
                )
                for i, count in enumerate(counts)
                if count
            ],
            across=[Mark(place(v), f"{v:g} ms") for v in _ticks(first * step, last * step)],
            up=[Mark(100 * v / most, f"{v:g}") for v in _ticks(0, most) if v == int(v)],
            percentiles=[
                Mark(place(value), f"p{percent} {_ms(value)}")
                for percent in (50, 90, 99)
                for value in [latency.percentile(percent)]
            ],
        )


def _ticks(low: float, high: float) -> list[float]:
    step = _round_up((high - low) / _MOST_TICKS)
    return [
        round(i * step, 9)
        for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50 and so on, and of 0.5, 0.2, 0.1 and so on."""
    power: float = 10.0 ** math.floor(math.log10(value))
    return next(power * i for i in (1, 2, 5, 10) if power * i >= value * (1 - 1e-9))


def _verification(manifest: Mapping[str, Any]) -> tuple[list[str], list[Mapping[str, Any]]] | None:
    """The columns and the rows of the verification cases, whatever they hold."""
    verification = manifest.get("verification")
    if not isinstance(verification, Mapping):
        return None
    rows = _cases(verification)
    for part, what in (("graph", "converted graph"), ("plan", "plan")):
        judged = verification.get(part)
        if isinstance(judged, Mapping):
            rows += [{**case, "name": f"{what}: {case.get('name')}"} for case in _cases(judged)]
    return (list(dict.fromkeys(key for row in rows for key in row)), rows) if rows else None


def _cases(judged: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    cases = judged.get("cases")
    return [c for c in cases if isinstance(c, Mapping)] if isinstance(cases, list) else []


def _ms(value: float) -> str:
    digits = 0 if value >= 100 else 1 if value >= 1 else 2  # noqa: PLR2004
    return f"{value:,.{digits}f}\N{NO-BREAK SPACE}ms"


def _percent(value: float) -> str:
    if not math.isfinite(value):
        return "\N{EN DASH}"
    return "<0.1%" if 0 < value < 0.0005 else f"{value:.1%}"  # noqa: PLR2004


def _length_percent(probability: float) -> str:
    """The length of a bar, whatever the server answered."""
    return f"{100 * min(max(probability, 0), 1):.2f}%" if math.isfinite(probability) else "0"


def _brief(value: object) -> str:
    """A value for a table cell."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _pretty(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)
