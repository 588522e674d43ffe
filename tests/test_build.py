"""Building the server and the client: Triton in small, with the real git, CMake and compilers."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from helpers import own_root
from upstream import RELEASE, TRITON, Upstream, variables

from provision import build_tree, host
from provision.build_manifest import BILL, BuildManifest
from provision.errors import BuildError, BusyError, DownloadError, HostError, UsageError
from provision.layout import REPOSITORY, Layout

# The command line, with other facts than those of the releases.
PROGRAM = """
import sys
from pathlib import Path
from provision import cli, failures, layout, releases
releases.FACTS, releases.LOCK = Path(sys.argv[1]), Path(sys.argv[2])
sys.exit(failures.run(lambda: cli.main(sys.argv[3:]), layout.log_folder()))
"""
SERVER = ("build_server", "--release", RELEASE, "--no-gpu", "--http-only", "--no-tracing")
CLIENT = ("build_client", "--release", RELEASE, "--no-gpu", "--http-only")


class Builder:
    """The command line on a root of its own, and repositories in small."""

    def __init__(self, layout: Layout, upstream: Upstream, facts: Path) -> None:
        self.layout = layout
        self.upstream = upstream
        self.facts = facts

    @property
    def tree(self) -> build_tree.BuildTree:
        """The server's."""
        return build_tree.BuildTree(self.layout.factory / "server-9.1.0")

    @property
    def server(self) -> Path:
        return self.layout.triton / "server"

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a job to its end."""
        return subprocess.run(
            self._command(arguments),
            cwd=REPOSITORY,
            env=variables(self.layout.root),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a job."""
        return subprocess.Popen(
            self._command(arguments),
            cwd=REPOSITORY,
            env=variables(self.layout.root),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def at_work(self) -> list[psutil.Process]:
        """The processes of the server's build."""
        from provision import processes

        return processes.marked(build_tree.MARK, str(self.tree.folder))

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        facts, lock = self.upstream.facts(self.facts)
        command = [sys.executable, "-c", PROGRAM, str(facts), str(lock), *arguments]
        return [*command, "--mirror", str(self.upstream.folder)]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    """The repositories, which no test changes."""
    return Upstream.create(tmp_path_factory.mktemp("upstream") / "mirror")


@pytest.fixture(scope="module")
def _tools() -> None:
    if not all(map(shutil.which, ("g++", "make", "git"))):
        pytest.skip("needs g++, make and git")
    facts = host.read_host(Layout.from_environment(), [])
    if not any(python.headers for python in facts.pythons):
        pytest.skip("needs a Python with its headers")


@pytest.fixture
def build(layout: Layout, originals: Upstream, tmp_path: Path, _tools: None) -> Iterator[Builder]:
    """A root in which nothing was built yet."""
    yield from _builder(layout, originals.copy(tmp_path / "upstream"), tmp_path / "facts")


@pytest.fixture(scope="module")
def built(
    host: Layout, originals: Upstream, tmp_path_factory: pytest.TempPathFactory, _tools: None
) -> Iterator[Builder]:
    """A root in which the server is built and installed; tests leave it so."""
    folder = tmp_path_factory.mktemp("built")
    for builder in _builder(own_root(folder, host), originals, folder / "facts"):
        done = builder(*SERVER)
        assert done.returncode == 0, done.stderr
        assert "clean" in done.stdout
        yield builder


@pytest.fixture
def changed(built: Builder, tmp_path: Path) -> Iterator[Builder]:
    """The same root, with repositories of the test's own; what is installed has to stay."""
    before = manifest(built.server)
    upstream = built.upstream.copy(tmp_path / "upstream")
    yield from _builder(built.layout, upstream, tmp_path / "facts")
    assert manifest(built.server) == before
    assert before.altered(built.server) == []


def _builder(layout: Layout, upstream: Upstream, facts: Path) -> Iterator[Builder]:
    builder = Builder(layout, upstream, facts)
    yield builder
    for process in builder.at_work():
        process.kill()


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def reached(build: Builder, place: str, job: subprocess.Popen[str]) -> bool:
    """Whether a build has come to a folder of its tree, or to its end."""
    return bool(list(build.tree.scratch.rglob(place))) or job.poll() is not None


def manifest(folder: Path) -> BuildManifest:
    found = BuildManifest.read(folder)
    assert found
    return found


def test_the_server_is_built_tried_and_installed(built: Builder) -> None:
    assert (built.server / "bin" / "tritonserver").is_file()
    assert (built.server / "repoagents" / "checksum" / "libtritonrepoagent_checksum.so").is_file()
    found = manifest(built.server)
    assert (found.release, found.triton) == (RELEASE, "9.1.0")
    assert found.features == ("checksum", "ensemble", "http", "metrics", "server")
    assert (found.proof["version"], found.proof["metrics"]) == ("9.1.0", 1)
    assert (found.proof["backends"], found.proof["agents"]) == ([], ["checksum"])
    assert found.altered(built.server) == []
    assert set(found.troubles) == {
        "checksum_openssl",
        "tests_of_third_parties",
        "tests_of_triton",
    }
    core = f"https://github.com/{TRITON}/core.git r{RELEASE}"
    assert found.commits[core] == built.upstream.commit(f"{TRITON}/core")
    assert not built.tree.staging.exists()


def test_tests_that_nobody_runs_are_not_built(built: Builder) -> None:
    assert next(built.tree.scratch.rglob("json.cc.o"))
    assert not list(built.tree.scratch.rglob("json_test*"))


def test_its_bill_of_materials_names_what_went_in(built: Builder) -> None:
    bill = json.loads((built.server / BILL).read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    named = {component["name"]: component for component in bill["components"]}
    assert {"server", "core", "json", "c-ares", "numbers"} <= set(named)
    assert named["json"]["version"] == built.upstream.commit("nlohmann/json", "v1.0")
    assert named["numbers"]["hashes"][0]["alg"] == "SHA-256"


def test_nothing_is_done_where_the_very_same_is_installed(built: Builder) -> None:
    before = (built.server / "slipway.json").stat().st_mtime_ns
    begun = time.monotonic()
    done = built(*SERVER)
    assert done.returncode == 0
    assert time.monotonic() - begun < 20  # the README's five seconds, on a busy machine
    assert "nothing to do" in done.stdout
    assert (built.server / "slipway.json").stat().st_mtime_ns == before


def test_what_was_altered_is_installed_anew(built: Builder) -> None:
    program = built.server / "bin" / "tritonserver"
    program.write_bytes(program.read_bytes() + b"\0")
    done = built(*SERVER)
    assert done.returncode == 0
    assert "1 installed files were altered, such as bin/tritonserver" in done.stdout
    assert "as it was left" in done.stdout
    assert manifest(built.server).altered(built.server) == []


def test_killed_again_and_again_it_goes_on(build: Builder) -> None:
    """By SIGKILL of the job alone: what it started goes on without it, until the next run."""
    places = ("_deps", "libjson.a", "third-party", "triton-server", "checksum")
    for place in places:
        job = build.start(*SERVER)
        wait_for(functools.partial(reached, build, place, job))
        job.send_signal(signal.SIGKILL)
        job.wait()
        job.communicate()
    done = build(*SERVER)
    assert done.returncode == 0, done.stdout + done.stderr
    assert build.at_work() == []
    assert manifest(build.server).altered(build.server) == []


def test_what_was_being_written_is_written_anew(tmp_path: Path) -> None:
    clone = tmp_path / "python"
    built = clone / "build"
    marks = tmp_path / "json-stamp"
    for folder in (built / "CMakeFiles", marks):
        folder.mkdir(parents=True)
    (clone / ".git").mkdir()
    outputs = [built / "a.cc.o", built / "libb.so.1", built / "c.pb.h", built / "program"]
    done = [marks / "json-install", marks / "json-build", built / "CMakeFiles" / "json-complete"]
    kept = [clone / "tracked.pb.h", built / "CMakeCache.txt", marks / "json-patch", built / "old.o"]
    for path in (*done, *kept):
        path.write_bytes(b"")
    for path in outputs:
        path.write_bytes(b"\x7fELF")
    os.utime(kept[-1], (time.time() - 60, time.time() - 60))
    assert build_tree.discard_torn(tmp_path) == len(outputs)
    assert not any(path.exists() for path in (*outputs, *done))
    assert all(path.exists() for path in kept)


def test_a_library_of_third_parties_that_was_just_installed_is_made_again(build: Builder) -> None:
    """Killed within seconds of its install, its mark would say that it is there."""
    build.upstream.release("core", "core.cc", "#error not today\n")
    assert build(*SERVER).returncode == BuildError.exit_code
    installed = next(build.tree.scratch.rglob("third-party/json/lib/libjson.a"))
    state = build.tree.folder / "slipway.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "ended": False}))
    for path in build.tree.scratch.rglob("*"):
        os.utime(path, follow_symlinks=False)
    again = build(*SERVER)
    assert "going on with the one that was interrupted, without" in again.stdout
    assert "error not today" in again.stderr.replace("#", "")
    assert installed.is_file()


def test_a_build_that_failed_by_itself_has_nothing_torn(changed: Builder) -> None:
    changed.upstream.release("core", "core.cc", "#error not today\n")
    assert changed(*SERVER).returncode == BuildError.exit_code
    assert "as it was left" in changed(*SERVER).stdout


def test_an_interruption_ends_the_build_in_order(build: Builder) -> None:
    job = build.start(*SERVER)
    wait_for(lambda: build.at_work() or job.poll() is not None)
    job.send_signal(signal.SIGINT)
    _, said = job.communicate(timeout=60)
    assert job.returncode == 130
    assert "interrupted" in said
    assert build.at_work() == []
    assert not build.server.exists()


def test_an_error_is_told_with_its_place(changed: Builder) -> None:
    changed.upstream.release("core", "core.cc", "int Version() { return no_such_name; }\n")
    done = changed(*SERVER)
    assert done.returncode == BuildError.exit_code
    assert "clean, since it was made from other commits" in done.stdout
    assert f"server {RELEASE} failed in triton-server (build):" in done.stderr
    assert re.search(r"core\.cc:1:24: error: .no_such_name. was not declared", done.stderr)
    log = changed.layout.logs / f"build-server-{RELEASE}.log"
    assert f"log: {log}" in done.stderr
    assert "no_such_name" in log.read_text()


def test_a_server_that_does_not_start_is_not_installed(changed: Builder) -> None:
    source = changed.upstream.repository(f"{TRITON}/server") / "src" / "main.cc"
    broken = source.read_text().replace('std::cout << "Usage', 'std::abort(); std::cout << "Usage')
    changed.upstream.release("server", "src/main.cc", broken)
    done = changed(*SERVER)
    assert done.returncode == BuildError.exit_code
    assert "does not print its options" in done.stderr


def test_another_version_than_it_should_be_is_not_installed(changed: Builder) -> None:
    changed.upstream.release("core", "core.cc", 'const char* Version() { return "9.0.9"; }\n')
    done = changed(*SERVER)
    assert done.returncode == BuildError.exit_code
    assert "the server says that it is 9.0.9, and was to be 9.1.0" in done.stderr


def test_a_library_that_is_not_there_is_told(changed: Builder) -> None:
    """The core's library is linked, and not installed."""
    listed = changed.upstream.repository(f"{TRITON}/server") / "src" / "CMakeLists.txt"
    lacking = listed.read_text().replace("install(TARGETS triton_core", "#")
    changed.upstream.release("server", "src/CMakeLists.txt", lacking)
    done = changed(*SERVER)
    assert done.returncode == BuildError.exit_code
    assert "does not print its options" in done.stderr
    assert "libtritonserver.so" in done.stderr


def test_a_library_that_lacks_a_symbol_is_told(changed: Builder) -> None:
    """It is compiled and linked without a word, and would fail when a model asks for it."""
    lacking = "int Missing();\nint Check() { return Missing(); }\n"
    changed.upstream.release("checksum_repository_agent", "agent.cc", lacking)
    done = changed(*SERVER)
    assert done.returncode == BuildError.exit_code
    agent = "repoagents/checksum/libtritonrepoagent_checksum.so"
    assert f"what was built is not whole: {agent} lacks the symbol _Z7Missingv" in done.stderr


def test_a_source_that_nobody_listed_cannot_be_had(changed: Builder) -> None:
    listed = changed.upstream.repository(f"{TRITON}/third_party") / "CMakeLists.txt"
    more = """
ExternalProject_Add(surprise
  GIT_REPOSITORY https://github.com/no/such.git
  GIT_TAG v1
)
"""
    changed.upstream.release("third_party", "CMakeLists.txt", listed.read_text() + more)
    done = changed(*SERVER)
    assert done.returncode == BuildError.exit_code
    assert "'/" in done.stderr
    assert "github.com/no/such.git' does not appear to be a git repository" in done.stderr
    assert "that is not in the mirror" in done.stderr


def test_an_argument_that_build_py_does_not_know_is_found_first(changed: Builder) -> None:
    path = changed.upstream.repository(f"{TRITON}/server") / "build.py"
    other = path.read_text().replace('"enable-stats"', '"x"')
    changed.upstream.release("server", "build.py", other)
    done = changed(*SERVER)
    assert done.returncode == BuildError.exit_code
    assert f"the build.py of {RELEASE} does not know --enable-stats" in done.stderr
    assert "Build Triton" not in done.stdout


def test_an_archive_that_was_tampered_with_stops_the_build(changed: Builder) -> None:
    archive = next((changed.layout.transit / "mirror").rglob("v1.0.tar.gz"))
    before = archive.read_bytes()
    archive.write_bytes(b"<html>")
    done = changed(*SERVER, "--clean")
    archive.write_bytes(before)
    assert done.returncode == DownloadError.exit_code
    assert "has changed since it was fetched" in done.stderr


def test_two_at_once_under_one_root_are_refused(build: Builder) -> None:
    first = build.start(*SERVER)
    wait_for(lambda: build.at_work() or first.poll() is not None)
    second = build(*CLIENT)
    assert second.returncode == BusyError.exit_code
    assert "building the client: building the server" in second.stderr
    first.send_signal(signal.SIGINT)
    first.communicate()


def test_nothing_is_installed_under_a_server_that_runs_from_there(built: Builder) -> None:
    program = str(built.server / "bin" / "tritonserver")
    running = subprocess.Popen([program, "--http-port=0", "--metrics-port=0"])
    try:
        assert built(*SERVER).returncode == 0  # nothing is to be done
        done = built(*SERVER, "--clean")
    finally:
        running.kill()
        running.wait()
    assert done.returncode == BusyError.exit_code
    assert f"process {running.pid} runs from {built.server}" in done.stderr


def test_a_release_that_is_known_in_part_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "provision", "build_server", "--release", "25.09", "--no-gpu"]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=variables(tmp_path / "root"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == HostError.exit_code
    assert "25.09 cannot be built by Slipway: of it is not known: the commit of" in done.stderr
    assert "22.01, 24.10, 25.07, 25.08" in done.stderr


def test_a_host_that_rules_a_release_out_is_told_which_fits(tmp_path: Path) -> None:
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho 'release 10.1, V10.1.243'\n")
    nvcc.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "provision", "build_server", "--release", "25.08"],
        cwd=REPOSITORY,
        env={**variables(tmp_path / "root"), "CUDA_HOME": str(nvcc.parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == HostError.exit_code
    assert "cuda: 10.1.243 (>=12.8)" in done.stderr
    assert re.search(r"22\.01 fits what the host has|No release fits", done.stderr)


def test_a_root_with_a_blank_in_its_path_is_refused(build: Builder, tmp_path: Path) -> None:
    build.layout = Layout(tmp_path / "a root")
    done = build(*SERVER)
    assert done.returncode == UsageError.exit_code
    assert "without blanks" in done.stderr


@pytest.mark.parametrize("job", [SERVER, CLIENT], ids=["server", "client"])
def test_its_help_tells_its_options(job: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "provision", job[0], "--help"]
    said = subprocess.check_output(command, cwd=REPOSITORY, text=True)
    assert {"--release", "--mirror", "--http-only", "--no-gpu", "--jobs", "--clean"} <= set(
        re.findall(r"--[a-z-]+", said)
    )


def test_the_client_is_built_its_wheel_imported_and_installed(build: Builder) -> None:
    done = build(*CLIENT)
    assert done.returncode == 0, done.stderr
    client = build.layout.triton / "client"
    assert (client / "lib" / "libhttpclient.so").is_file()
    assert (client / "include" / "http_client.h").is_file()
    proof = manifest(client).proof
    assert proof["libraries"] == ["libhttpclient.so"]
    assert proof["imported"] == "tritonclient-0.0.0-py3-none-any.whl"
    again = build(*CLIENT)
    assert "nothing to do" in again.stdout


def test_a_wheel_that_cannot_be_imported_is_not_installed(changed: Builder) -> None:
    file = "src/python/tritonclient/http/__init__.py"
    changed.upstream.release("client", file, "import no_such_module\n")
    done = changed(*CLIENT)
    assert done.returncode == BuildError.exit_code
    assert "No module named 'no_such_module'" in done.stderr
    assert not (changed.layout.triton / "client").exists()


def test_ccache_spares_the_compilers_a_second_time(built: Builder) -> None:
    if not shutil.which("ccache"):
        pytest.skip("needs ccache")
    done = built(*SERVER, "--clean")
    assert done.returncode == 0
    assert "with ccache" in done.stdout
    settings = {**os.environ, "CCACHE_DIR": str(built.layout.root / "ccache")}
    said = subprocess.check_output(["ccache", "--print-stats"], env=settings, text=True)
    counts = dict(line.split("\t") for line in said.splitlines())
    assert int(counts["direct_cache_hit"]) >= 4
