"""The bootstrap, run for real: real environments, a real pip, and an index of our own."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import venv
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from provision import bootstrap, pip_wheel
from provision.errors import DownloadError
from provision.layout import REPOSITORY

# What :func:`pip_wheel.find_pip` looks for before it downloads one.
HOST_HAS_PIP = bool(find_spec("ensurepip") or find_spec("pip"))

NOXFILE = '''
import time
import nox

@nox.session(python=False)
def echo(session):
    """Print what was given."""
    print("given", session.posargs)

@nox.session(python=False)
def fail(session):
    session.error("on purpose")

@nox.session(python=False)
def wait(session):
    print("waiting", flush=True)
    time.sleep(60)
'''


class Index(http.server.ThreadingHTTPServer):
    """A package index for a folder of wheels, which misbehaves on demand."""

    daemon_threads = True

    def __init__(self, wheels: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.wheels = wheels
        self.requests: list[str] = []
        self.as_html = False
        self.password = ""
        self.truncate = 0
        self.asked_for_wheel = threading.Event()
        self.may_send = threading.Event()
        self.may_send.set()

    @property
    def address(self) -> str:
        """Its host and port."""
        return f"127.0.0.1:{self.server_port}"

    @property
    def url(self) -> str:
        """What pip calls the index."""
        return f"http://{self.address}/simple"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        index = self.server
        index.requests.append(self.path)
        folder, _, name = self.path.strip("/").rpartition("/")
        password = base64.b64encode(b"me:" + index.password.encode()).decode()
        if index.password and self.headers["Authorization"] != f"Basic {password}":
            self.send_error(401)
        elif folder == "simple":
            self.send_page(name)
        elif (index.wheels / name).is_file():
            index.asked_for_wheel.set()
            index.may_send.wait(60)
            self.send("application/octet-stream", (index.wheels / name).read_bytes())
        else:
            self.send_error(404)

    def send_page(self, project: str) -> None:
        prefix = project.replace("-", "_") + "-"
        found = [wheel.name for wheel in self.server.wheels.glob(f"{prefix}*")]
        if not found:
            self.send_error(404)
        elif self.server.as_html:
            links = "".join(f'<a href="../../files/{name}#x=1">{name}</a>' for name in found)
            self.send("text/html", f"<!DOCTYPE html><html><body>{links}</body></html>".encode())
        else:
            listed = [
                {"filename": name, "url": f"../../files/{name}", "hashes": {}} for name in found
            ]
            page = {"meta": {"api-version": "1.0"}, "name": project, "files": listed}
            self.send("application/vnd.pypi.simple.v1+json", json.dumps(page).encode())

    def send(self, kind: str, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.server.truncate:
            self.server.truncate -= 1
            data = data[:-1]
        self.wfile.write(data)

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            return  # the client was killed, as some tests intend

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the bootstrap installs, and the pip that it pins, from the real index."""
    folder = tmp_path_factory.mktemp("wheels")
    try:
        pip = pip_wheel.find_pip(tmp_path_factory.mktemp("pip"))
    except DownloadError as error:
        pytest.skip(f"no pip and no package index: {error}")
    locked = (REPOSITORY / "provision" / "locks" / "bootstrap.txt").read_text()
    pinned = f"pip=={pip_wheel.PIP_WHEEL.split('-')[1]} --hash=sha256:{pip_wheel.PIP_SHA256}"
    requirements = tmp_path_factory.mktemp("wanted") / "requirements.txt"
    requirements.write_text(f"{locked}\n{pinned}\n")
    result = subprocess.run(
        [
            *(sys.executable, "-I", pip.script, "download", "--no-deps", "--require-hashes"),
            *("--only-binary=:all:", "--requirement", requirements, "--dest", folder),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if result.returncode:
        pytest.skip(f"the package index cannot be used: {result.stderr[-400:]}")
    return folder


@pytest.fixture(scope="module")
def shared_index(wheels: Path) -> Iterator[Index]:
    with Index(wheels) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def index(shared_index: Index) -> Iterator[Index]:
    """The index, well-behaved at first and again afterwards."""
    shared_index.requests.clear()
    shared_index.asked_for_wheel.clear()
    yield shared_index
    shared_index.as_html = False
    shared_index.password = ""
    shared_index.truncate = 0
    shared_index.may_send.set()


def make_clone(folder: Path) -> Path:
    """What of this repository the bootstrap needs, at a path that needs quoting."""
    clone = folder / "a clone's"
    shutil.copytree(
        REPOSITORY / "provision", clone / "provision", ignore=shutil.ignore_patterns("__pycache__")
    )
    (clone / "noxfile.py").write_text(NOXFILE)
    return clone


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone whose requirements lack uv, which is most of their weight."""
    clone = make_clone(tmp_path)
    requirements = clone / "provision" / "locks" / "bootstrap.txt"
    every = requirements.read_text()
    requirements.write_text(re.sub(r"^uv==.*\n(?:[ ].*\n)+", "", every, flags=re.MULTILINE))
    return clone


def environment(url: str) -> dict[str, str]:
    """A user's environment whose pip knows one index."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return kept | {
        "NO_COLOR": "1",
        "NO_PROXY": "127.0.0.1",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": url,
        "PIP_NO_CACHE_DIR": "1",
        "PIP_NO_COMPILE": "1",
        "PIP_RETRIES": "1",
    }


def start(clone: Path, url: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "provision", *arguments],
        cwd=clone,
        env=environment(url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(
    clone: Path, url: str, *arguments: str, python: list[str | Path] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*(python or [sys.executable, "-m", "provision"]), *arguments],
        cwd=clone,
        env=environment(url),
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )


def stamp_of(clone: Path) -> Path:
    return clone / ".slipway" / "nox" / bootstrap._STAMP


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, shared_index: Index) -> Path:
    """A clone after its first call."""
    clone = make_clone(tmp_path_factory.mktemp("made"))
    result = run(clone, shared_index.url, "nox", "-l")
    assert result.returncode == 0, result.stderr
    assert "* echo -> Print what was given." in result.stdout
    assert "Installing nox and uv into" in result.stderr
    return clone


def test_second_call_goes_straight_to_nox(made: Path, index: Index) -> None:
    result = run(made, index.url, "nox", "-l")
    assert result.returncode == 0
    assert "Installing" not in result.stderr
    assert index.requests == []


def test_second_call_adds_little(made: Path, index: Index) -> None:
    program = made / ".slipway" / "nox" / "bin" / "nox"

    def fastest(python: list[str | Path]) -> float:
        times = []
        for _ in range(3):
            begin = time.monotonic()
            run(made, index.url, "--version", python=python)
            times.append(time.monotonic() - begin)
        return min(times)

    ours = fastest([sys.executable, "-m", "provision", "nox"])
    assert ours - fastest([program]) < 0.3


def test_arguments_are_passed_on_verbatim(made: Path, index: Index) -> None:
    result = run(made, index.url, "nox", "-s", "echo", "--", "-x", "--help", "a b", "--", "")
    assert result.returncode == 0
    assert "given ['-x', '--help', 'a b', '--', '']" in result.stdout
    assert "--no-venv" in run(made, index.url, "nox", "--help").stdout


def test_exit_code_is_nox_s(made: Path, index: Index) -> None:
    assert run(made, index.url, "nox", "-s", "fail").returncode == 1
    assert run(made, index.url, "nox", "-s", "unheard-of").returncode == 3


def test_process_becomes_nox(made: Path, index: Index) -> None:
    with start(made, index.url, "nox", "-s", "wait") as process:
        assert process.stdout
        assert process.stdout.readline() == "waiting\n"
        command = Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")
        assert str(made / ".slipway" / "nox" / "bin" / "nox") in command
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_installs_what_is_locked_and_nothing_else(made: Path, wheels: Path) -> None:
    packages = (made / ".slipway" / "nox" / "lib").glob("python*/site-packages/*.dist-info")
    names = {path.name.removesuffix(".dist-info") for path in packages}
    wanted = {"-".join(wheel.name.split("-")[:2]) for wheel in wheels.iterdir()}
    assert names == wanted - {"-".join(pip_wheel.PIP_WHEEL.split("-")[:2])}


def test_trusts_an_intact_environment_alone(made: Path, tmp_path: Path) -> None:
    place = made / ".slipway" / "nox"
    requirements = made / "provision" / "locks" / "bootstrap.txt"
    stamp = bootstrap._stamp(place, requirements)
    assert bootstrap._is_whole(place, stamp)

    other_requirements = tmp_path / "bootstrap.txt"
    other_requirements.write_text(requirements.read_text() + "# changed\n")
    assert not bootstrap._is_whole(place, bootstrap._stamp(place, other_requirements))

    moved = tmp_path / "nox"
    shutil.copytree(place, moved, symlinks=True)
    assert not bootstrap._is_whole(moved, bootstrap._stamp(moved, requirements))

    python = moved / "bin" / "python"
    assert bootstrap._is_whole(moved, stamp)
    python.unlink()
    python.symlink_to("/nonexistent/python")
    assert not bootstrap._is_whole(moved, stamp)


def test_ctrl_c_leaves_nothing_to_trust(clone: Path, index: Index) -> None:
    index.may_send.clear()
    with start(clone, index.url, "nox", "--version") as process:
        assert index.asked_for_wheel.wait(30)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted"
    assert "Traceback" not in errors
    assert not stamp_of(clone).exists()


@pytest.mark.skipif(not HOST_HAS_PIP, reason="no pip here: it is downloaded by the one killed")
def test_pip_that_outlives_a_kill_is_waited_for(clone: Path, index: Index) -> None:
    index.may_send.clear()
    with start(clone, index.url, "nox", "--version") as process:
        assert index.asked_for_wheel.wait(30)
        process.kill()
    assert not stamp_of(clone).exists()
    half_made = clone / ".slipway" / "nox" / "half-made"
    half_made.touch()
    with start(clone, index.url, "nox", "--version") as process:
        assert process.stderr
        assert process.stderr.readline().startswith("Waiting for another run")
        index.may_send.set()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert stamp_of(clone).exists()
    assert not half_made.exists()


def test_package_that_is_not_the_locked_one(clone: Path, index: Index) -> None:
    requirements = clone / "provision" / "locks" / "bootstrap.txt"
    requirements.write_text(re.sub("sha256:.{8}", "sha256:00000000", requirements.read_text()))
    result = run(clone, index.url, "nox", "--version")
    assert result.returncode == 12
    assert "A package is not the one that was locked" in result.stderr
    assert not stamp_of(clone).exists()


def test_index_that_does_not_answer(clone: Path) -> None:
    result = run(clone, "http://127.0.0.1:1/simple", "nox", "--version")
    assert result.returncode == 12
    if HOST_HAS_PIP:
        assert "The package index does not answer" in result.stderr
        assert f"log: {clone}/.slipway/nox.log" in result.stderr
    else:
        assert "cannot download http://127.0.0.1:1/simple/pip/" in result.stderr
    assert not stamp_of(clone).exists()


def test_index_that_lacks_a_package(clone: Path, index: Index) -> None:
    requirements = clone / "provision" / "locks" / "bootstrap.txt"
    requirements.write_text(f"unheard-of==1 --hash=sha256:{'0' * 64}\n")
    result = run(clone, index.url, "nox", "--version")
    assert result.returncode == 12
    assert "lacks a package" in result.stderr


def test_folder_that_cannot_be_made(clone: Path, index: Index) -> None:
    (clone / ".slipway").touch()
    result = run(clone, index.url, "nox", "--version")
    assert result.returncode == 11
    assert f"fix: remove {clone}/.slipway" in result.stderr


WITHOUT_ENSUREPIP = (
    "import sys; sys.modules['ensurepip'] = None\n"
    "from provision import cli, failures; sys.exit(failures.run(cli.main, None))"
)


@pytest.mark.parametrize("has_pip", [False, True], ids=["no-pip", "host-pip"])
def test_python_without_ensurepip(
    clone: Path, index: Index, tmp_path: Path, *, has_pip: bool
) -> None:
    host = tmp_path / "host"
    venv.EnvBuilder(symlinks=True).create(host)
    if has_pip:
        (packages,) = host.glob("lib/python*/site-packages")
        with zipfile.ZipFile(index.wheels / pip_wheel.PIP_WHEEL) as wheel:
            wheel.extractall(packages)
    result = run(
        clone, index.url, "nox", "--version", python=[host / "bin/python", "-c", WITHOUT_ENSUREPIP]
    )
    assert result.returncode == 0, result.stderr
    assert ("of this host" if has_pip else "downloaded") in result.stderr
    assert f"/files/{pip_wheel.PIP_WHEEL}" not in index.requests or not has_pip
    assert not list((clone / ".slipway" / "nox").glob("*.whl"))


@pytest.mark.parametrize("kind", ["json", "html", "password", "truncated-once"])
def test_downloads_pip(
    kind: str, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.as_html = kind == "html"
    index.truncate = kind == "truncated-once"
    index.password = "p@ss" if kind == "password" else ""
    login = "me:p%40ss@" if kind == "password" else ""
    monkeypatch.setenv("PIP_INDEX_URL", f"http://{login}{index.address}/simple/")
    wheel = pip_wheel.download_pip(tmp_path)
    assert wheel.read_bytes() == (index.wheels / pip_wheel.PIP_WHEEL).read_bytes()


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("http://{}/nowhere", "404"),
        ("http://me:secret@127.0.0.1:1/simple", "refused"),
        ("not an address", "unknown url type"),
    ],
)
def test_pip_cannot_be_downloaded(
    path: str, what: str, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", path.format(index.address))
    with pytest.raises(DownloadError) as caught:
        pip_wheel.download_pip(tmp_path)
    story = f"{caught.value.what} {caught.value.cause} {caught.value.fix}"
    assert what in story
    assert "PIP_INDEX_URL" in story
    assert "secret" not in story
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["tampered", "missing"])
def test_pip_is_not_the_pinned_one(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    name = pip_wheel.PIP_WHEEL if kind == "tampered" else "pip-1.0-py3-none-any.whl"
    (wheels / name).write_bytes(b"not pip")
    with Index(wheels) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("PIP_INDEX_URL", server.url)
        with pytest.raises(DownloadError) as caught:
            pip_wheel.download_pip(tmp_path)
        server.shutdown()
        thread.join()
    if kind == "tampered":
        got = hashlib.sha256(b"not pip").hexdigest()
        assert f"Expected sha256 {pip_wheel.PIP_SHA256}, got {got}" in caught.value.cause
    else:
        assert caught.value.what == f"{server.url} does not list {pip_wheel.PIP_WHEEL}"
    assert not (tmp_path / pip_wheel.PIP_WHEEL).exists()


def test_unreadable_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CERT", "/nonexistent.pem")
    with pytest.raises(DownloadError, match=r"PIP_CERT, /nonexistent\.pem"):
        pip_wheel.download_pip(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "code", "printed"),
    [
        (["--help"], 0, "run nox, which is installed into the clone on first use"),
        ([], 2, "fix: see `python3 -m provision --help`"),
        (["unheard-of"], 2, "error: argument COMMAND: invalid choice: 'unheard-of'"),
        (["-s", "smoke"], 2, "error: "),
    ],
)
def test_command_line(clone: Path, arguments: list[str], code: int, printed: str) -> None:
    # -S: without site-packages, as on a bare host.
    result = run(clone, "", *arguments, python=[sys.executable, "-S", "-m", "provision"])
    assert result.returncode == code
    assert printed in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
