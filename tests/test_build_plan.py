"""What a build will be given: arguments, troubles and their antidotes, the toolchain file."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from packaging.version import Version

from provision import build_arguments, build_client, cmake, releases, toolchain, troubles
from provision.build_log import Phases, failure, first_error
from provision.build_tree import BuildTree
from provision.errors import BuildError
from provision.layout import Layout
from provision.options import ServerOptions, has_tracing, remarks, server_features
from provision.sources import wanted

TREE = BuildTree(Path("/root/factory/server"))
NEWEST = {"gcc": "14.2", "glibc": "2.41", "python": "3.13", "cmake": "3.31.10", "boost": "1.83"}
OLDEST = {"gcc": "9.4", "glibc": "2.31", "python": "3.8", "cmake": "3.22.2"}


def arguments(release: str, options: ServerOptions) -> list[str]:
    chosen = releases.release(release)
    return build_arguments.server_arguments(chosen, server_features(chosen, options), TREE)


def test_22_01_gets_the_recipes_arguments() -> None:
    """Those of the recipe's build_server.sh, and `--no-force-clone`."""
    given = arguments("22.01", ServerOptions())
    assert set(given) == {
        "--no-container-build",
        "--cmake-dir=/root/factory/server/build",
        "--build-dir=/root/factory/server/scratch",
        "--install-dir=/root/factory/server/staging",
        "--no-force-clone",
        *("--enable-logging", "--enable-stats", "--enable-tracing", "--enable-metrics"),
        "--enable-gpu",
        *("--endpoint=http", "--endpoint=grpc"),
        *(f"--repo-tag={name}:r22.01" for name in ("common", "core", "backend", "thirdparty")),
        *("--backend=ensemble", "--backend=tensorrt:r22.01"),
        "--repoagent=checksum:r22.01",
    }


def test_newer_releases_get_what_is_new() -> None:
    given = arguments("25.08", ServerOptions(backends=("python",)))
    assert {"--enable-cpu-metrics", "--target-platform=linux", "--backend=python:r25.08"} <= (
        set(given)
    )
    assert not any(argument.startswith("--cmake-dir") for argument in given)


def test_a_smaller_server_gets_less() -> None:
    given = arguments("25.08", ServerOptions(gpu=False, grpc=False, tracing=False))
    assert "--endpoint=http" in given
    assert not {"--endpoint=grpc", "--enable-gpu", "--enable-tracing"} & set(given)
    assert not any("tensorrt" in argument for argument in given)


def test_tracing_needs_grpc_only_since_it_uses_opentelemetry() -> None:
    http_only = ServerOptions(grpc=False)
    assert has_tracing(releases.release("22.01"), http_only)
    assert not has_tracing(releases.release("25.08"), http_only)
    assert any("no tracing" in said for said in remarks(releases.release("25.08"), http_only))
    assert not list(remarks(releases.release("22.01"), http_only))


def test_an_argument_that_build_py_does_not_describe_is_refused() -> None:
    described = "usage: build.py [--enable-stats] [--build-dir BUILD_DIR] --enable-metrics-gpu"
    release = releases.release("25.08")
    build_arguments.check(["--enable-stats", "--build-dir=x"], described, release)
    with pytest.raises(BuildError, match=r"does not know --enable-metrics$"):
        build_arguments.check(["--enable-stats", "--enable-metrics"], described, release)


def test_the_client_gets_the_recipes_settings() -> None:
    """Those of the recipe's build_client.sh; the rest is CMake's own and the organization."""
    release = releases.release("22.01")
    given = build_client.settings(release, frozenset({"client", "grpc", "gpu"}), Path("/c"))
    on = {"CC_HTTP", "CC_GRPC", "PERF_ANALYZER", "PYTHON_HTTP", "PYTHON_GRPC", "GPU"}
    on |= {"EXAMPLES", "TESTS"}
    tags = ("COMMON", "THIRD_PARTY", "CORE", "BACKEND")
    expected = {
        "CMAKE_INSTALL_PREFIX": "/c",
        **{f"TRITON_ENABLE_{name}": "ON" for name in on},
        "TRITON_ENABLE_JAVA_HTTP": "OFF",
        **{f"TRITON_{name}_REPO_TAG": "r22.01" for name in tags},
    }
    assert expected.items() <= given.items()
    assert set(given) - set(expected) == {"CMAKE_BUILD_TYPE", "TRITON_REPO_ORGANIZATION"}


def test_the_quick_client_has_http_alone() -> None:
    release = releases.release("25.08")
    given = build_client.settings(release, frozenset({"client_http"}), Path("/c"))
    assert {name for name, value in given.items() if value == "ON"} == {
        "TRITON_ENABLE_CC_HTTP",
        "TRITON_ENABLE_PYTHON_HTTP",
    }


def test_an_http_server_takes_of_grpc_what_it_reads() -> None:
    release, catalogue = releases.release("25.08"), releases.catalogue()
    small = server_features(release, ServerOptions(grpc=False, gpu=False))
    whole = server_features(release, ServerOptions())
    pins = {pin.url: pin for pin in wanted(release, catalogue, small).pins}
    assert "third_party/re2" in (pins["https://github.com/grpc/grpc.git"].submodules or ())
    pins = {pin.url: pin for pin in wanted(release, catalogue, whole).pins}
    assert pins["https://github.com/grpc/grpc.git"].submodules is None


def test_the_hosts_boost_spares_an_archive() -> None:
    release, catalogue = releases.release("25.08"), releases.catalogue()
    features = server_features(release, ServerOptions(backends=("python",)))
    assert [a.name for a in wanted(release, catalogue, features).archives] == ["boost"]
    assert wanted(release, catalogue, features, on_host=["boost"]).archives == ()


@pytest.mark.parametrize("trouble", troubles.troubles(), ids=lambda trouble: trouble.name)
def test_every_trouble_is_told_and_averted_or_mended(trouble: troubles.Trouble) -> None:
    assert trouble.reason
    assert trouble.averts or trouble.fix
    for source in trouble.sources.values():
        assert len(source.commit) == 40, source
        assert source.override


def test_an_old_release_on_a_new_host_has_more_troubles_than_on_an_old_one() -> None:
    release = releases.release("22.01")
    features = server_features(release, ServerOptions(backends=("python",)))
    new = {trouble.name for trouble in troubles.averted("22.01", features, NEWEST)}
    old = {trouble.name for trouble in troubles.averted("22.01", features, OLDEST)}
    assert old < new
    assert {"prometheus_limits", "libevent_addrandom", "pybind11_python_3_11"} <= new - old


def test_a_new_release_has_few_troubles() -> None:
    features = server_features(releases.release("25.08"), ServerOptions())
    found = {trouble.name for trouble in troubles.averted("25.08", features, NEWEST)}
    assert found == {"tests_of_triton", "tests_of_third_parties", "checksum_openssl"}


def test_no_two_troubles_want_a_file_included_into_one_project() -> None:
    included = [name for trouble in troubles.troubles() for name in trouble.includes]
    assert len(included) == len(set(included))


def test_whatever_only_takes_time_is_averted_by_switching_tests_off() -> None:
    slow = {trouble.name for trouble in troubles.troubles() if trouble.slow}
    assert slow == {"tests_of_triton", "tests_of_third_parties"}


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("a.cu(9): error: cudaMemPrefetchAsync: too few arguments", "cuda_prefetch"),
        ("nvcc fatal: Unsupported gpu architecture 'compute_101'", "cuda_architecture"),
        ("g++: fatal error: Killed signal terminated program cc1plus", "compiler_out_of_memory"),
        ("fatal: write error: No space left on device", "disk_full"),
        ("fatal: '/m/a/b.git' does not appear to be a git repository", "not_mirrored"),
        ("Compatibility with CMake < 3.5 has been removed from CMake.", "cmake_4_policies"),
    ],
)
def test_a_trouble_is_recognized(line: str, name: str) -> None:
    assert [trouble.name for trouble in troubles.recognized(line)] == [name]


SCRATCH = Path("/t/scratch")
LOG = [
    "Cloning into 'x'...",
    "fatal: No annotated tags can describe 'e7ff4e'.",
    "[ 10%] Performing configure step for 'protobuf'",
    "-- Performing Test HAS_ERROR: error: - Failed",
    "[ 12%] Performing build step for 'protobuf'",
    "[ 13%] Building CXX object a.cc.o",
    "/t/a.cc:7:1: error: 'x' was not declared in this scope",
    "    7 | x",
    "      | ^",
    "make[2]: *** [a.cc.o] Error 1",
    "/t/b.cc:1:1: error: a later one",
    "error: build failed",
]


def told(lines: list[str]) -> BuildError:
    """The failure that is made of a log."""
    known = troubles.troubles()
    return failure("the build", 2, lines, scratch=SCRATCH, log=Path("/log"), troubles=known)


def test_what_a_log_says_by_the_way_is_not_taken_for_the_reason() -> None:
    error = told(["-- Looking for arc4random_addrandom - not found", *LOG])
    assert error.cause == ""
    assert "arc4random" not in error.what
    killed = told([*LOG, "g++: fatal error: Killed signal terminated program cc1plus"])
    assert "--jobs 1" in killed.fix


def test_the_first_error_is_told_with_its_phase() -> None:
    found = first_error(LOG, SCRATCH)
    assert found
    assert found.phase == "protobuf (build)"
    assert found.text.splitlines()[0] == "/t/a.cc:7:1: error: 'x' was not declared in this scope"
    assert "later" not in found.text


def test_a_killed_compiler_gets_the_advice_for_it() -> None:
    line = "g++: fatal error: Killed signal terminated program cc1plus"
    error = told([line])
    assert "--jobs 1" in error.fix
    assert "for want of memory" in error.cause


def test_a_failure_without_an_error_line_shows_the_last_words() -> None:
    error = told(["one", "two"])
    assert "exit code 2" in error.what
    assert "two" in error.what


def test_a_log_without_errors_has_none() -> None:
    assert first_error(LOG[:6], SCRATCH) is None


def test_the_phase_is_the_part_that_is_built() -> None:
    phases = Phases(SCRATCH)
    assert phases.feed("-- Build files have been written to: /t/scratch/python/build") == "python"
    assert phases.feed("[ 40%] Building CXX object x.o") == "python, 40 %"
    written = "/t/scratch/tritonserver/build/_deps/third-party-build/protobuf-build"
    assert phases.feed(f"-- Build files have been written to: {written}") == "protobuf"
    assert phases.feed("Scanning dependencies") == ""


def test_cmake_reads_the_toolchain_file_as_it_was_meant(host: Layout, tmp_path: Path) -> None:
    release = releases.release("25.08")
    program = cmake.install(host, release.cmake_pin, releases.catalogue().cmake[release.cmake_pin])
    trouble = troubles.Trouble("t", "a reason", variables={"A_SWITCH": 'a "quoted"; $value'})
    file = tmp_path / "toolchain.cmake"
    with_python = toolchain.variable_lines([trouble], {"A_FOLDER": Path("/a b")})
    file.write_text(with_python)
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(p NONE)\n"
        'option(A_SWITCH "" ON)\nmessage(STATUS "<${A_SWITCH}> <${A_FOLDER}>")\n'
    )
    said = subprocess.check_output(
        [program, "-S", tmp_path, "-B", tmp_path / "b"],
        env={"CMAKE_TOOLCHAIN_FILE": str(file), "PATH": "/usr/bin:/bin"},
        text=True,
    )
    assert '<a "quoted"; $value> </a b>' in said
    assert re.search(r"^#   t: a reason$", with_python, re.MULTILINE)


def test_every_release_that_is_whole_has_a_plan_on_every_feature() -> None:
    catalogue = releases.catalogue()
    for release in releases.releases():
        if release.missing:
            continue
        features = server_features(release, ServerOptions(backends=("python",)))
        takes = wanted(release, catalogue, features)
        assert {pin.ref for pin in takes.pins} >= {release.branch}
        assert all(archive.sha256 and archive.seed for archive in takes.archives)
        assert Version(release.cmake_pin) in release.cmake
