"""A pip to install with, where a host may have none: Python's own, the host's, or the pinned one.

Needs the standard library alone.
"""

from __future__ import annotations

import hashlib
import html
import http.client
import importlib.metadata
import json
import os
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from provision.errors import DownloadError

PIP_WHEEL = "pip-26.3-py3-none-any.whl"
PIP_SHA256 = "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"
PYPI = "https://pypi.org/simple"

_TIMEOUT_SECONDS = 30
_TRIES = 3
_LARGEST_BYTES = 32 << 20


@dataclass(frozen=True)
class Pip:
    """Something that a Python can run as pip, without having it installed.

    Attributes:
        script: What to give to that Python.
        origin: Its version and where it is from.
    """

    script: Path
    origin: str


def find_pip(folder: Path) -> Pip:
    """A pip: Python's own, or the host's, or else one downloaded into a folder.

    Raises:
        DownloadError: It has to be downloaded and cannot be.
    """
    ensurepip = find_spec("ensurepip")
    if ensurepip and ensurepip.origin:
        for wheel in Path(ensurepip.origin).parent.glob("_bundled/pip-*.whl"):
            return Pip(wheel / "pip", f"{wheel.name.split('-')[1]} from Python's ensurepip")
    installed = find_spec("pip")
    if installed and installed.origin:
        # What `pip --python` runs inside another environment, since pip 22.3.
        runner = Path(installed.origin).parent / "__pip-runner__.py"
        if runner.is_file():
            return Pip(runner, f"{importlib.metadata.version('pip')} of this host")
    wheel = download_pip(folder)
    return Pip(wheel / "pip", f"{wheel.name.split('-')[1]}, downloaded")


def download_pip(folder: Path) -> Path:
    """The wheel of the pinned pip, from PIP_INDEX_URL or PyPI by default, put into a folder.

    Raises:
        DownloadError: The index cannot be read, or has no such file, or another under its name.
    """
    index = _Index(os.environ.get("PIP_INDEX_URL") or PYPI)
    url, page = index.get(f"{index.url}/pip/")
    link = _find_link(page, PIP_WHEEL)
    if link is None:
        raise DownloadError(f"{index.url} does not list {PIP_WHEEL}", fix=index.fix)
    _, wheel = index.get(urllib.parse.urljoin(url, link))
    digest = hashlib.sha256(wheel).hexdigest()
    if digest != PIP_SHA256:
        raise DownloadError(
            f"{index.url} has another {PIP_WHEEL} than the one pinned here",
            cause=f"Expected sha256 {PIP_SHA256}, got {digest}; a mirror or a proxy may alter it",
            fix=index.fix,
        )
    path = folder / PIP_WHEEL
    path.write_bytes(wheel)
    return path


def _find_link(page: bytes, name: str) -> str | None:
    """The address of a file on an index page: JSON (PEP 691), or the HTML of older mirrors."""
    text = page.decode(errors="replace")
    try:
        listed = json.loads(text)["files"]
        return next((str(file["url"]) for file in listed if file["filename"] == name), None)
    except (ValueError, KeyError, TypeError):
        # Good enough without a parser, as the file's own digest is what is believed.
        match = re.search(rf'href\s*=\s*"([^"]*{re.escape(name)}(?:#[^"]*)?)"', text)
        return html.unescape(match[1]) if match else None


class _Index:
    """A package index, with the credentials in its address kept out of every message."""

    fix = (
        "set PIP_INDEX_URL to an index that this host reaches and you trust (https_proxy and "
        "PIP_CERT, too, are heeded), or have python3-venv installed, which brings a pip along"
    )

    def __init__(self, address: str) -> None:
        parts = urllib.parse.urlsplit(address)
        host = parts.netloc.rpartition("@")[2]
        self.url = urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", "")).rstrip("/")
        passwords = urllib.request.HTTPPasswordMgrWithPriorAuth()
        if parts.username:
            passwords.add_password(
                None,
                f"{parts.scheme}://{host}/",
                urllib.parse.unquote(parts.username),
                urllib.parse.unquote(parts.password or ""),
                is_authenticated=True,
            )
        try:
            tls = ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or None)
        except OSError as error:
            raise DownloadError(
                f"cannot read the certificates in PIP_CERT, {os.environ.get('PIP_CERT')}: {error}",
                fix="set PIP_CERT to a file of certificates, or unset it",
            ) from error
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPBasicAuthHandler(passwords),
            urllib.request.HTTPSHandler(context=tls),
        )

    def get(self, url: str) -> tuple[str, bytes]:
        """The address that answered in the end, and its content; transient failures are retried."""
        accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.1, */*;q=0.01"
        cause = ""
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(attempt)
            try:
                request = urllib.request.Request(url, headers={"Accept": accept})  # noqa: S310
                with self._opener.open(request, timeout=_TIMEOUT_SECONDS) as response:
                    data: bytes = response.read(_LARGEST_BYTES)
                    if missing := getattr(response, "length", 0):
                        raise http.client.IncompleteRead(data, missing)
                    return response.url, data
            except urllib.error.HTTPError as error:
                cause = f"It answers {error.code} {error.reason}"
                error.close()
                if error.code < http.HTTPStatus.INTERNAL_SERVER_ERROR:
                    break
            except ValueError as error:  # no address at all
                cause = str(error)
                break
            except (OSError, http.client.HTTPException) as error:
                cause = str(getattr(error, "reason", "") or error or type(error).__name__)
        raise DownloadError(f"cannot download {url}", cause=cause, fix=self.fix)
