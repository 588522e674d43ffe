"""Python environments, made for real by uv from a small lock and an index of our own."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from test_bootstrap import Index
from test_storage import mounted

from provision import environments, toml
from provision.errors import DownloadError, EnvironmentBuildError, SlipwayError
from provision.layout import REPOSITORY, Layout

FACTS = """
[tiny]
purpose = "a test"
python = ">=3.10,<3.14"
libpython = false
size = "1 kB"
"""

ENSURE = """
import sys
from pathlib import Path
from provision import environments, failures
from provision.layout import Layout
environments._HERE = Path(sys.argv[1])
def main():
    environments.ensure(Layout(Path(sys.argv[2])), "tiny")
    return 0
sys.exit(failures.run(main, None))
"""


def make_wheel(folder: Path, version: str, *, size: int = 8) -> str:
    """Put a wheel with the module ``tiny`` and some random bytes into a folder; its lock."""
    info = f"tiny-{version}.dist-info"
    content = {
        "tiny.py": f"VERSION = {version!r}\n",
        "tiny.bin": os.urandom(size).hex(),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    lines = [f"{name},sha256={_record_hash(text)},{len(text)}\n" for name, text in content.items()]
    path = folder / f"tiny-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, text in content.items():
            wheel.writestr(name, text)
        wheel.writestr(f"{info}/RECORD", "".join(lines) + f"{info}/RECORD,,\n")
    return f"tiny=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def _record_hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


@dataclass(frozen=True)
class Host:
    """A root of its own, a lock of one package, and the index that has it."""

    layout: Layout
    facts: Path
    index: Index

    @property
    def prefix(self) -> Path:
        return self.layout.vendor / "environments" / "tiny"

    def lock(self, version: str, *, size: int = 8) -> None:
        """Lock a version, and have the index offer it."""
        line = make_wheel(self.index.wheels, version, size=size)
        (self.facts / "locks" / "tiny.txt").write_text(line)

    def spoil(self, version: str) -> None:
        """Lock a version of which the index has another file."""
        self.lock(version)
        make_wheel(self.index.wheels, version)

    def ensure(self) -> environments.Environment:
        return environments.ensure(self.layout, "tiny")

    def start(self) -> subprocess.Popen[str]:
        """Have another process make it."""
        return subprocess.Popen(
            [sys.executable, "-c", ENSURE, str(self.facts), str(self.layout.root)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def installed(self) -> str:
        """The version that the environment's own Python imports."""
        code = "import tiny, sys; print(tiny.VERSION, sys.prefix)"
        answer = subprocess.run(
            [self.prefix / "bin" / "python", "-c", code],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        version, prefix = answer.rstrip().split(maxsplit=1)
        assert prefix == str(self.prefix)
        return version

    def left_over(self) -> list[str]:
        return [p.name for p in self.prefix.parent.iterdir() if p.name != "tiny"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for uv: no two wheels here are equal, but asking interpreters takes it a second."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def host(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    wheels, facts = tmp_path / "wheels", tmp_path / "facts"
    wheels.mkdir()
    (facts / "locks").mkdir(parents=True)
    (facts / "environments.toml").write_text(FACTS)
    monkeypatch.setattr(environments, "_HERE", facts)
    for name in [name for name in os.environ if name.startswith("UV_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(cache))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Index(wheels) as index:
        monkeypatch.setenv("UV_DEFAULT_INDEX", index.url)
        thread = threading.Thread(target=index.serve_forever, args=(0.02,))
        thread.start()
        made = Host(Layout(tmp_path / "a root"), facts, index)
        made.lock("1.0")
        yield made
        index.may_send.set()
        index.shutdown()
        thread.join()


@pytest.fixture
def made(host: Host) -> Host:
    """A host with the environment."""
    host.ensure()
    return host


def refused_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_has_what_is_locked(host: Host) -> None:
    environment = host.ensure()
    assert environment.prefix == host.prefix
    assert host.installed() == "1.0"
    assert (environment.site_packages / "tiny.py").is_file()
    assert host.left_over() == []
    assert environments.ready(host.layout, "tiny") == environment


def test_second_time_nothing_is_done(made: Host) -> None:
    made.index.requests.clear()
    inode = made.prefix.stat().st_ino
    assert made.ensure().prefix == made.prefix
    assert made.prefix.stat().st_ino == inode
    assert made.index.requests == []


def test_changed_lock_makes_it_anew(made: Host) -> None:
    made.lock("2.0")
    assert environments.ready(made.layout, "tiny") is None
    made.ensure()
    assert made.installed() == "2.0"
    assert made.left_over() == []


def test_stamp_that_says_too_little_makes_it_anew(made: Host) -> None:
    file = made.prefix / "slipway.json"
    gone = json.loads(file.read_text())
    gone["interpreter"]["executable"] = "/not/there/python"
    for stamp in ("", "{}", "[]", '{"lock": 1, "interpreter": {}}', json.dumps(gone)):
        file.write_text(stamp)
        assert environments.ready(made.layout, "tiny") is None
    made.ensure()
    assert environments.ready(made.layout, "tiny") is not None
    assert made.installed() == "1.0"
    assert made.left_over() == []


def failing(host: Host, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the index fail in a way."""
    if way == "hash":
        host.spoil("2.0")
        return
    host.lock("2.0")
    if way == "missing":
        shutil.rmtree(host.index.wheels)
    elif way == "refused":
        monkeypatch.setenv("UV_DEFAULT_INDEX", f"http://127.0.0.1:{refused_port()}/simple")


@pytest.mark.parametrize(
    ("way", "kind", "said"),
    [
        ("hash", DownloadError, "not the one that was locked"),
        ("refused", DownloadError, "index does not answer"),
        ("missing", DownloadError, "lacks"),
    ],
)
def test_failed_build_leaves_the_old_one(
    made: Host,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    kind: type[SlipwayError],
    said: str,
) -> None:
    failing(made, way, monkeypatch)
    with pytest.raises(kind) as caught:
        made.ensure()
    error = caught.value
    print(error.what, error.cause, error.fix, sep="\n")
    assert said in error.cause
    assert error.log is not None
    assert "uv pip install" in error.log.read_text()
    assert made.installed() == "1.0"
    assert made.left_over() == []


def test_failed_first_build_leaves_nothing(host: Host) -> None:
    host.spoil("1.0")
    with pytest.raises(SlipwayError):
        host.ensure()
    assert host.left_over() == []
    assert not host.prefix.exists()
    host.lock("1.0")
    host.ensure()
    assert host.installed() == "1.0"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_ended_in_the_middle(made: Host, how: signal.Signals) -> None:
    """Killed or interrupted while uv downloads: uv goes too, and the next run starts afresh."""
    made.lock("2.0")
    made.index.asked_for_wheel.clear()
    made.index.may_send.clear()
    with made.start() as process:
        assert made.index.asked_for_wheel.wait(60)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(how)
        _, stderr = process.communicate(timeout=30)
    assert psutil.wait_procs(children, timeout=5)[1] == []
    if how == signal.SIGINT:
        assert (process.returncode, stderr) == (130, "interrupted\n")
        assert made.left_over() == []
    made.index.may_send.set()
    assert made.installed() == "1.0"
    made.ensure()
    assert made.installed() == "2.0"
    assert made.left_over() == []


def test_two_at_once_make_it_once(host: Host) -> None:
    host.index.may_send.clear()
    with host.start() as first:
        assert host.index.asked_for_wheel.wait(60)
        with host.start() as second:
            with pytest.raises(subprocess.TimeoutExpired):
                second.wait(1)
            host.index.may_send.set()
            answers = [process.communicate(timeout=60) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], answers
    assert sum(path.endswith(".whl") for path in host.index.requests) == 1
    assert host.installed() == "1.0"


def test_full_and_read_only_disk_leave_the_old_one(host: Host) -> None:
    with mounted(host.layout.root, "size=1m") as mount:
        ensure = (sys.executable, "-c", ENSURE, host.facts, host.layout.root)
        python = host.prefix / "bin" / "python"
        inside = mount.inside / python.relative_to(host.layout.root).parents[2]

        def version() -> str:
            return mount.run(python, "-c", "import tiny; print(tiny.VERSION)").stdout.strip()

        assert mount.run(*ensure).returncode == 0
        host.lock("2.0", size=2 << 20)
        full = mount.run(*ensure)
        assert full.returncode == 13, full.stderr
        assert "The disk or the quota is full" in full.stderr
        assert "fix: free some space there, or point SLIPWAY_ROOT" in full.stderr
        assert [path.name for path in inside.iterdir()] == ["tiny"]
        assert version() == "1.0"

        mount.read_only()
        refused = mount.run(*ensure)
        assert refused.returncode == 13
        assert "read-only file system\nfix: mount it writable" in refused.stderr
        assert version() == "1.0"


def test_programs_in_it_are_free_of_our_python(made: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = {
        "PYTHONPATH": "/elsewhere",
        "PYTHONHOME": "/elsewhere",
        "PYTHONSTARTUP": "/elsewhere",
        "PYTHONDONTWRITEBYTECODE": "1",
        "VIRTUAL_ENV": "/elsewhere",
    }
    for name, value in foreign.items():
        monkeypatch.setenv(name, value)
    environment = made.ensure()
    variables = environment.variables()
    assert "/elsewhere" not in variables.values()
    assert "PYTHONDONTWRITEBYTECODE" not in variables
    found = subprocess.run(
        ["python", "-c", "import sys, tiny; print(sys.prefix)"],
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == str(made.prefix)


def test_lock_of_every_environment_pins_every_file() -> None:
    """With --require-hashes nothing else is installed; no requirement lacks one."""
    for lock in sorted((REPOSITORY / "provision" / "locks").glob("*.txt")):
        requirements = lock.read_text().replace("\\\n", "").splitlines()
        for line in requirements:
            if line and not line.lstrip().startswith("#"):
                assert " --hash=sha256:" in line, f"{lock.name}: {line[:60]}"
                assert "==" in line


def test_every_environment_has_a_lock() -> None:
    facts = toml.load(REPOSITORY / "provision" / "environments.toml")
    assert all(environments.lock_file(name).is_file() for name in facts)
    assert EnvironmentBuildError.exit_code == 11
