"""The doctor, run as a user runs it; NVIDIA's programs and apt alone are stand-ins, on PATH."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from provision import doctor, gpu, releases
from provision.gpu import read_cuda, read_gpu
from provision.host import Tool, find_tool, read_host
from provision.layout import REPOSITORY, Layout
from provision.requirements import Row

# What the programs of a host with an H100 print.
NVIDIA_SMI = """
case "$1" in
  --query-gpu=*) echo "NVIDIA H100 80GB HBM3, 580.82.07, 81559 MiB, 9.0" ;;
  *) exit 1 ;;
esac
"""
NVCC = """
case "$*" in
  --version) echo "Cuda compilation tools, release 13.0, V13.0.88" ;;
  --dryrun*) echo "#\\$ TOP=$(dirname "$(dirname "$(readlink -f "$0")")")" >&2 ;;
  --list-gpu-arch) printf 'compute_75\\ncompute_90\\n' ;;
esac
"""
HOST_CONFIG = "#if __GNUC__ > 15\n#error unsupported GNU version\n#endif\n"
TENSORRT_VERSION = """
#define TRT_MAJOR_ENTERPRISE 10
#define TRT_MINOR_ENTERPRISE 13
#define TRT_PATCH_ENTERPRISE 2
#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE
#define NV_TENSORRT_MINOR TRT_MINOR_ENTERPRISE
#define NV_TENSORRT_PATCH TRT_PATCH_ENTERPRISE
"""


# The distribution's programs alone: version managers answer slowly, and differ.
SYSTEM_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"


def script(path: Path, body: str) -> Path:
    """A program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}")
    path.chmod(0o755)
    return path


@pytest.fixture
def cuda(tmp_path: Path) -> Path:
    """A CUDA toolkit, as far as it is asked."""
    root = tmp_path / "cuda"
    script(root / "bin" / "nvcc", NVCC)
    header = root / "include" / "crt" / "host_config.h"
    header.parent.mkdir(parents=True)
    header.write_text(HOST_CONFIG)
    return root


@pytest.fixture
def tensorrt(tmp_path: Path) -> Path:
    """A TensorRT root: headers and a library with its links."""
    root = tmp_path / "tensorrt"
    (root / "include").mkdir(parents=True)
    (root / "include" / "NvInfer.h").touch()
    (root / "include" / "NvInferVersion.h").write_text(TENSORRT_VERSION)
    (root / "lib").mkdir()
    (root / "lib" / "libnvinfer.so.10.13.2").touch()
    (root / "lib" / "libnvinfer.so.10").symlink_to("libnvinfer.so.10.13.2")
    (root / "lib" / "libnvinfer.so").symlink_to("libnvinfer.so.10")
    return root


@pytest.fixture
def no_nvidia(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A host without anything of NVIDIA's, whatever this one has."""
    for name in ("CUDA_HOME", "CUDA_PATH", "TENSORRT_ROOT", "CUDNN_ROOT", "LD_LIBRARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpu, "_DEFAULT_CUDA", tmp_path / "none")
    monkeypatch.setattr(gpu, "_SYSTEM_HEADERS", ())
    monkeypatch.setattr(gpu, "_SYSTEM_LIBRARIES", ())
    monkeypatch.setattr("sysconfig.get_config_var", lambda _: None)
    monkeypatch.setenv("PATH", path_without("nvcc", "nvidia-smi"))


def path_without(*names: str) -> str:
    """PATH without the folders that have certain programs."""
    folders = os.environ["PATH"].split(os.pathsep)
    return os.pathsep.join(f for f in folders if not any(Path(f, n).exists() for n in names))


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the doctor with a root of its own."""

    def doctor(
        *arguments: str, env: Mapping[str, str | Path] | None = None
    ) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, "SLIPWAY_ROOT": str(tmp_path / "root"), "PATH": SYSTEM_PATH}
        variables |= {name: str(value) for name, value in (env or {}).items()}
        return subprocess.run(
            [sys.executable, "-m", "provision", "doctor", *arguments],
            cwd=REPOSITORY,
            env=variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return doctor


def as_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What it printed."""
    assert done.returncode in {0, 10}, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def rows(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows by name."""
    return {row["name"]: row for row in result["rows"]}


# --- the facts --------------------------------------------------------------------------------


def test_the_facts_are_those_of_this_host(tmp_path: Path) -> None:
    host = read_host(Layout(tmp_path / "not" / "there"), {"base-files", "no-such-package"})
    assert 1 <= host.cores <= len(os.sched_getaffinity(0))
    assert host.disk_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    assert host.memory_bytes > 10**8
    assert host.architecture == os.uname().machine
    assert re.fullmatch(r"\d\.\d+", host.glibc)
    assert host.tools["git"].version in subprocess.check_output(["git", "--version"], text=True)
    if shutil.which("dpkg-query"):
        assert host.packages is not None
        assert set(host.packages) == {"base-files"}
    assert not (tmp_path / "not").exists()


def test_an_interpreter_is_a_real_one_with_its_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shim = script(tmp_path / "python3", f'exec {sys.executable} "$@"\n')
    monkeypatch.setenv("PATH", f"{shim.parent}{os.pathsep}{os.environ['PATH']}")
    pythons = read_host(Layout(tmp_path), ()).pythons
    assert pythons
    assert all(python.executable != shim for python in pythons)
    assert len({python.executable for python in pythons}) == len(pythons)
    for python in pythons:
        code = "import sys; print(*sys.version_info[:3], sep='.')"
        said = subprocess.check_output([python.executable, "-I", "-c", code], text=True)
        assert said.strip() == python.version


def test_boost_is_known_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = tmp_path / "boost" / "boost" / "version.hpp"
    header.parent.mkdir(parents=True)
    header.write_text("// comment\n#define BOOST_VERSION 108100\n")
    monkeypatch.setenv("BOOST_ROOT", str(tmp_path / "boost"))
    assert read_host(Layout(tmp_path), ()).boost == "1.81.0"


def test_a_program_that_does_not_run_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path / "make", "exit 1\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_tool("make") is None
    assert find_tool("cmake") is None


def test_the_compiler_is_the_one_that_its_variable_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = script(tmp_path / "g++-12", "echo g++-12 12.9.9\n")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{SYSTEM_PATH}")
    for value in ("g++-12", str(other), "env g++-12"):
        monkeypatch.setenv("CXX", value)
        assert find_tool("g++") == Tool(other, "12.9.9")
    monkeypatch.setenv("CXX", "")
    found = find_tool("g++")
    assert found is None or found.path != other


@pytest.mark.usefixtures("no_nvidia")
def test_a_host_without_nvidia_has_none_of_it() -> None:
    assert read_gpu(Path(sys.executable)) == gpu.Gpu()


@pytest.mark.usefixtures("no_nvidia")
def test_driver_and_gpus_are_the_drivers_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path / "bin" / "nvidia-smi", NVIDIA_SMI)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    found = read_gpu(None)
    assert found.driver == "580.82.07"
    assert found.devices == (gpu.Device("NVIDIA H100 80GB HBM3", "81559 MiB", "9.0"),)


@pytest.mark.usefixtures("no_nvidia")
@pytest.mark.parametrize("body", ["exit 9\n", "echo 'NVIDIA-SMI has failed'\n", "kill -9 $$\n"])
def test_a_driver_that_does_not_answer_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    script(tmp_path / "nvidia-smi", body)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert read_gpu(None).driver == ""


@pytest.mark.usefixtures("no_nvidia")
def test_cuda_is_found_by_its_variable_on_path_and_through_a_script(
    tmp_path: Path, cuda: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = gpu.Cuda(cuda, "13.0.88", (75, 90), newest_gcc=15)
    monkeypatch.setenv("CUDA_HOME", str(cuda))
    assert read_cuda() == expected
    monkeypatch.delenv("CUDA_HOME")
    assert read_cuda() is None
    script(tmp_path / "bin" / "nvcc", f'exec {cuda}/bin/nvcc "$@"\n')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert read_cuda() == expected


@pytest.mark.usefixtures("no_nvidia")
def test_a_variable_that_leads_nowhere_is_not_passed_over(
    tmp_path: Path, cuda: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{cuda / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nothing"))
    assert read_cuda() is None


@pytest.mark.usefixtures("no_nvidia")
def test_tensorrt_is_three_facts(
    tmp_path: Path, tensorrt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORRT_ROOT", str(tensorrt))
    found = read_gpu(None)
    assert found.tensorrt_headers == gpu.Found("10.13.2", tensorrt / "include")
    library = tensorrt / "lib" / "libnvinfer.so.10.13.2"
    assert found.tensorrt_libraries == gpu.Found("10.13.2", library)
    assert found.tensorrt_python is None

    (tensorrt / "include" / "NvInfer.h").unlink()
    assert read_gpu(None).tensorrt_headers is None

    site = tmp_path / "site"
    info = site / "tensorrt-10.13.2.6.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt\nVersion: 10.13.2.6\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    python = read_gpu(Path(sys.executable)).tensorrt_python
    assert python == gpu.Found("10.13.2.6", site / "tensorrt")


@pytest.mark.usefixtures("no_nvidia")
def test_cudnn_is_known_by_library_or_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = tmp_path / "include" / "cudnn_version.h"
    header.parent.mkdir()
    header.write_text("#define CUDNN_MAJOR 9\n#define CUDNN_MINOR 12\n#define CUDNN_PATCHLEVEL 0\n")
    monkeypatch.setenv("CUDNN_ROOT", str(tmp_path))
    assert read_gpu(None).cudnn == gpu.Found("9.12.0", header.parent)


# --- the command ------------------------------------------------------------------------------


def test_a_host_that_lacks_something_gets_the_rows_and_10(
    run: Callable[..., subprocess.CompletedProcess[str]], cuda: Path
) -> None:
    done = run("--release", "25.08", env={"CUDA_HOME": cuda})
    assert done.returncode == 10
    assert "Triton 2.60.0 (25.08): asked for" in done.stdout
    assert re.search(r"✗ +cmake .* >=3\.31\.8 .*install_cmake -- --release 25\.08", done.stdout)
    assert re.search(r"✓ +cuda +13\.0\.88, for 7\.5, 9\.0 +>=12\.8", done.stdout)
    assert re.search(r"✗ 25\.08 cannot be built here yet: .*cmake", done.stdout)
    assert done.stderr == ""


def test_json_has_every_fact_and_row_and_why(
    run: Callable[..., subprocess.CompletedProcess[str]], cuda: Path, tensorrt: Path
) -> None:
    result = as_json(run("--json", env={"CUDA_HOME": cuda, "TENSORRT_ROOT": tensorrt}))
    assert result["release"] == "25.08"
    assert "CUDA 13.0.88" in result["reason"]
    assert "TensorRT 10.13.2" in result["reason"]
    assert result["host"]["gpu"]["cuda"]["architectures"] == [75, 90]
    found = rows(result)
    assert found["tensorrt headers"]["state"] == "ok"
    assert found["tensorrt libraries"]["state"] == "ok"
    assert found["cuda"]["hinders"] is False
    assert found["cmake"]["hinders"] is True
    assert result["can_build"] is False


def test_a_host_that_has_everything_gets_0(
    run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Without a GPU, with stand-ins for what a machine may not have: CMake, Boost, packages."""
    bin_ = tmp_path / "bin"
    script(bin_ / "cmake", "echo cmake version 3.31.10\n")
    installed = 'shift 3; for p in "$@"; do echo "$p installed 1.0"; done\n'
    script(bin_ / "dpkg-query", installed)
    header = tmp_path / "boost" / "boost" / "version.hpp"
    header.parent.mkdir(parents=True)
    header.write_text("#define BOOST_VERSION 108300\n")
    env = {"PATH": f"{bin_}{os.pathsep}{SYSTEM_PATH}", "BOOST_ROOT": tmp_path / "boost"}
    result = as_json(done := run("--json", "--no-gpu", "--release", "25.08", env=env))
    hindered = {n for n, row in rows(result).items() if row["hinders"]}
    # Whether this host has a compiler and Python's headers is the host's matter.
    assert hindered <= {"gcc", "g++", "make", "python", "disk"}
    assert done.returncode == (10 if hindered else 0)


def test_a_cuda_that_rules_a_release_out_is_told(
    run: Callable[..., subprocess.CompletedProcess[str]], cuda: Path
) -> None:
    script(cuda / "bin" / "nvcc", NVCC.replace("13.0", "12.4"))
    result = as_json(run("--json", env={"CUDA_HOME": cuda}))
    assert result["release"] == "24.10"
    assert "25.08: cuda 12.4.88 is not >=12.8" in result["reason"]
    asked = rows(as_json(run("--json", "--release", "2.60.0", env={"CUDA_HOME": cuda})))
    assert (asked["cuda"]["state"], asked["cuda"]["needed"]) == ("wrong", ">=12.8")
    assert "--no-gpu" in asked["cuda"]["fix"]


def test_an_unknown_release_is_wrong_usage(
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = run("--release", "25.13")
    assert done.returncode == 2
    assert "there is no release 25.13" in done.stderr
    assert "22.01 (Triton 2.18.0)" in done.stderr
    assert done.stdout == ""


def test_it_explains_itself(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "--install" in done.stdout


def test_without_its_libraries_it_names_the_way_that_brings_them() -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "provision", "doctor"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 10
    assert re.search(r"lacks the module (rich|packaging)", done.stderr)
    assert "nox -s doctor" in done.stderr


# --- what it installs -------------------------------------------------------------------------


def test_operations_are_apts_and_nothing_where_nothing_is_missing() -> None:
    missing = [
        Row("a", "missing", "", package="a-dev"),
        Row("b", "ok", "1.0", package="b-dev"),
        Row("cmake", "missing", ""),
    ]
    as_root = [str(operation) for operation in doctor.operations(missing, root=True)]
    apt = "env DEBIAN_FRONTEND=noninteractive apt-get"
    assert as_root == [f"{apt} update", f"{apt} install --yes --no-install-recommends a-dev"]
    as_user = [str(operation) for operation in doctor.operations(missing, root=False)]
    assert as_user == [f"sudo {command}" for command in as_root]
    assert list(doctor.operations(missing[1:], root=True)) == []


@pytest.fixture
def apt(tmp_path: Path) -> Path:
    """A Debian that installs by writing names into a file: apt-get, sudo and dpkg-query."""
    bin_ = tmp_path / "bin"
    log, state = bin_ / "log", bin_ / "installed"
    state.parent.mkdir()
    state.write_text("git\n")
    script(
        bin_ / "apt-get",
        f'echo "$@" >> {log}\n'
        f'[ "$1" = install ] || exit 0\nshift 3\nfor p in "$@"; do echo "$p" >> {state}; done\n'
        "echo apt-get says something\n",
    )
    script(bin_ / "sudo", f'echo sudo >> {log}\nexec "$@"\n')
    script(
        bin_ / "dpkg-query",
        f'shift 3\nfor p in "$@"; do grep -qx "$p" {state} && echo "$p installed 1.0"; done\n',
    )
    return bin_


def debian(bin_: Path) -> dict[str, str]:
    return {"PATH": f"{bin_}{os.pathsep}{SYSTEM_PATH}"}


@pytest.fixture
def _known_distribution() -> None:
    release = platform.freedesktop_os_release()
    if f"{release.get('ID')}-{release.get('VERSION_ID')}" not in releases.release("25.08").apt:
        pytest.skip("needs a distribution whose packages are known")


@pytest.mark.usefixtures("_known_distribution")
def test_nothing_is_installed_unless_asked(
    run: Callable[..., subprocess.CompletedProcess[str]], apt: Path
) -> None:
    done = run("--no-gpu", "--release", "25.08", env=debian(apt))
    assert "$ " not in done.stdout
    dry = run("--no-gpu", "--release", "25.08", "--install", "--dry-run", env=debian(apt))
    assert re.search(r"\$ .*apt-get install .* rapidjson-dev", dry.stdout)
    assert not (apt / "log").exists()


@pytest.mark.usefixtures("_known_distribution")
def test_install_shows_each_command_runs_it_and_looks_again(
    run: Callable[..., subprocess.CompletedProcess[str]], apt: Path
) -> None:
    done = run("--no-gpu", "--release", "25.08", "--install", "--json", env=debian(apt))
    result = as_json(done)
    log = (apt / "log").read_text().splitlines()
    if os.geteuid() == 0:
        assert "sudo" not in log
    else:
        assert log[0] == "sudo"
    ran = [line for line in log if line != "sudo"]
    assert ran[0] == "update"
    assert ran[1].startswith("install --yes --no-install-recommends ")
    assert "git" not in ran[1].split()
    shown = re.findall(r"^\$ (.+)$", done.stderr, re.MULTILINE)
    assert [line.split("apt-get ")[1] for line in shown] == ran
    assert "apt-get says something" in done.stderr
    assert rows(result)["rapidjson-dev"]["found"] == "1.0"
    # What is there now is not installed again.
    run("--no-gpu", "--release", "25.08", "--install", env=debian(apt))
    assert (apt / "log").read_text().splitlines() == log


@pytest.mark.usefixtures("_known_distribution")
def test_an_installation_that_fails_is_told(
    run: Callable[..., subprocess.CompletedProcess[str]], apt: Path
) -> None:
    script(apt / "apt-get", "echo E: broken >&2\nexit 100\n")
    done = run("--no-gpu", "--release", "25.08", "--install", env=debian(apt))
    assert done.returncode == 10
    assert "E: broken" in done.stderr
    assert "failed with exit code 100" in done.stderr
