"""The sample photos come out of scikit-image's wheel, which is never imported."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from typing import TYPE_CHECKING

import pytest

from pipeline.images import read_image
from pipeline.photos import sample_photos
from provision.errors import HostError
from provision.layout import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path


def test_there_are_three_and_each_can_be_read() -> None:
    sizes = {photo.name: read_image(photo.path).size for photo in sample_photos()}
    assert sizes == {"chelsea": (451, 300), "coffee": (600, 400), "astronaut": (512, 512)}


def test_each_names_its_licence() -> None:
    for photo in sample_photos():
        assert photo.credit.endswith(("(CC0)", "(public domain)"))


def test_labels_are_in_upper_case_and_the_astronaut_has_none() -> None:
    accepted = {photo.name: photo.accepted for photo in sample_photos()}
    assert "EGYPTIAN CAT" in accepted["chelsea"]
    assert "ESPRESSO" in accepted["coffee"]
    assert accepted["astronaut"] == ()
    assert all(label == label.upper() for labels in accepted.values() for label in labels)


def test_scikit_image_is_not_imported() -> None:
    code = (
        "import sys, pipeline.photos as p; p.sample_photos(); assert 'skimage' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_without_the_wheel_the_host_is_at_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", nothing)
    with pytest.raises(HostError, match=r"scikit-image.*is not installed") as caught:
        sample_photos()
    assert "--no-deps scikit-image" in caught.value.fix


def test_a_wheel_without_the_photos_is_incomplete(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(metadata.PathDistribution, "locate_file", lambda _, path: tmp_path / path)
    with pytest.raises(HostError, match=r"chelsea\.png is missing"):
        sample_photos()
