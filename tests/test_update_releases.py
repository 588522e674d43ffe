"""Resolving refs, against real repositories: on disk, and over HTTP on loopback."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from provision import releases, toml, update_releases
from provision.errors import DownloadError
from provision.layout import REPOSITORY

COMPONENTS = tuple(releases.catalogue().components)
GIT = ("git", "-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main")


@dataclass(frozen=True)
class Upstream:
    """Triton's repositories in small, and one of a third party."""

    folder: Path

    @property
    def base(self) -> str:
        return self.folder.as_uri()

    def git(self, name: str, *arguments: str) -> str:
        """Run git in a repository."""
        command = [*GIT, "-C", str(self.folder / f"{name}.git"), *arguments]
        return subprocess.check_output(command, text=True, stderr=subprocess.STDOUT).strip()

    def create(self, name: str) -> None:
        path = self.folder / f"{name}.git"
        subprocess.run([*GIT, "init", "--quiet", str(path)], check=True)
        self.commit(name, "the first")

    def commit(self, name: str, message: str) -> str:
        self.git(name, "commit", "--quiet", "--allow-empty", "--message", message)
        return self.git(name, "rev-parse", "HEAD")

    def branch(self, name: str, ref: str) -> str:
        """Make or move a branch to a new commit."""
        commit = self.commit(name, f"{ref} of {name}")
        self.git(name, "branch", "--force", ref)
        return commit


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    """The repositories, which no test changes."""
    upstream = Upstream(tmp_path_factory.mktemp("upstream"))
    for name in COMPONENTS:
        upstream.create(name)
        upstream.branch(name, "r26.09")
        upstream.branch(name, "r25.08")
    return upstream


@pytest.fixture
def upstream(originals: Upstream, tmp_path: Path) -> Upstream:
    """Repositories of the test's own."""
    copy = tmp_path / "upstream"
    subprocess.run(["cp", "-r", originals.folder, copy], check=True)
    return Upstream(copy)


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "sources.toml"


@pytest.fixture
def update(upstream: Upstream, lock: Path) -> Callable[..., list[str]]:
    """Update the test's lock for a release that takes nothing of third parties."""

    def run(*names: str, take_moved: bool = False) -> list[str]:
        return update_releases.update(
            names or ("26.09",), base=upstream.base, take_moved=take_moved, lock=lock
        )

    return run


def test_a_new_release_is_locked_branch_by_branch(
    upstream: Upstream, lock: Path, update: Callable[..., list[str]]
) -> None:
    assert update() == []
    locked = toml.load(lock)["releases"]
    assert list(locked) == ["26.09"]
    assert tuple(locked["26.09"]) == COMPONENTS
    for name, commit in locked["26.09"].items():
        assert commit == upstream.git(name, "rev-parse", "r26.09")


def test_nothing_new_leaves_the_file_alone(
    lock: Path, update: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    update()
    before = lock.stat()
    update()
    assert lock.stat() == before
    assert "nothing new" in capsys.readouterr().out


def test_a_moved_branch_is_shown_and_not_taken(
    upstream: Upstream,
    lock: Path,
    update: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    update()
    was = upstream.git("core", "rev-parse", "r26.09")
    now = upstream.branch("core", "r26.09")
    update()
    assert f"core.git r26.09 moved from {was} to {now} (not taken" in capsys.readouterr().out
    assert toml.load(lock)["releases"]["26.09"]["core"] == was
    update(take_moved=True)
    assert f"moved from {was} to {now} (taken)" in capsys.readouterr().out
    assert toml.load(lock)["releases"]["26.09"]["core"] == now


def test_a_branch_that_is_gone_keeps_its_commit(
    upstream: Upstream,
    lock: Path,
    update: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    update()
    before = lock.read_text()
    was = upstream.git("common", "rev-parse", "r26.09")
    upstream.git("common", "branch", "--delete", "--force", "r26.09")
    update(take_moved=True)
    assert f"r26.09 is not there; the lock keeps {was}" in capsys.readouterr().out
    assert lock.read_text() == before


def test_a_branch_that_is_not_there_yet_stays_unknown(
    upstream: Upstream,
    lock: Path,
    update: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    upstream.git("third_party", "branch", "--delete", "--force", "r26.09")
    update()
    assert "third_party.git r26.09 is not there; it stays unknown" in capsys.readouterr().out
    assert set(toml.load(lock)["releases"]["26.09"]) == set(COMPONENTS) - {"third_party"}


def test_other_entries_stay_as_they_are(lock: Path, update: Callable[..., list[str]]) -> None:
    lock.write_text(
        f'[releases."22.01"]\nserver = "{"a" * 40}"\n\n'
        f'[repositories."https://host/x.git"]\n"v1.0" = "{"b" * 40}"\n'
    )
    before = toml.load(lock)
    update()
    after = toml.load(lock)
    assert after["releases"]["22.01"] == before["releases"]["22.01"]
    assert after["repositories"] == before["repositories"]


def test_what_it_writes_is_what_it_reads(lock: Path, update: Callable[..., list[str]]) -> None:
    update()
    text = lock.read_text()
    assert update_releases.to_toml(toml.load(lock)) == text
    assert text.startswith("# Written by `nox -s update_releases`")


def test_the_lock_of_this_clone_is_as_it_would_be_written() -> None:
    assert update_releases.to_toml(toml.load(releases.LOCK)) == releases.LOCK.read_text()


def test_an_annotated_tag_is_the_commit_that_it_points_to(upstream: Upstream) -> None:
    upstream.create("library")
    commit = upstream.commit("library", "tagged")
    upstream.git("library", "tag", "--annotate", "--message", "one", "v1.0")
    upstream.git("library", "tag", "v1.0.1", "HEAD~1")
    upstream.git("library", "branch", "v1.0", "HEAD~1")
    url = f"{upstream.base}/library.git"
    found = update_releases.resolve(url, ["v1.0", "v1.0.1", "main", "v2"])
    assert found["v1.0"] == commit
    assert found["v1.0.1"] == upstream.git("library", "rev-parse", "HEAD~1")
    assert found["main"] == commit
    assert "v2" not in found


def test_a_ref_that_looks_like_an_option_is_none(upstream: Upstream) -> None:
    assert update_releases.resolve(f"{upstream.base}/core.git", ["--heads"]) == {}
    with pytest.raises(DownloadError):
        update_releases.resolve("--upload-pack=touch /tmp/x", ["main"])


def test_a_repository_that_does_not_answer_does_not_stop_the_others(
    upstream: Upstream, lock: Path, update: Callable[..., list[str]]
) -> None:
    (upstream.folder / "backend.git").rename(upstream.folder / "elsewhere")
    silent = update()
    assert len(silent) == 1
    assert "backend.git cannot be read" in silent[0]
    assert set(toml.load(lock)["releases"]["26.09"]) == set(COMPONENTS) - {"backend"}


def test_the_third_parties_of_a_known_release_are_resolved_too() -> None:
    wanted = list(update_releases.wanted(["25.08", "25.07"], "https://host/org/"))
    assert sum(one.ref == "r25.08" for one in wanted) == len(COMPONENTS)
    assert "https://host/org/server.git" in {one.url for one in wanted}
    libevent = [one for one in wanted if one.url.endswith("libevent.git")]
    assert [one.ref for one in libevent] == ["release-2.1.12-stable"]
    assert not any(one.url.endswith("pybind11") for one in wanted), "it is pinned by commit"
    assert [one.ref for one in update_releases.wanted(["26.09"], "b")] == ["r26.09"] * 9


@pytest.fixture
def served(upstream: Upstream) -> Iterator[str]:
    """The repositories over HTTP, the way any file server has them."""
    for name in COMPONENTS:
        upstream.git(name, "update-server-info")
        bare = upstream.folder / f"{name}.git"
        for inside in list((bare / ".git").iterdir()):
            inside.rename(bare / inside.name)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    handler = functools.partial(Quiet, directory=str(upstream.folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def run_command(
    clone: Path, *arguments: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command in a copy of this clone, which it may write to."""
    return subprocess.run(
        [sys.executable, "-m", "provision", "update_releases", *arguments],
        cwd=clone,
        env={**os.environ, "no_proxy": "127.0.0.1", **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of this clone's provision/."""
    folder = tmp_path / "clone"
    folder.mkdir()
    subprocess.run(["cp", "-r", REPOSITORY / "provision", folder], check=True)
    return folder


def test_the_command_writes_the_clones_own_lock_over_http(
    clone: Path, upstream: Upstream, served: str
) -> None:
    commit = (upstream.folder / "server.git" / "refs" / "heads" / "r26.09").read_text().strip()
    done = run_command(clone, "26.09", "--base", served)
    assert done.returncode == 0, done.stderr
    assert f"+ {served}/server.git r26.09 is {commit}" in done.stdout
    assert "26.09 has no entry in releases.toml yet" in done.stdout
    written = toml.load(clone / "provision" / "locks" / "sources.toml")["releases"]
    assert written["26.09"]["server"] == commit
    assert written["22.01"] == toml.load(releases.LOCK)["releases"]["22.01"]


def test_the_command_tells_what_did_not_answer_and_keeps_the_rest(
    clone: Path, upstream: Upstream
) -> None:
    (upstream.folder / "client.git").rename(upstream.folder / "elsewhere")
    done = run_command(clone, "26.09", "--base", upstream.base)
    assert done.returncode == 12
    assert "client.git cannot be read" in done.stderr
    assert "What the others said is kept" in done.stderr
    assert "--base" in done.stderr
    written = toml.load(clone / "provision" / "locks" / "sources.toml")["releases"]["26.09"]
    assert set(written) == set(COMPONENTS) - {"client"}


def test_git_itself_may_redirect_third_parties_to_a_mirror(clone: Path, upstream: Upstream) -> None:
    upstream.create("libevent")
    commit = upstream.commit("libevent", "released")
    upstream.git("libevent", "tag", "release-2.1.12-stable")
    redirect = {
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": f"url.{upstream.base}/libevent.git.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/libevent/libevent.git",
        # Everything else of GitHub's is a folder without repositories.
        "GIT_CONFIG_KEY_1": f"url.{upstream.base}/none/.insteadOf",
        "GIT_CONFIG_VALUE_1": "https://github.com/",
    }
    lock = clone / "provision" / "locks" / "sources.toml"
    lock.unlink()
    done = run_command(clone, "25.08", "--base", upstream.base, env=redirect)
    assert done.returncode == 12
    assert "grpc.git cannot be read" in done.stderr
    locked = toml.load(lock)["repositories"]["https://github.com/libevent/libevent.git"]
    assert locked == {"release-2.1.12-stable": commit}


@pytest.mark.parametrize("name", ["main", "r26.08", "26.8", "../x"])
def test_what_is_no_release_is_wrong_usage(clone: Path, name: str) -> None:
    done = run_command(clone, "--base", "file:///nowhere", "--", name)
    assert done.returncode == 2
    assert f"{name} is not the NGC tag of a release" in done.stderr
