"""The benchmark of the clients: that it really measures, and against the recipe's pixels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import deploy_tiny

from pipeline import sequential_client
from pipeline.benchmark_clients import Effort, benchmark
from pipeline.photos import sample_photos
from pipeline.scaling import ImageInput, Scaler
from provision.errors import RepositoryError
from provision.layout import Layout

LEAST = Effort(photos=4, rounds=1, real=2)


def test_everything_is_measured(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deploy_tiny(layout, kind="file")
    monkeypatch.chdir(tmp_path)
    benchmark(layout, model="tiny", effort=LEAST)
    report = json.loads((tmp_path / "report" / "benchmark-clients.json").read_text())
    whole, fast, busy = report["figures"]
    assert [len(figure["samples"]) for figure in report["figures"]] == [1, 1, 1]
    assert [figure["target"] for figure in report["figures"]] == [1.7, 3.0, 0.95]
    assert whole["measured"] > 0
    assert fast["measured"] > 0
    assert 0 < busy["measured"] < 1
    assert report["fast_decode_same_top1"]["photos"] == 2
    assert 0 <= report["fast_decode_same_top1"]["same"] <= 2
    assert not (layout.transit / "benchmark-clients").exists()


def test_the_sequential_client_makes_the_recipes_pixels() -> None:
    target = ImageInput(3, 224, 224, np.dtype(np.float32))
    for photo in sample_photos():
        ours = Scaler("INCEPTION", target).read(photo.path)
        assert np.array_equal(sequential_client._preprocess(photo.path), ours)


def test_an_absent_model_is_named(layout: Layout) -> None:
    with pytest.raises(RepositoryError, match="resnet50 is not deployed"):
        benchmark(layout, model="resnet50", effort=LEAST)
