"""Bringing sources into the mirror: real git and real HTTP, from repositories in small."""

from __future__ import annotations

import contextlib
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st
from upstream import AGENT, COMPONENTS, NUMBERS, RELEASE, TRITON, Upstream

from provision import mirror, releases
from provision.download import download
from provision.errors import DownloadError, UsageError
from provision.fetch_sources import fetch, mirror_of, verify_archives
from provision.files import sha256
from provision.layout import Layout
from provision.mirror import Mirror, Pin
from provision.sources import Survey, Wanted, survey, wanted

Request: TypeAlias = http.server.BaseHTTPRequestHandler
FEATURES = frozenset({"server", "http", "metrics", "checksum"})
SERVER = f"https://github.com/{TRITON}/server.git"


INTERRUPTED = """
import sys
from pathlib import Path
from provision import failures, layout, releases
from provision.fetch_sources import fetch
from provision.sources import Wanted
releases.FACTS, releases.LOCK = Path(sys.argv[1]), Path(sys.argv[2])
def main():
    archives = tuple(s for s in releases.release("99.01").sources if s.url)
    fetch(layout.Layout.from_environment(), Wanted((), archives), sys.argv[3], what="a test")
    return 0
sys.exit(failures.run(main, None))
"""


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    """The repositories, which no test changes."""
    return Upstream.create(tmp_path_factory.mktemp("upstream") / "mirror")


@pytest.fixture
def upstream(originals: Upstream, tmp_path: Path) -> Upstream:
    return originals.copy(tmp_path / "upstream")


@pytest.fixture
def root(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "root")


@pytest.fixture
def takes(upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wanted]:
    """What a build of the release in small takes."""
    facts, lock = upstream.facts(tmp_path / "facts")
    monkeypatch.setattr(releases, "FACTS", facts)
    monkeypatch.setattr(releases, "LOCK", lock)
    releases.catalogue.cache_clear()
    yield wanted(releases.release(RELEASE), releases.catalogue(), FEATURES)
    releases.catalogue.cache_clear()


@contextlib.contextmanager
def serving(folder: Path, get: Callable[[Request], bool]) -> Iterator[str]:
    """The files of a folder over HTTP on loopback, where `get` does not answer otherwise."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def do_GET(self) -> None:
            if not get(self):
                super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def git_daemon(upstream: Upstream) -> Iterator[str]:
    """The same repositories over git's own protocol."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["git", "daemon", "--export-all", "--reuseaddr", "--listen=127.0.0.1"]
    command += [f"--port={port}", f"--base-path={upstream.folder}", str(upstream.folder)]
    daemon = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        time.sleep(0.05)
    yield f"git://127.0.0.1:{port}"
    subprocess.run(["pkill", "-P", str(daemon.pid)], check=False)
    daemon.terminate()
    daemon.wait()


def bring(root: Layout, takes: Wanted, upstream: Upstream) -> Survey:
    return fetch(root, takes, str(upstream.folder), what="a test")


def clones(folder: Path, url: str, ref: str, settings: list[tuple[str, str]]) -> Path:
    """Clone with nothing but the settings of a build."""
    target = folder / "clone"
    pairs = [word for key, value in settings for word in ("-c", f"{key}={value}")]
    command = ["git", *pairs, "clone", "--quiet", "--recursive", "--depth=1", "-b", ref, url]
    subprocess.run([*command, str(target)], check=True, capture_output=True)
    return target


def test_everything_comes_pinned_with_the_submodules_that_are_read(
    root: Layout, takes: Wanted, upstream: Upstream
) -> None:
    found = bring(root, takes, upstream)
    assert found.complete
    assert found.skipped == ("third_party/unread",)
    assert {pin.url.removeprefix("https://github.com/") for pin in found.commits} == {
        *(f"{TRITON}/{n}.git" for n in (*COMPONENTS, AGENT) if n != "client"),
        *("nlohmann/json.git", "grpc/grpc.git", "c-ares/c-ares.git", "google/googletest.git"),
    }
    for pin, commit in found.commits.items():
        assert commit == upstream.commit(pin.url.removeprefix("https://github.com/")[:-4])
    numbers = mirror_of(root).folder / NUMBERS
    assert sha256(numbers) == takes.archives[0].sha256


def test_a_second_time_nothing_is_asked_for(
    root: Layout, takes: Wanted, upstream: Upstream, capsys: pytest.CaptureFixture[str]
) -> None:
    bring(root, takes, upstream)
    capsys.readouterr()
    again = fetch(root, takes, None, what="a test")  # its own addresses are out of reach
    assert again.complete
    assert "none came now" in capsys.readouterr().out


def test_a_build_clones_from_it_by_environment_alone(
    root: Layout, takes: Wanted, upstream: Upstream, tmp_path: Path
) -> None:
    found = bring(root, takes, upstream)
    settings = mirror_of(root).settings(found.skipped)
    clone = clones(tmp_path, "https://github.com/grpc/grpc.git", "v1.1", settings)
    assert (clone / "third_party" / "cares" / "cares.cc").is_file()
    assert list((clone / "third_party" / "unread").iterdir()) == []


def test_what_is_not_in_it_cannot_be_cloned(
    root: Layout, takes: Wanted, upstream: Upstream, tmp_path: Path
) -> None:
    bring(root, takes, upstream)
    settings = mirror_of(root).settings()
    for url in ("https://github.com/no/such.git", "https://example.invalid/no/such.git"):
        with pytest.raises(subprocess.CalledProcessError) as caught:
            clones(tmp_path, url, "main", settings)
        said = caught.value.stderr.decode()
        assert "does not appear to be a git repository" in said or "not allowed" in said


def test_a_copy_of_it_is_a_mirror_again(
    root: Layout, takes: Wanted, upstream: Upstream, tmp_path: Path
) -> None:
    bring(root, takes, upstream)
    other = Layout(tmp_path / "other")
    found = fetch(other, takes, str(mirror_of(root).folder), what="a test")
    assert found.complete


def test_from_repositories_that_are_asked_over_a_network(
    root: Layout, takes: Wanted, git_daemon: str
) -> None:
    repositories = Wanted(takes.pins, ())
    found = fetch(root, repositories, git_daemon, what="a test")
    assert found.complete
    repository = mirror_of(root).repository(SERVER)
    assert (
        subprocess.check_output(
            ["git", "-C", repository, "rev-list", "--count", f"r{RELEASE}"], text=True
        )
        == "1\n"
    )


def test_a_branch_that_moved_is_shown_and_not_taken(
    root: Layout, takes: Wanted, upstream: Upstream, git_daemon: str
) -> None:
    upstream.put(f"{TRITON}/core", "core.cc", "// rewritten\n")
    upstream.git(f"{TRITON}/core", "commit", "--quiet", "--amend", "--message", "rewritten")
    upstream.git(f"{TRITON}/core", "checkout", "--quiet", "--orphan", "new")
    upstream.git(f"{TRITON}/core", "commit", "--quiet", "--message", "without the past")
    upstream.git(f"{TRITON}/core", "branch", "--force", f"r{RELEASE}")
    upstream.git(f"{TRITON}/core", "branch", "-D", "main")
    upstream.git(f"{TRITON}/core", "reflog", "expire", "--expire=now", "--all")
    upstream.git(f"{TRITON}/core", "gc", "--quiet", "--prune=now")
    with pytest.raises(DownloadError, match="no longer gives") as caught:
        fetch(root, Wanted(takes.pins, ()), git_daemon, what="a test")
    now = upstream.commit(f"{TRITON}/core", "new")
    assert caught.value.cause == f"r{RELEASE} has moved to {now}"
    assert "--take-moved" in caught.value.fix


def lose(upstream: Upstream, name: str, path: str) -> None:
    """Take a file's content out of a repository, which then still looks whole."""
    blob = upstream.git(name, "rev-parse", f"HEAD:{path}")
    objects = upstream.repository(name) / ".git" / "objects"
    (objects / blob[:2] / blob[2:]).unlink()


def test_a_repository_that_only_looks_whole_is_refused(
    root: Layout, takes: Wanted, upstream: Upstream
) -> None:
    lose(upstream, "nlohmann/json", "json.cc")
    with pytest.raises(DownloadError, match=r"is not whole: of commit \w+ it lacks json\.cc"):
        bring(root, takes, upstream)
    assert not mirror_of(root).commit(next(p for p in takes.pins if "json" in p.url))


def test_what_no_build_reads_may_be_lacking(
    root: Layout, takes: Wanted, upstream: Upstream
) -> None:
    lose(upstream, f"{TRITON}/server", "qa/large.txt")
    assert bring(root, takes, upstream).complete


def test_whatever_fails_the_others_come(root: Layout, takes: Wanted, upstream: Upstream) -> None:
    (upstream.folder / NUMBERS).write_text("<html>Please sign in</html>")
    with pytest.raises(DownloadError, match="is not the file that was pinned") as caught:
        bring(root, takes, upstream)
    assert "it begins with '<html>Please sign in</html>'" in caught.value.cause
    found = survey(mirror_of(root), takes)
    assert (found.missing, len(found.archives)) == ((), 1)


def test_an_archive_that_was_altered_later_is_refused(
    root: Layout, takes: Wanted, upstream: Upstream
) -> None:
    bring(root, takes, upstream)
    path = mirror_of(root).folder / NUMBERS
    verify_archives(mirror_of(root), takes.archives)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DownloadError, match="has changed since it was fetched"):
        verify_archives(mirror_of(root), takes.archives)


def test_a_mirror_that_lacks_a_repository_says_which(
    root: Layout, takes: Wanted, upstream: Upstream
) -> None:
    subprocess.run(["rm", "-r", upstream.repository("nlohmann/json")], check=True)
    with pytest.raises(DownloadError, match=r"no repository in .*nlohmann/json\.git") as caught:
        bring(root, takes, upstream)
    assert "git clone --mirror" in caught.value.fix


def test_a_mirror_that_is_none_is_wrong_usage(root: Layout, takes: Wanted) -> None:
    with pytest.raises(UsageError, match="no mirror in /no/such"):
        fetch(root, takes, "/no/such", what="a test")


def test_what_is_not_locked_is_taken_and_said(
    root: Layout, takes: Wanted, upstream: Upstream, capsys: pytest.CaptureFixture[str]
) -> None:
    loose = Pin("https://github.com/nlohmann/json.git", "v1.0")
    found = fetch(root, Wanted((loose,), ()), str(upstream.folder), what="a test")
    assert found.commits[loose] == upstream.commit("nlohmann/json", "v1.0")
    assert "v1.0 is not locked; it was taken as it is there" in capsys.readouterr().out
    del takes


def test_killed_at_work_it_goes_on_with_the_rest(
    root: Layout, takes: Wanted, upstream: Upstream
) -> None:
    half = Wanted(takes.pins[:3], ())
    bring(root, half, upstream)
    torn = mirror_of(root).repository(SERVER) / "objects" / "pack" / "tmp_pack_abc"
    torn.write_text("half")
    names = mirror_of(root).repository(takes.pins[0].url)
    subprocess.run(["git", "-C", names, "update-ref", "-d", f"refs/tags/r{RELEASE}"], check=True)
    assert survey(mirror_of(root), half).missing == takes.pins[:1]
    assert bring(root, takes, upstream).complete


def test_locks_of_a_git_that_was_killed_stop_nobody(
    root: Layout, takes: Wanted, git_daemon: str
) -> None:
    repository = mirror_of(root).repository(SERVER)
    subprocess.run(["git", "init", "--quiet", "--bare", str(repository)], check=True)
    for name in ("shallow.lock", "HEAD.lock", f"refs/tags/r{RELEASE}.lock"):
        (repository / name).write_text("")
    assert fetch(root, Wanted(takes.pins, ()), git_daemon, what="a test").complete


@pytest.mark.parametrize("left", ["HEAD", "config", "objects"])
def test_a_repository_that_was_made_in_part_is_made_anew(
    root: Layout, takes: Wanted, upstream: Upstream, left: str
) -> None:
    repository = mirror_of(root).repository(SERVER)
    repository.mkdir(parents=True)
    if left == "objects":
        (repository / left).mkdir()
    else:
        (repository / left).write_text("")
    assert bring(root, takes, upstream).complete


def test_a_mirror_of_somebody_else_can_be_taken_from(
    root: Layout, takes: Wanted, upstream: Upstream
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give files away")
    subprocess.run(["chown", "-R", "65534", str(upstream.folder)], check=True)
    assert bring(root, takes, upstream).complete


def test_an_interruption_ends_downloads_at_once(
    root: Layout, takes: Wanted, upstream: Upstream, tmp_path: Path
) -> None:
    """An archive that would take minutes, and Ctrl-C after its first bytes."""
    begun = threading.Event()

    def get(request: Request) -> bool:
        if not request.path.endswith(".tar.gz"):
            return False
        request.send_response(200)
        request.send_header("Content-Length", "1000000")
        request.end_headers()
        begun.set()
        for _ in range(600):
            with contextlib.suppress(OSError):
                request.wfile.write(b"." * 1000)
            time.sleep(0.1)
        return True

    facts = upstream.facts(tmp_path / "facts")
    with serving(upstream.folder, get) as url:
        archives = Wanted((), takes.archives)
        job = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED, *map(str, facts), url],
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "SLIPWAY_ROOT": str(root.root)},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert begun.wait(30)
        asked = time.monotonic()
        job.send_signal(signal.SIGINT)
        _, said = job.communicate(timeout=30)
    assert time.monotonic() - asked < 10
    assert job.returncode == 130, said
    assert list(mirror_of(root).folder.rglob("*.part"))
    assert len(archives.archives) == 1


@pytest.mark.parametrize(
    "url", ["https://host/../x.git", "https:///x", "github.com/x/y", "https://host/a//b"]
)
def test_an_address_that_leads_elsewhere_is_refused(url: str) -> None:
    with pytest.raises(DownloadError, match="no address that can be mirrored"):
        mirror.place(url)


@given(st.lists(st.text("abc-._", min_size=1).filter(lambda t: t not in {".", ".."}), min_size=1))
def test_an_address_has_one_place_below_the_mirror(parts: list[str]) -> None:
    url = "https://host.example/" + "/".join(parts)
    path = Mirror(Path("/m")).path(url)
    assert path.is_relative_to("/m/host.example")
    assert mirror.place(url.replace("https://", "http://name@", 1)) == mirror.place(url)


def test_a_download_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096
    (tmp_path / "file").write_bytes(content)
    asked: list[str] = []

    def get(request: Request) -> bool:
        asked.append(request.headers.get("Range", ""))
        start = int(asked[-1][6:-1]) if asked[-1] else 0
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        request.wfile.write(content[start : start + (1 << 18)])  # and hang up
        request.close_connection = True
        return True

    with serving(tmp_path, get) as url:
        download(f"{url}/file", sha256(tmp_path / "file"), tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == content
    assert asked == ["", "bytes=262144-", "bytes=524288-", "bytes=786432-"]


def test_a_server_that_refuses_is_asked_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def get(request: Request) -> bool:
        asked.append(request.path)
        request.send_error(404)
        return True

    with serving(tmp_path, get) as url, pytest.raises(DownloadError) as caught:
        download(f"{url}/file", "0" * 64, tmp_path / "got")
    assert asked == ["/file"]
    assert caught.value.cause == "It answers 404 Not Found"


def test_a_server_in_trouble_is_asked_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    asked: list[str] = []

    def get(request: Request) -> bool:
        asked.append(request.path)
        if len(asked) < 3:
            request.send_error(503)
            return True
        return False

    with serving(tmp_path, get) as url:
        download(f"{url}/file", sha256(tmp_path / "file"), tmp_path / "got")
    assert len(asked) == 3


def test_the_command_line_names_the_releases_that_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "provision", "fetch_sources", "--release", "20.99"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == UsageError.exit_code
    assert "there is no release 20.99" in done.stderr
    assert "25.08" in done.stderr
