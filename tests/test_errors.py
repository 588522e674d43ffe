"""Errors: their codes, their way from one process to another, and what the disk's become."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provision.errors import SlipwayError, all_errors, storage_error

texts = st.text(st.characters(codec="utf-8"))
paths = st.none() | texts.filter(lambda text: text not in {"", "."}).map(Path)


def test_exit_codes_tell_the_errors_apart() -> None:
    codes = [kind.exit_code for kind in all_errors()]
    assert len(codes) == len(set(codes))
    assert all(0 < code < 128 or code == 130 for code in codes)
    assert all(kind.__doc__ for kind in all_errors())


@given(st.sampled_from(all_errors()), texts, texts, texts, paths)
def test_error_survives_the_way_to_another_process(
    kind: type[SlipwayError], what: str, fix: str, cause: str, log: Path | None
) -> None:
    sent = kind(what, fix=fix, cause=cause, log=log)
    got = SlipwayError.from_json(json.loads(json.dumps(sent.to_json())))
    assert type(got) is kind
    assert (str(got), got.what, got.fix, got.cause, got.log) == (what, what, fix, cause, log)


def test_unknown_error_is_still_one() -> None:
    sent = SlipwayError("it failed", fix="do this").to_json() | {"error": "NewerError"}
    assert type(SlipwayError.from_json(sent)) is SlipwayError


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "no space left on device"),
        (errno.EDQUOT, "disk quota exceeded"),
        (errno.EROFS, "read-only file system"),
        (errno.EACCES, "permission denied"),
        (errno.EPERM, "operation not permitted"),
    ],
)
def test_what_the_disk_refuses_is_a_storage_error(code: int, reason: str) -> None:
    error = storage_error(OSError(code, os.strerror(code), "/a/file"))
    assert error is not None
    assert error.what == f"cannot write /a/file: {reason}"
    assert re.search(r"\bSLIPWAY_ROOT\b", error.fix)


def test_storage_error_names_the_file_it_knows() -> None:
    full = errno.ENOSPC, "No space left on device"
    named = storage_error(OSError(*full), Path("/fallback"))
    target = storage_error(OSError(*full, "/from", None, "/to"), Path("/fallback"))
    nothing = storage_error(OSError(*full))
    assert named is not None
    assert target is not None
    assert nothing is not None
    assert "/fallback" in named.what
    assert "/to" in target.what
    assert "a file under the root" in nothing.what


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EXDEV, errno.EPIPE, None])
def test_other_failures_are_not_the_disks(code: int | None) -> None:
    assert storage_error(OSError(code, "x") if code else OSError("x")) is None


def test_storage_error_is_what_a_real_full_device_gives() -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        Path("/dev/full").write_text("x")
    error = storage_error(caught.value, Path("/dev/full"))
    assert error is not None
    assert error.what == "cannot write /dev/full: no space left on device"
