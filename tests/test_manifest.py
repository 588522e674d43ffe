"""Manifests: written, read, refused, and held against the files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.manifest import Manifest, damaged, describe
from pipeline.repository import Repository
from provision.errors import RepositoryError
from provision.files import sha256
from provision.layout import Layout

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
MANIFEST = Manifest(
    model="tiny",
    version=3,
    architecture="tiny",
    fingerprint="f",
    created="2026-01-01T00:00:00+00:00",
    engine={"name": "onnxruntime"},
    weights={"kind": "pretrained"},
    max_batch_size=8,
    side=32,
    classes=1000,
    preprocessing={},
    verification={"cases": []},
    libraries={"onnx": "1"},
    photos={"a": "b"},
    files={"1/model.onnx": {"size": 1, "sha256": "0"}},
)


def test_reads_what_it_wrote(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(MANIFEST.to_text())
    assert Manifest.read(tmp_path / "manifest.json") == MANIFEST
    assert MANIFEST.pretrained


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file"),
        ("", "cannot be read"),
        (MANIFEST.to_text()[:-20], "cannot be read"),
        (b"\xff", "cannot be read"),
        (json.dumps(MANIFEST.to_json() | {"schema": 2}), "of schema 2, not 1"),
        (json.dumps(MANIFEST.to_json() | {"unknown": 2}), "unexpected keyword"),
        (json.dumps({"schema": 1}), "missing"),
    ],
)
def test_unreadable_one_says_what_to_do(
    tmp_path: Path, text: str | bytes | None, said: str
) -> None:
    file = tmp_path / "manifest.json"
    if text is not None:
        file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(RepositoryError, match=said) as caught:
        Manifest.read(file)
    assert str(file) in caught.value.what
    assert "--force" in caught.value.fix


@settings(deadline=None)
@given(anything | st.fixed_dictionaries({"schema": anything}))
def test_any_other_json_is_refused(tmp_path_factory: pytest.TempPathFactory, data: object) -> None:
    file = tmp_path_factory.getbasetemp() / "manifest.json"
    file.write_text(json.dumps(data))
    with pytest.raises(RepositoryError):
        Manifest.read(file)


def test_files_are_those_on_the_disk(layout: Layout, tiny: Manifest) -> None:
    folder = layout.models / "tiny"
    assert Repository(layout).latest("tiny") == tiny
    assert set(tiny.files) == {
        "1/model.onnx",
        "1/model.py",
        "1/reference.npz",
        "config.pbtxt",
        "labels.txt",
    }
    for name, facts in tiny.files.items():
        assert facts == {"size": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
    assert describe(folder, [folder / name for name in tiny.files]) == tiny.files


def test_damage_is_named(layout: Layout, tiny: Manifest) -> None:
    folder = layout.models / "tiny"
    assert damaged(tiny, folder) == []
    onnx = bytearray((folder / "1" / "model.onnx").read_bytes())
    onnx[5000] ^= 1
    (folder / "1" / "model.onnx").write_bytes(onnx)
    assert damaged(tiny, folder) == ["1/model.onnx"]
    (folder / "labels.txt").unlink()
    with (folder / "config.pbtxt").open("a") as config:
        config.write("\n")
    (folder / "1" / "model.py").unlink()
    (folder / "1" / "model.py").mkdir()
    assert set(damaged(tiny, folder)) == {
        "1/model.onnx",
        "1/model.py",
        "config.pbtxt",
        "labels.txt",
    }
