"""The releases: the file as it is, the validation of it, and the choice for a host."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.version import Version

from provision import release_file, releases
from provision.choice import choose
from provision.errors import HostError, InternalError, UsageError
from provision.gpu import Cuda, Device, Found, Gpu
from provision.host import Host, Python, Tool
from provision.releases import Catalogue, catalogue, release
from provision.requirements import Row, check

WHOLE = ("22.01", "24.10", "25.07", "25.08")
COMMIT = re.compile(r"[0-9a-f]{40}")

# A host with a GPU as NVIDIA's own container of 25.08 has it, on Ubuntu 24.04.
MODERN = Host(
    system="Ubuntu 24.04",
    distribution="ubuntu-24.04",
    architecture="x86_64",
    glibc="2.39",
    cores=8,
    memory_bytes=32 * 10**9,
    disk_bytes=100 * 10**9,
    tools={n: Tool(Path("/usr/bin", n), "13.2.0") for n in ("gcc", "g++", "git", "make")},
    cmakes={"3.31.10": Path("cmake"), "3.28.3": Path("cmake"), "3.22.2": Path("cmake")},
    pythons=(Python(Path("/usr/bin/python3.12"), "3.12.3", headers=True),),
    boost="1.83.0",
    gpu=Gpu(
        cuda=Cuda(Path("/usr/local/cuda"), "13.0.88", (75, 80, 90, 120), newest_gcc=15),
        driver="580.82.07",
        devices=(Device("NVIDIA H100", "81559 MiB", "9.0"),),
        tensorrt_libraries=Found("10.13.2", Path("/usr/lib")),
        tensorrt_headers=Found("10.13.2", Path("/usr/include")),
    ),
)


def with_gpu(host: Host, **changes: object) -> Host:
    """The host with other facts about its GPU."""
    return replace(host, gpu=replace(host.gpu, **changes))  # type: ignore[arg-type]


def with_cuda(version: str, driver: str) -> Host:
    """The modern host with another CUDA."""
    return with_gpu(MODERN, cuda=Cuda(Path("/c"), version), driver=driver)


def row(host: Host, name: str, what: str, *, gpu: bool = True) -> Row:
    """What is said of one thing."""
    return next(r for r in check(release(name), host, catalogue(), gpu=gpu) if r.name == what)


# --- the file ---------------------------------------------------------------------------------


def test_the_releases_that_can_be_built_are_whole() -> None:
    assert tuple(r.name for r in releases.releases() if not r.missing) == WHOLE
    for known in map(release, WHOLE):
        assert set(known.commits) == set(catalogue().components)
        assert all(COMMIT.fullmatch(commit.id) for commit in known.commits.values())
        assert known.ngc
        assert Version(known.cmake_pin) in known.cmake
        assert Version(known.cmake_pin) in known.as_is["cmake"]


def test_newer_releases_say_what_is_not_known_of_them() -> None:
    newest = releases.releases()[-1]
    assert newest.name == "26.08"
    assert newest.triton == "2.72.0"
    assert "the commit of third_party" in newest.missing
    assert "boost" in newest.missing


def test_a_release_has_two_names() -> None:
    assert release("22.01") is release("2.18.0")
    assert release("25.08").image == "nvcr.io/nvidia/tritonserver:25.08-py3"
    assert release("25.08").branch == "r25.08"


@pytest.mark.parametrize("name", ["25.13", "", "r25.08", "latest"])
def test_an_unknown_release_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        release(name)
    assert all(known in caught.value.cause for known in WHOLE)


def test_a_commit_that_stands_in_says_so() -> None:
    stand_ins = {n: c.stands_in for n, c in release("25.08").commits.items() if c.stands_in}
    assert set(stand_ins) == {"third_party", "checksum_repository_agent"}
    assert all("main of 20" in reason for reason in stand_ins.values())
    assert not any(c.stands_in for c in release("22.01").commits.values())


@pytest.mark.parametrize(
    ("name", "has", "has_not"),
    [
        ("22.01", {"cmake_dir_required", "distutils", "no_http_address"}, {"cpu_metrics", "cxx17"}),
        ("24.10", {"cpu_metrics", "requests", "distro", "cxx17"}, {"distutils", "version_flags"}),
        ("25.08", {"version_flags", "python_build"}, {"client_perf_analyzer", "grpcio_tools_1_81"}),
        ("26.08", {"grpcio_tools_1_81"}, {"cmake_dir_required"}),
    ],
)
def test_what_differs_between_build_scripts(name: str, has: set[str], has_not: set[str]) -> None:
    traits = set(release(name).traits)
    assert has <= traits
    assert not has_not & traits


def test_arguments_and_modules_come_from_the_traits() -> None:
    assert release("22.01").arguments == ()
    assert release("25.08").arguments == ("--enable-cpu-metrics", "--target-platform=linux")
    assert release("25.08").modules == ("requests", "distro", "build")


def test_a_build_downloads_only_what_its_features_need() -> None:
    http_only = {
        s.name for s in release("25.08").sources_for(frozenset({"server", "http", "metrics"}))
    }
    assert {"grpc", "libevent", "prometheus-cpp", "googletest"} <= http_only
    assert not http_only & {"aws-sdk-cpp", "google-cloud-cpp", "azure-sdk", "opentelemetry-cpp"}
    assert len(release("25.08").sources_for(frozenset({"s3"}))) == 1


def test_every_download_is_pinned_as_far_as_it_can_be() -> None:
    unpinned = {
        source.name
        for known in map(release, WHOLE)
        for source in known.sources
        if not (source.commit or source.sha256)
    }
    # gRPC and the clouds' SDKs could not be reached.
    assert unpinned == {
        *("grpc", "grpc-new", "google-cloud-cpp", "aws-sdk-cpp"),
        *("azure-storage-cpplite", "azure-sdk", "azure-iot-sdk-c"),
    }


# --- validation -------------------------------------------------------------------------------


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[str, str], Catalogue]:
    """Read the file with one thing in it changed."""

    def read(old: str, new: str) -> Catalogue:
        text = releases.FACTS.read_text()
        assert old in text
        path = tmp_path / "releases.toml"
        path.write_text(text.replace(old, new, 1))
        return release_file.read(path, releases.LOCK)

    return read


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('cmake = ">=3.18"', 'cmake = "3.18 or so"', r"22\.01\.cmake is not a range"),
        ('cmake = ">=3.18"\n', "", r"22\.01 lacks cmake"),
        ('triton = "2.18.0"', "triton = 2.18", r"22\.01\.triton is not a str"),
        ('triton = "2.18.0"', 'triton = "new"', r"22\.01\.triton is not a version"),
        ('capability = "6.0"', 'capabilities = "6.0"', r"22\.01 lacks capability"),
        ('boost = ""', 'boots = ""', r"22\.01 has what nothing reads: boots"),
        ('sources = "22.01"', 'sources = "22.02"', r"22\.01\.sources is 22\.02"),
        ('apt = "22.01"', 'apt = "22.02"', r"22\.01\.apt is 22\.02"),
        ('cmake_pin = "3.22.2"', 'cmake_pin = "3.22.3"', r"cmake_pin is 3\.22\.3"),
        ('state = "declared"', 'state = "perfect"', r"proved\.state is none of declared"),
        ('state = "declared"', 'state = "configured"', r"proved lacks the date or the host"),
        ('commit = "66b9', 'commit = "x6b9', r"checksum_repository_agent\.commit is 'x6b9"),
        ('x86_64 = "6aff', 'x86_64 = "6af', r"cmake\.3\.22\.2\.x86_64 is '6af"),
        ('since = "22.09"', 'since = "22.9"', r"cpu_metrics\.since is '22\.9'"),
        ('ref = "v1.25.0"', 'tag = "v1.25.0"', r"sources\.22\.01\[0\] has what nothing reads: tag"),
        ('ref = "v1.25.0"\n', "", r"\[0\] is neither a repository with a ref nor an archive"),
        ('needed_for = ["s3"]', "needed_for = []", r"is needed for nothing"),
        ('needed_for = ["s3"]', "needed_for = [1]", r"needed_for is not a list of strings"),
        ('sha256 = "9390', 'sha256 = "x390', r"sha256 is 'x390"),
        ('sha256 = "93907d', '# sha256 = "93907d', r"is an archive without its sha256"),
        ('[releases."22.01"]', '[releases."22.1"]', r"22\.1 is not the name of a release"),
        ("as_is = {", "as_is = 1 # {", r"22\.01\.as_is is not a table"),
        ("[build]", "[more]\n[build]", r"releases\.toml has what nothing reads: more"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(
    changed: Callable[[str, str], Catalogue], old: str, new: str, problem: str
) -> None:
    with pytest.raises(InternalError, match=problem):
        changed(old, new)


def test_what_is_not_known_is_missing_not_guessed(
    changed: Callable[[str, str], Catalogue],
) -> None:
    known = changed('cuda = ">=12.8"  #', "#")
    assert known.releases["25.08"].missing == ("cuda",)
    assert known.releases["25.08"].cuda is None


def test_without_the_lock_every_commit_is_unknown_but_the_stand_ins(tmp_path: Path) -> None:
    known = release_file.read(releases.FACTS, tmp_path / "none.toml").releases["25.08"]
    assert set(known.commits) == {"third_party", "checksum_repository_agent"}
    assert "the commit of server" in known.missing


def test_the_lock_goes_before_a_stand_in(tmp_path: Path) -> None:
    lock = tmp_path / "sources.toml"
    lock.write_text(f'[releases."25.08"]\nthird_party = "{"a" * 40}"\n')
    commit = release_file.read(releases.FACTS, lock).releases["25.08"].commits["third_party"]
    assert commit == releases.Commit("a" * 40)


@pytest.mark.parametrize("text", ['[releases."25.08"]\nserver = "main"\n', "[other]\n"])
def test_what_is_wrong_in_the_lock_is_named(tmp_path: Path, text: str) -> None:
    lock = tmp_path / "sources.toml"
    lock.write_text(text)
    with pytest.raises(InternalError, match=r"sources\.toml"):
        release_file.read(releases.FACTS, lock)


# --- the choice -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cuda", "driver", "chosen"),
    [
        ("13.0.88", "580.82.07", "25.08"),
        ("12.9.0", "575.51.03", "25.08"),
        ("12.4.1", "550.54.15", "24.10"),
        ("11.3.1", "465.19.01", "22.01"),
    ],
)
def test_cuda_decides(cuda: str, driver: str, chosen: str) -> None:
    host = with_gpu(with_cuda(cuda, driver), tensorrt_libraries=None, tensorrt_headers=None)
    assert choose(host, catalogue()).release.name == chosen


def test_a_driver_too_old_for_its_cuda_is_told_with_the_one_it_needs() -> None:
    with pytest.raises(HostError, match="no release can be built") as caught:
        choose(with_cuda("13.0.88", "575.51.03"), catalogue())
    assert "25.08: driver 575.51.03 is not >=580" in caught.value.cause
    assert "24.10: cuda 13.0.88 is not >=11.8,<13" in caught.value.cause


def test_a_release_that_is_passed_over_is_told_with_why() -> None:
    choice = choose(with_cuda("12.4.1", "550.54.15"), catalogue())
    assert "(25.08: cuda 12.4.1 is not >=12.8; 25.07: cuda 12.4.1 is not >=12.8,<13)" in (
        choice.reason
    )


def test_tensorrt_decides() -> None:
    older = Found("8.6.1", Path("/usr/lib"))
    host = with_gpu(with_cuda("12.2.0", "535.86"), tensorrt_libraries=older, tensorrt_headers=older)
    choice = choose(host, catalogue())
    assert choice.release.name == "24.10"
    assert "tensorrt libraries 8.6.1" in choice.reason


def test_an_old_gpu_decides() -> None:
    pascal = (Device("Tesla P100", "16384 MiB", "6.0"),)
    host = with_gpu(with_cuda("12.8.93", "570.86"), devices=pascal)
    assert choose(host, catalogue()).release.name == "24.10"


def test_an_old_compiler_decides() -> None:
    old = {n: replace(t, version="7.5.0") for n, t in MODERN.tools.items()}
    host = with_gpu(replace(with_cuda("11.8.0", "520.61"), tools=old), tensorrt_libraries=None)
    host = with_gpu(host, tensorrt_headers=None)
    assert choose(host, catalogue()).release.name == "22.01"


def test_without_a_gpu_cuda_decides_nothing() -> None:
    host = with_cuda("12.4.1", "470.57")
    assert choose(host, catalogue(), gpu=False).release.name == "25.08"


def test_what_the_host_lacks_decides_nothing() -> None:
    assert choose(Host(architecture="x86_64", glibc="2.36"), catalogue()).release.name == "25.08"


def test_the_reason_names_what_decided_and_what_is_not_known() -> None:
    reason = choose(MODERN, catalogue()).reason
    for part in (
        "glibc 2.39",
        "g++ 13.2.0",
        "CUDA 13.0.88",
        "driver 580.82.07",
        "TensorRT 10.13.2",
    ):
        assert part in reason
    assert re.search(r"of 25\.09, .*26\.08 not all is known", reason)


# --- row by row -------------------------------------------------------------------------------


def test_nothing_hinders_a_host_that_has_everything() -> None:
    assert [r for r in check(release("25.08"), MODERN, catalogue()) if r.hinders] == []


@pytest.mark.parametrize(
    ("name", "changes", "what", "state", "fix"),
    [
        ("25.08", {"boost": "1.74.0"}, "boost", "missing", "install libboost-dev"),
        ("25.08", {"boost": "", "distribution": "ubuntu-22.04"}, "boost", "missing", "BOOST_ROOT"),
        ("22.01", {"boost": ""}, "boost", "ok", ""),
        ("25.08", {"cmakes": {}}, "cmake", "missing", "install_cmake -- --release 25.08"),
        ("25.08", {"glibc": ""}, "glibc", "wrong", "a host with glibc"),
        ("22.01", {"glibc": "2.36"}, "glibc", "note", "a known trouble"),
        ("25.08", {"glibc": "2.36"}, "glibc", "ok", ""),
        ("25.08", {"disk_bytes": 10**9}, "disk", "missing", "SLIPWAY_ROOT"),
        ("25.08", {"memory_bytes": 10**9}, "memory", "note", "swap"),
        ("25.08", {"architecture": "ppc64le"}, "processor", "wrong", "another machine"),
        ("25.08", {"distribution": "fedora-42"}, "system", "note", "nothing is known"),
        ("25.08", {"tools": {}}, "g++", "missing", "install g++"),
        ("25.08", {"pythons": ()}, "python", "missing", "headers"),
    ],
)
def test_each_fact_makes_its_row(
    name: str, changes: dict[str, object], what: str, state: str, fix: str
) -> None:
    found = row(replace(MODERN, **changes), name, what)  # type: ignore[arg-type]
    assert found.state == state
    assert fix in found.fix
    assert bool(found.fix) or not found.hinders


def test_a_cmake_on_path_will_do_where_it_fits() -> None:
    def with_cmake(version: str) -> Host:
        tools = {**MODERN.tools, "cmake": Tool(Path("/usr/bin/cmake"), version)}
        return replace(MODERN, cmakes={}, tools=tools)

    assert row(with_cmake("3.25.1"), "25.08", "cmake").state == "missing"
    assert row(with_cmake("3.31.9"), "25.08", "cmake").state == "ok"
    newer = row(with_cmake("4.1.0"), "25.08", "cmake")
    assert (newer.state, newer.needed) == ("note", "<4 as it is")
    assert "install_cmake" in newer.fix


def test_a_compiler_too_new_for_cuda_is_named_with_the_one_that_fits() -> None:
    cuda = Cuda(Path("/c"), "12.0.1", newest_gcc=12)
    found = row(with_gpu(MODERN, cuda=cuda), "24.10", "g++")
    assert (found.state, found.needed) == ("missing", ">=9,<13")
    assert "gcc-12" in found.fix
    assert "CUDAHOSTCXX" in found.fix
    assert row(with_gpu(MODERN, cuda=cuda), "24.10", "g++", gpu=False).state == "ok"


def test_the_interpreter_is_the_one_that_needs_no_help() -> None:
    pythons = tuple(
        Python(Path(f"/usr/bin/python{v}"), f"{v}.1", headers=h)
        for v, h in (("3.12", True), ("3.9", False), ("3.11", True), ("3.10", True))
    )
    host = replace(MODERN, pythons=pythons)
    assert "python3.10" in row(host, "22.01", "python").found
    assert "python3.12" in row(host, "25.08", "python").found
    bare = replace(host, pythons=pythons[1:2])
    assert "without headers" in row(bare, "22.01", "python").found


def test_packages_are_asked_for_by_the_distributions_own_names() -> None:
    def names(host: Host) -> set[str]:
        rows = check(release("25.08"), host, catalogue())
        return {r.package for r in rows if r.state == "missing" and r.package}

    debian = replace(MODERN, distribution="debian-12", packages={"git": "1:2.39.5"})
    assert "libboost1.81-dev" in names(debian)
    assert "git" not in names(debian)
    assert "libboost-dev" in names(replace(debian, distribution="ubuntu-24.04"))
    assert names(replace(debian, distribution="fedora-42")) == set()
    assert names(replace(debian, packages=None)) == set()
    examples = row(debian, "25.08", "examples")
    assert examples.state == "note"
    assert "libopencv-dev" in examples.fix
