"""Downloading a file that is pinned by its SHA-256: resumed where it broke off, then verified."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

import requests

from provision import interruption
from provision.errors import DownloadError
from provision.files import fsync_folder, sha256

_TRIES = 4
_TIMEOUT_SECONDS = 60
_BLOCK_BYTES = 1 << 16  # what may be lost of a connection that breaks off
_SHOWN_BYTES = 60
_MIRROR = "check the network, or take it from a mirror: --mirror DIR_OR_URL"


def download(
    there: str, expected: str, target: Path, progress: Callable[[str], None] = lambda _: None
) -> None:
    """Put a file in its place, once it is whole and the one that was pinned.

    What has come so far stays in ``TARGET.part``, and the next attempt goes on from there. A server
    that answers 4xx is not asked again: it would say the same.

    Args:
        there: Its address, or its path on this host.
        expected: Its SHA-256.
        target: Where to.
        progress: Told how much has come.

    Raises:
        DownloadError: It cannot be had, or is another file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    local = there.removeprefix("file://")
    if "://" in local:
        _transfer(there, part, progress)
    else:
        _copy(Path(local), part)
    got = sha256(part)
    if got != expected:
        shown = _first_bytes(part)
        part.unlink()
        raise DownloadError(
            f"{there} is not the file that was pinned",
            cause=f"Expected sha256 {expected}, got {got}; it begins with {shown}",
            fix="if that is a page or a message, sign in to your proxy or take another mirror; "
            "if the file was published anew, its new sha256 belongs into provision/releases.toml",
        )
    part.replace(target)
    fsync_folder(target.parent)


def _copy(source: Path, part: Path) -> None:
    if not source.is_file():
        raise DownloadError(
            f"there is no {source}",
            cause="The mirror lacks it",
            fix="put it there; its address and sha256 are in provision/releases.toml",
        )
    shutil.copyfile(source, part)


def _transfer(url: str, part: Path, progress: Callable[[str], None]) -> None:
    cause = ""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(2**attempt / 4)
        try:
            _go_on(url, part, progress)
        except requests.HTTPError as error:
            cause = f"It answers {error.response.status_code} {error.response.reason}"
            if error.response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
                break
        except requests.RequestException as error:
            cause = str(error)
        else:
            return
    raise DownloadError(f"{url} cannot be downloaded", cause=cause, fix=_MIRROR)


def _go_on(url: str, part: Path, progress: Callable[[str], None]) -> None:
    """Ask for what is not there yet, and append it.

    https://www.rfc-editor.org/rfc/rfc9110#name-range-requests
    """
    have = part.stat().st_size if part.is_file() else 0
    wanted = {"Range": f"bytes={have}-"} if have else {}
    # Compressed on the way it would be another file, and have another length.
    headers = {"Accept-Encoding": "identity", **wanted}
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_SECONDS) as answer:
        if answer.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # it is all there
        answer.raise_for_status()
        goes_on = answer.status_code == HTTPStatus.PARTIAL_CONTENT
        length = int(answer.headers.get("Content-Length") or 0)
        with part.open("ab" if goes_on else "wb") as file:
            for block in answer.iter_content(_BLOCK_BYTES):
                interruption.check()
                file.write(block)
                progress(f"{url.rpartition('/')[2]}, {file.tell() >> 20} MiB")
            if length and file.tell() < length + (have if goes_on else 0):
                raise requests.ConnectionError("the connection was lost before the end")


def _first_bytes(path: Path) -> str:
    with path.open("rb") as file:
        return repr(file.read(_SHOWN_BYTES))[1:]
