"""The root: where it is, and where it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from provision.errors import UsageError
from provision.layout import Layout


def test_the_root_is_in_the_home_folder_unless_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLIPWAY_ROOT", raising=False)
    assert Layout.from_environment().root == Path.home() / "slipway"
    monkeypatch.setenv("SLIPWAY_ROOT", "~/elsewhere")
    assert Layout.from_environment().models == Path.home() / "elsewhere" / "models"


def test_a_relative_root_is_seen_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLIPWAY_ROOT", "root")
    assert Layout.from_environment().root == tmp_path / "root"


@pytest.mark.parametrize("root", ["~nobody-of-that-name/root", "/tmp/a:b"])  # noqa: S108 - not written to
def test_a_root_that_cannot_be_is_refused(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIPWAY_ROOT", root)
    with pytest.raises(UsageError) as caught:
        Layout.from_environment()
    assert "SLIPWAY_ROOT" in caught.value.fix
