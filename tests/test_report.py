"""The report of a smoke test, as its readers get it."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import re
import resource
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from PIL import Image

from pipeline.report import Histogram, thumbnail, write_report
from pipeline.smoke_result import (
    Check,
    Latency,
    Model,
    Photo,
    Prediction,
    Server,
    SmokeResult,
    plain,
)

_VOID = {"meta", "link", "img", "br"}
_HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></style></svg><h1>hello",
    "{{ 7 * 7 }}{% raw %}",
    "<!-- ]]> javascript:alert(1) &lt;b&gt;",
]
_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_MANIFEST = {
    "schema": 1,
    "model": "resnet50",
    "version": 1,
    "weights": {"spec": "IMAGENET1K_V1", "kind": "pretrained", "sha256": _SHA256},
    "files": {"1/model.onnx": {"sha256": _SHA256, "size": 102146388}},
    "verification": {
        "atol": 1e-3,
        "cases": [
            {"name": "seeded noise", "batch": 4, "max_abs": 1e-5, "cosine": 1.0},
            {"name": "zeros", "batch": 1, "max_abs": 2e-6, "top5": 1.0},
        ],
    },
    "created": "2026-11-23T01:20:11+00:00",
}


class Page(HTMLParser):
    """A page as a browser understands it; tags that do not match are an error."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.style = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Enter an element, unless it is empty by definition."""
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element that closes itself, as in SVG."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Leave an element."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note a text and the element around it."""
        if self._open and self._open[-1] == "style":
            self.style += data
        elif data.strip():
            self.texts.append((self._open[-1] if self._open else "", data.strip()))

    @property
    def text(self) -> str:
        """All the text."""
        return "\n".join(text for _, text in self.texts)

    def within(self, tag: str) -> list[str]:
        """The texts right inside such elements."""
        return [text for where, text in self.texts if where == tag]

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of such elements."""
        return [attributes for name, attributes in self.tags if name == tag]


def _photo(folder: Path, name: str) -> Path:
    path = folder / f"{name}.png"
    Image.new("RGB", (1200, 900), "teal").save(path)
    return path


@pytest.fixture
def result(tmp_path: Path) -> SmokeResult:
    noise = random.Random(0)  # noqa: S311 - nothing secret
    return SmokeResult(
        time=datetime(2026, 11, 23, 2, 22, 5, tzinfo=timezone(timedelta(hours=1))),
        duration_s=12.34,
        command="nox -s smoke -- --model resnet50",
        server=Server("127.0.0.1:8000", "2.51.0", "triton", "ours", ("classification", "trace")),
        model=Model("resnet50", "1", "IMAGENET1K_V1", "pretrained", "", "onnxruntime", "no GPU"),
        checks=(
            Check("server and model ready", "passed", "READY", 1.2),
            Check("scores match the reference", "passed", "1e-05", 45.0),
        ),
        photos=(
            Photo(
                _photo(tmp_path, "chelsea"),
                "chelsea",
                "Stéfan van der Walt, CC0, https://example.org/chelsea",
                ("TABBY", "EGYPTIAN CAT"),
                (
                    Prediction(11.2, 285, "EGYPTIAN CAT", 0.8),
                    Prediction(9.1, 281, "TABBY", 0.1),
                    Prediction(3.0, 287, "LYNX", 0.0001),
                ),
                1e-5,
                1e-3,
                45.1,
            ),
        ),
        latency=Latency("photo", tuple(noise.gauss(45, 2) for _ in range(200))),
        environment={"Python": "3.11.7", "CPU": "one"},
        manifest=_MANIFEST,
    )


@pytest.fixture
def nothing() -> SmokeResult:
    return SmokeResult(
        time=datetime(2026, 1, 1, tzinfo=timezone.utc),
        duration_s=0.4,
        command="",
        server=Server("127.0.0.1:8000"),
        model=Model("resnet50"),
    )


def _write(result: SmokeResult, folder: Path) -> tuple[dict[str, Any], Page]:
    data, html = write_report(result, folder / "report")
    page = Page(html.read_text(encoding="utf-8"))
    _assert_self_contained(page)

    def constant(name: str) -> NoReturn:
        raise AssertionError(name)

    read = json.loads(data.read_text(encoding="utf-8"), parse_constant=constant)
    assert read == result.to_json()
    return read, page


def _assert_self_contained(page: Page) -> None:
    assert not {"script", "iframe", "object", "embed", "base", "form"} & {t for t, _ in page.tags}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in {"srcset", "poster", "action", "background", "data"}, (tag, name)
            if name in {"src", "href", "xlink:href"}:
                assert (value or "").startswith(("data:image/", "#")), (tag, value)
    assert "url(" not in page.style
    assert "@import" not in page.style
    policy = next(m for m in page.attributes("meta") if "http-equiv" in m)
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert (policy["content"] or "").startswith("default-src 'none';")


def test_a_passed_run(result: SmokeResult, tmp_path: Path) -> None:
    data, page = _write(result, tmp_path)
    assert data["verdict"] == "passed"
    assert data["time"] == "2026-11-23T01:22:05+00:00"
    assert data["summary"] == ("resnet50 version 1 passed all 2 checks on Triton 2.51.0 in 12.3 s.")
    assert page.within("h1") == ["Passed"]
    assert page.within("h2") == ["Photos", "Checks", "Latency", "Environment", "Manifest"]
    assert page.within("title")[0] == "Passed: resnet50 \N{EN DASH} Slipway smoke test"
    assert data["summary"] in page.text
    assert "23 November 2026, 01:22:05 UTC" in page.text
    for text in ("EGYPTIAN CAT", "11.20", "80.0%", "<0.1%", "server and model ready", "one"):
        assert text in page.text
    assert not [a for a in page.attributes("div") if (a.get("class") or "").startswith("banner")]


def test_photos_are_inlined_and_described(result: SmokeResult, tmp_path: Path) -> None:
    _, page = _write(result, tmp_path)
    (image,) = page.attributes("img")
    assert image["alt"] == "Photo: chelsea"
    jpeg = base64.b64decode((image["src"] or "").removeprefix("data:image/jpeg;base64,"))
    with Image.open(io.BytesIO(jpeg)) as small:
        assert small.size == (800, 600)


def test_a_bar_is_as_long_as_its_probability(result: SmokeResult, tmp_path: Path) -> None:
    _, page = _write(result, tmp_path)
    bars = [a for a in page.attributes("rect") if (a["class"] or "").startswith("fill")]
    assert [(a["class"], a["width"]) for a in bars] == [
        ("fill right", "80.00%"),
        ("fill right", "10.00%"),
        ("fill", "0.01%"),
    ]


def test_tables_have_headers_and_drawings_have_labels(result: SmokeResult, tmp_path: Path) -> None:
    _, page = _write(result, tmp_path)
    assert all(a.get("scope") in {"row", "col"} for a in page.attributes("th"))
    assert all("aria-label" in a for a in page.attributes("svg") if a.get("role") == "img")
    outer = [a for a in page.attributes("svg") if a.get("class") != "icon"]
    labelled = [a for a in outer if a.get("role") == "img"]
    assert len(labelled) == 1
    assert re.search(
        r"200 latencies: p50 \S+ ms, p90 \S+ ms, p99 \S+ ms",
        (labelled[0]["aria-label"] or "").replace("\N{NO-BREAK SPACE}", " "),
    )


def test_verification_cases_become_a_table(result: SmokeResult, tmp_path: Path) -> None:
    _, page = _write(result, tmp_path)
    for text in ("seeded noise", "max abs", "1e-05", "top5", "\N{EN DASH}"):
        assert text in page.within("th") + page.within("td")
    assert _SHA256 in page.text


def test_precision_and_the_errors_of_a_plan_are_shown(result: SmokeResult, tmp_path: Path) -> None:
    case = {"name": "sample photos", "batch": 3, "max_abs": 0.0081, "cosine": 0.99998}
    verification = {
        **_MANIFEST["verification"],  # type: ignore[dict-item] # it is a dictionary
        "graph": {"cases": [case], "tolerance": {"spread": 0.05}},
        "plan": {"cases": [{**case, "max_abs": 0.0123}], "polygraphy": True},
    }
    manifest = {**_MANIFEST, "verification": verification}
    model = replace(result.model, engine="tensorrt", precision="fp16")
    data, page = _write(replace(result, manifest=manifest, model=model), tmp_path)
    assert data["model"]["precision"] == "fp16"
    assert "fp16" in page.text
    for text in ("converted graph: sample photos", "plan: sample photos", "0.0123", "0.0081"):
        assert text in page.within("th") + page.within("td")


def test_a_failed_run_names_what_failed(result: SmokeResult, tmp_path: Path) -> None:
    checks = (
        *result.checks,
        Check("HTTP and gRPC agree", "failed", "gRPC does not answer", 3.0),
        Check("labels", "skipped", "random weights"),
    )
    data, page = _write(replace(result, checks=checks), tmp_path)
    assert data["verdict"] == "failed"
    assert "failed 1 of 4 checks" in data["summary"]
    assert page.within("h1") == ["Failed"]
    assert page.within("h2")[0] == "1 check failed"
    assert page.within("b").count("HTTP and gRPC agree") == 1
    assert {"passed", "failed", "skipped"} <= set(page.within("span"))


def test_random_weights_are_announced(result: SmokeResult, tmp_path: Path) -> None:
    model = replace(result.model, weights_kind="random", note="The labels mean nothing here.")
    _, page = _write(replace(result, model=model), tmp_path)
    assert page.within("h2")[0] == "Random weights"
    assert "The labels mean nothing here." in page.text
    _, page = _write(replace(result, model=replace(model, note="")), tmp_path)
    assert "The labels below mean nothing." in page.text


def test_a_note_is_shown(result: SmokeResult, tmp_path: Path) -> None:
    model = replace(result.model, weights_kind="file", note="Labels come from a file.")
    _, page = _write(replace(result, model=model), tmp_path)
    assert "Labels come from a file." in page.text
    assert page.within("h2")[0] == "Photos"


def test_a_run_that_found_nothing(nothing: SmokeResult, tmp_path: Path) -> None:
    data, page = _write(nothing, tmp_path)
    assert data["verdict"] == "failed"
    assert data["latency"] is None
    assert data["manifest"] is None
    assert data["model"]["weights_kind"] == "unknown"
    assert "Weights" not in page.text
    for text in (
        "resnet50 was not tested: no check ran on 127.0.0.1:8000 in 0.4 s.",
        "Nothing was proven",
        "No photo was classified.",
        "No check ran.",
        "Latency was not measured.",
        "did not answer",
    ):
        assert text in page.text
    assert any(text.startswith("No manifest") for text in page.within("p"))


def test_a_photo_without_an_answer(result: SmokeResult, tmp_path: Path) -> None:
    photo = Photo(tmp_path / "gone.png", "gone")
    _, page = _write(replace(result, photos=(photo,)), tmp_path)
    assert "The photo cannot be read any more." in page.text
    assert "The server gave no answer for this photo." in page.text
    assert "Not compared to a reference" in page.text


def test_skipped_checks_alone_prove_nothing(nothing: SmokeResult) -> None:
    assert replace(nothing, checks=(Check("a", "skipped"),)).verdict == "failed"


@pytest.mark.parametrize(
    ("statuses", "summary"),
    [
        (("passed",), "resnet50 passed its only check on"),
        (("failed",), "resnet50 failed its only check on"),
        (("passed", "passed", "skipped"), "resnet50 passed 2 checks, with 1 skipped, on"),
        (("skipped",), "resnet50 was not tested: no check ran on"),
    ],
)
def test_summary(nothing: SmokeResult, statuses: tuple[str, ...], summary: str) -> None:
    checks = tuple(Check("a", status) for status in statuses)  # type: ignore[arg-type]
    assert replace(nothing, checks=checks).summary.startswith(summary)


def _with_text(result: SmokeResult, text: str) -> SmokeResult:
    """The result with the text wherever text can come from outside."""
    photo = result.photos[0]
    return replace(
        result,
        command=text,
        server=Server(text, text, text, text, (text, text)),
        model=replace(result.model, name=text, version=text, weights=text, note=text, engine=text),
        checks=(Check(text, "failed", text), Check(text, "passed", text, 1.0)),
        photos=(
            replace(
                photo,
                file=photo.file.parent / text,
                name=text,
                credit=text,
                accepted=(text,),
                top5=(replace(photo.top5[0], label=text),),
            ),
        ),
        latency=Latency(text, (1.0, 2.0, 3.0)),
        environment={text: text},
        manifest={
            text: text,
            text + "x": {text: [text]},
            "verification": {"cases": [{text: text}]},
        },
    )


@pytest.mark.parametrize("text", [*_HOSTILE, "A" * 400])
def test_text_stays_text(result: SmokeResult, tmp_path: Path, text: str) -> None:
    _, page = _write(_with_text(result, text), tmp_path)
    _, harmless = _write(_with_text(result, "harmless"), tmp_path)
    assert [(t, list(a)) for t, a in page.tags] == [(t, list(a)) for t, a in harmless.tags]
    assert page.style == harmless.style
    assert len(page.texts) == len(harmless.texts)
    assert page.within("code")[0] == str(result.photos[0].file.parent / text)
    assert any(a.get("title") == text for a in page.attributes("span"))


def test_a_file_name_that_is_not_utf8(result: SmokeResult, tmp_path: Path) -> None:
    photo = replace(result.photos[0], file=Path(os.fsdecode(b"/caf\xe9.png")), name="caf\udce9")
    data, page = _write(replace(result, photos=(photo,)), tmp_path)
    assert os.fsencode(data["photos"][0]["file"]) == b"/caf\xe9.png"
    assert r"caf\udce9" in page.text


def test_numbers_that_are_not(result: SmokeResult, tmp_path: Path) -> None:
    nan, infinity = float("nan"), float("inf")
    photo = replace(result.photos[0], top5=(Prediction(infinity, 1, "A", nan),), max_abs_diff=nan)
    manifest = {"verification": {"cases": [{"name": "noise", "max_abs": nan}]}, "x": infinity}
    data, page = _write(replace(result, photos=(photo,), manifest=manifest), tmp_path)
    assert data["manifest"] == {
        "verification": {"cases": [{"name": "noise", "max_abs": None}]},
        "x": None,
    }
    assert "Off the reference by nan; 0.001 is allowed" in page.text


def test_plain_takes_numpy_and_paths() -> None:
    value = {"a": np.float32(0.5), "b": np.int64(3), "c": Path("x"), 4: (True, None)}
    assert plain(value) == {"a": 0.5, "b": 3, "c": "x", "4": [True, None]}


@pytest.mark.parametrize(
    "manifest",
    [
        {"verification": None},
        {"verification": []},
        {"verification": {"cases": None}},
        {"verification": {"cases": []}},
        {"verification": {"cases": "none"}},
        {"verification": {"cases": [1, "two"]}},
        {"verification": {"cases": [{}]}},
        {"items": {"values": None}, "keys": True},
    ],
)
def test_any_manifest(result: SmokeResult, tmp_path: Path, manifest: dict[str, object]) -> None:
    _, page = _write(replace(result, manifest=manifest), tmp_path)
    assert next(iter(manifest)) in page.within("summary")


def test_percentiles_are_numpys() -> None:
    samples = (5.0, 1.0, 4.0, 2.5, 9.0, 3.0)
    latency = Latency("", samples)
    for percent in (0, 25, 50, 90, 99, 100):
        assert latency.percentile(percent) == pytest.approx(np.percentile(samples, percent))


def test_latency_without_samples(result: SmokeResult, tmp_path: Path) -> None:
    data, page = _write(replace(result, latency=Latency("photo", ())), tmp_path)
    assert data["latency"] == {
        "what": "photo",
        "p50_ms": None,
        "p90_ms": None,
        "p99_ms": None,
        "samples_ms": [],
    }
    assert "Latency was not measured." in page.text


def _lognormal(count: int) -> tuple[float, ...]:
    return tuple(float(x) for x in np.random.default_rng(count).lognormal(3.8, 0.2, count))


@pytest.mark.parametrize(
    "samples",
    [
        (45.0,),
        (45.0,) * 20,
        (0.0,) * 5,
        (0.0, 0.0, 1e-4),
        (45.0, 45.01, 45.02, 45.0, 45.0),
        (44.0, 45.0, 44.5, 44.2, 3000.0),
        tuple(i / 10 for i in range(11)),
        *[_lognormal(count) for count in (5, 12, 50, 200, 1000)],
    ],
    ids=lambda samples: f"{len(samples)} to {max(samples):g}",
)
def test_histogram(result: SmokeResult, tmp_path: Path, samples: tuple[float, ...]) -> None:
    latency = Latency("photo", samples)
    histogram = Histogram.of(latency)
    assert histogram
    counts = [int(bar.text.rpartition(": ")[2]) for bar in histogram.bars]
    assert sum(counts) == len(samples)
    assert max(bar.height for bar in histogram.bars) == 100
    assert 1 <= len(histogram.bars) <= 42
    for bar in histogram.bars:
        assert bar.at >= 0
        assert bar.at + bar.width <= 100 + 1e-9
    for marks in (histogram.across, histogram.up, histogram.percentiles):
        assert all(-1e-6 <= mark.at <= 100 + 1e-6 for mark in marks)
    assert 2 <= len(histogram.across) <= 7
    assert all(mark.text.endswith(" ms") for mark in histogram.across)
    assert len({mark.text for mark in histogram.across}) == len(histogram.across)
    _write(replace(result, latency=latency), tmp_path)


def test_equal_samples_are_one_bar_under_its_marks() -> None:
    histogram = Histogram.of(Latency("", (45.0,) * 20))
    assert histogram
    (bar,) = histogram.bars
    for mark in histogram.percentiles:
        assert bar.at <= mark.at <= bar.at + bar.width


def test_a_thumbnail_is_upright_and_anonymous(tmp_path: Path) -> None:
    photo = Image.new("RGB", (1600, 800), "red")
    photo.paste("blue", (0, 0, 800, 800))
    exif = photo.getexif()
    exif[0x0112] = 6  # to be turned right by 90 degrees
    exif[0x010F] = "the maker of the camera"
    photo.save(tmp_path / "turned.jpg", exif=exif)
    jpeg = base64.b64decode((thumbnail(tmp_path / "turned.jpg") or "").partition(",")[2])
    assert b"the maker" not in jpeg
    with Image.open(io.BytesIO(jpeg)) as small:
        assert small.size == (400, 800)
        pixel = small.getpixel((200, 100))
        assert isinstance(pixel, tuple)
        red, _, blue = pixel
        assert blue > red
        assert not small.getexif()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_thumbnails_of_any_mode(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (30, 20)).save(tmp_path / "photo.tif")
    assert (thumbnail(tmp_path / "photo.tif") or "").startswith("data:image/jpeg;base64,")


def test_unreadable_photos(tmp_path: Path) -> None:
    whole = _photo(tmp_path, "whole").read_bytes()
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    for name in ("missing.png", "text.png", "cut.png", ".", "a\0b"):
        assert thumbnail(tmp_path / name) is None


def test_a_report_is_replaced_whole_or_not_at_all(result: SmokeResult, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    paths = write_report(result, folder)
    assert paths == (folder / "smoke.json", folder / "smoke.html")
    before = [path.read_bytes() for path in paths]

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_report(replace(result, command="another"), folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.read_bytes() for path in paths] == before
    assert sorted(folder.iterdir()) == sorted(paths)
