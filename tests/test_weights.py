"""Which weights are asked for; loading them is tested where torch is, in test_export."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.weights import WeightsSpec
from provision.errors import UsageError, WeightsError
from provision.layout import REPOSITORY


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("IMAGENET1K_V1", "pretrained", "IMAGENET1K_V1"),
        ("IMAGENET1K_SWAG_E2E_V1", "pretrained", "IMAGENET1K_SWAG_E2E_V1"),
        ("DEFAULT", "pretrained", "DEFAULT"),
        ("random", "random", "0"),
        ("random:7", "random", "7"),
        ("random:007", "random", "7"),
        ("auto", "auto", "IMAGENET1K_V1"),
    ],
)
def test_what_can_be_asked_for(text: str, kind: str, value: str) -> None:
    assert WeightsSpec.parse(text) == WeightsSpec(kind, value)


def test_file_is_known_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "IMAGENET1K_V1").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    spec = WeightsSpec.parse("IMAGENET1K_V1")
    assert spec == WeightsSpec("file", str(tmp_path / "IMAGENET1K_V1"))
    assert spec.to_json()["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert str(spec) == str(tmp_path / "IMAGENET1K_V1")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert WeightsSpec.parse("~/IMAGENET1K_V1") == spec


@pytest.mark.parametrize("text", ["not/there", "there-is-no.pth", "/", "~nobody-here/x.pth"])
def test_missing_file(text: str) -> None:
    with pytest.raises(WeightsError, match="there is no weights file"):
        WeightsSpec.parse(text)


@pytest.mark.parametrize("text", ["", "imagenet", "random:", "random:-1", "random:x", "x" * 5000])
def test_what_names_nothing(text: str) -> None:
    with pytest.raises(UsageError, match="names no weights") as caught:
        WeightsSpec.parse(text)
    assert "random:SEED" in caught.value.fix


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_file_of_somebody_else(tmp_path: Path) -> None:
    file = Path("/dev/shm") / f"slipway-{os.getpid()}.pth"  # noqa: S108 - where nobody gets to
    file.touch(mode=0o600)
    code = (
        "import os, sys; from pipeline.weights import WeightsSpec; os.setuid(65534)\n"
        "try: WeightsSpec.parse(sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__, error.fix)"
    )
    try:
        answer = subprocess.run(
            [sys.executable, "-c", code, file],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        file.unlink()
    assert answer.stdout == f"WeightsError make it readable: `chmod +r {file}`\n"
    assert tmp_path.is_dir()


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=400))
def test_any_text_is_understood_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError, WeightsError):
        assert WeightsSpec.parse(text).kind in {"pretrained", "random", "auto", "file"}


@settings(deadline=None)
@given(st.integers(0, 10**19 - 1))
def test_every_seed_is_torchs(seed: int) -> None:
    spec = WeightsSpec.parse(f"random:{seed}")
    assert int(spec.value) == seed < 2**64
    assert WeightsSpec.parse(str(spec)) == spec


@settings(deadline=None)
@given(st.from_regex(r"[A-Z][A-Z0-9_]*", fullmatch=True))
def test_pretrained_name_is_said_as_it_was_asked(name: str) -> None:
    spec = WeightsSpec.parse(name)
    assert (spec.kind, str(spec)) == ("pretrained", name)
