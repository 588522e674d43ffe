"""Deploying a TensorRT plan, on a host that has a GPU as far as these tests need one.

The graph, its conversion, the builds and every comparison are real. Running a plan is not: see
``gpu_host`` and ``standin_tensorrt`` for what stands in. No server is started, for none here can
run a plan.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from gpu_host import (
    SERVER_TENSORRT,
    edit_record,
    install_standin,
    nvidia_smi,
    own_vendor,
    server_built_with,
)
from helpers import Slipway, deploy_tiny, own_root, tiny_onnx
from test_deploy import contents

from pipeline.config import read_config
from pipeline.manifest import Manifest, damaged
from pipeline.plan import PlanRecord, sidecar
from pipeline.repository import Repository
from provision import servers, tensorrt_python
from provision.errors import HostError
from provision.files import sha256
from provision.layout import Layout

MODEL = "squeezenet1_1"
NO_BUILDER = """
def Builder(logger):
    logger.log(Logger.ERROR, 'CUDA initialization failure with error: NUMBER')
    raise TypeError('pybind11::init(): factory function returned nullptr')
"""


@dataclass(frozen=True)
class GpuHost:
    """A root, its stand-in TensorRT, and the weights of a real network."""

    layout: Layout
    standin: Path
    weights: Path
    slipway: Slipway

    def deploy(self, *options: str | Path) -> tuple[int, str]:
        """Deploy the network; the exit code, and what was printed."""
        done = self.slipway("deploy", MODEL, "--weights", self.weights, *options)
        return done.returncode, done.stdout + done.stderr

    @property
    def manifest(self) -> Manifest:
        manifest = Repository(self.layout).latest(MODEL)
        assert manifest
        return manifest


@pytest.fixture(scope="module")
def gpu_host(
    tmp_path_factory: pytest.TempPathFactory, host: Layout, fixture: Callable[[str], Path]
) -> Iterator[GpuHost]:
    folder = tmp_path_factory.mktemp("gpu")
    weights = fixture("squeezenet1_1-imagenet1k_v1.pth")
    layout = own_root(folder, host)
    own_vendor(layout, host)
    standin = install_standin(layout, host)
    server_built_with(layout)
    with pytest.MonkeyPatch.context() as patch:
        nvidia_smi(folder / "bin", patch)
        patch.setenv("SLIPWAY_ROOT", str(layout.root))
        yield GpuHost(layout, standin, weights, Slipway(layout))


@pytest.fixture(scope="module")
def deployed(gpu_host: GpuHost) -> tuple[GpuHost, str]:
    """The network as an fp16 plan, deployed by `auto`; and what was printed."""
    code, said = gpu_host.deploy("--precision=fp16", "--batch=1:2:4", "--cuda-graphs")
    assert code == 0, said
    return gpu_host, said


@pytest.mark.export
def test_auto_takes_tensorrt_and_proves_the_plan(deployed: tuple[GpuHost, str]) -> None:
    gpu_host, said = deployed
    assert f"engine tensorrt: NVIDIA L4, TensorRT {SERVER_TENSORRT} and a server built with it" in (
        said
    )
    assert "26 convolution layers in fp16" in said
    assert "✓ Compare the plan with ONNX Runtime: largest error " in said
    manifest = gpu_host.manifest
    assert damaged(manifest, gpu_host.layout.models / MODEL) == []
    engine = manifest.engine
    assert (engine["name"], engine["precision"]) == ("tensorrt", "fp16")
    assert engine["layers"]["layers"] == {"fp16": 1}
    assert engine["gpu"] == {"name": "NVIDIA L4", "capability": "8.9", "driver": "580.82.07"}
    for part in ("graph", "plan"):
        cases = manifest.verification[part]["cases"]
        assert [case["batch"] for case in cases] == [3, 1, 2, 4]
        assert all(case["passed"] and case["cosine"] > 0.999 for case in cases)
        assert manifest.verification[part]["tolerance"]["reason"].startswith("fp16 against fp32")
    assert manifest.verification["plan"]["polygraphy"]
    assert manifest.verification["between"] == ["PyTorch", "ONNX Runtime"]


@pytest.mark.export
def test_what_is_deployed_is_a_plan_with_its_record(deployed: tuple[GpuHost, str]) -> None:
    gpu_host, _ = deployed
    folder = gpu_host.layout.models / MODEL
    names = sorted(path.name for path in (folder / "1").iterdir())
    assert names == ["model.plan", "model.plan.json", "reference.npz"]
    record = PlanRecord.read(folder / "1" / "model.plan")
    assert record
    assert record.product == "tensorrt"
    config = read_config(folder / "config.pbtxt")
    assert (config.platform, config.backend) == ("tensorrt_plan", "")
    assert config.max_batch_size == 4
    assert [list(group.gpus) for group in config.instance_group] == [[0]]
    assert config.optimization.cuda.graphs
    assert config.HasField("dynamic_batching")


@pytest.mark.export
def test_clients_cannot_tell_the_engines_apart(deployed: tuple[GpuHost, str]) -> None:
    """The two configurations differ in backend fields alone."""
    gpu_host, _ = deployed
    plan = read_config(gpu_host.layout.models / MODEL / "config.pbtxt")
    name = ("--name", "on_cpu", "--max-batch-size", "4")
    code, said = gpu_host.deploy("--engine=onnxruntime", *name)
    assert code == 0, said
    cpu = read_config(gpu_host.layout.models / "on_cpu" / "config.pbtxt")
    for config in (plan, cpu):
        for field in ("name", "platform", "backend", "instance_group", "optimization"):
            config.ClearField(field)
        config.parameters.clear()
    assert plan == cpu


@pytest.mark.export
def test_the_recipes_form_has_no_batch(deployed: tuple[GpuHost, str]) -> None:
    gpu_host, _ = deployed
    code, said = gpu_host.deploy("--max-batch-size=0", "--name=single")
    assert code == 0, said
    config = read_config(gpu_host.layout.models / "single" / "config.pbtxt")
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 0)
    assert list(config.input[0].dims) == [3, 224, 224]
    assert list(config.input[0].reshape.shape) == [1, 3, 224, 224]
    assert list(config.output[0].reshape.shape) == [1, 1000]
    record = PlanRecord.read(gpu_host.layout.models / "single" / "1" / "model.plan")
    assert record
    assert record.profile == {"input": [[1, 3, 224, 224]] * 3}


@pytest.mark.export
def test_nothing_is_done_where_nothing_has_changed(deployed: tuple[GpuHost, str]) -> None:
    gpu_host, _ = deployed
    before = gpu_host.manifest.version
    code, said = gpu_host.deploy("--precision=fp16", "--batch=1:2:4", "--cuda-graphs")
    assert code == 0, said
    assert "nothing has changed" in said
    assert gpu_host.manifest.version == before


@pytest.mark.export
def test_a_plan_that_answers_wrongly_is_not_deployed(deployed: tuple[GpuHost, str]) -> None:
    gpu_host, _ = deployed
    before = contents(gpu_host.layout)
    wrong = gpu_host.standin / "wrong.txt"
    wrong.touch()
    try:
        code, said = gpu_host.deploy("--batch=1:2:4", "--debug")
    finally:
        wrong.unlink()
    assert code == 22, said
    assert "the plan does not compute what the original computes in fp32" in said
    assert "The worst outputs:\n    sample photos: row " in said
    assert "first layer that differs is " in said
    assert contents(gpu_host.layout) == before


@pytest.fixture(scope="module")
def ready(deployed: tuple[GpuHost, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plan that was deployed, with its record, somewhere else."""
    gpu_host, _ = deployed
    folder = gpu_host.layout.models / MODEL / "1"
    target = tmp_path_factory.mktemp("ready") / "model.plan"
    shutil.copy(folder / "model.plan", target)
    shutil.copy(folder / "model.plan.json", sidecar(target))
    return target


@pytest.mark.export
def test_a_ready_plan_is_proved_again_and_deployed(
    deployed: tuple[GpuHost, str], ready: Path
) -> None:
    gpu_host, _ = deployed
    code, said = gpu_host.deploy("--plan", ready, "--name=ready", "--max-batch-size=4")
    assert code == 0, said
    assert "✓ Compare the plan with ONNX Runtime" in said
    assert sha256(gpu_host.layout.models / "ready" / "1" / "model.plan") == sha256(ready)


@pytest.mark.export
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sha256": "0" * 64}, "is not the record of this model.plan"),
        ({"tensorrt": "10.13.3.9"}, "says that TensorRT 10.13.3.9 built the plan, and the plan"),
        ({"product": "tensorrt_rtx"}, "says that TensorRT for RTX"),
        (
            {"gpu": {"name": "Tesla T4", "capability": "7.5", "driver": "580"}},
            "was built for Tesla T4 of compute capability 7.5, and this host has NVIDIA L4",
        ),
        ({"gpu": {}}, "was built for no GPU that its record names"),
        ({"onnx_sha256": "1" * 64}, "was made from another ONNX file than this model's"),
        ({"schema": 99}, "it is of schema 99"),
    ],
)
def test_a_plan_with_a_wrong_record_cannot_be_deployed(
    deployed: tuple[GpuHost, str],
    ready: Path,
    tmp_path: Path,
    changes: dict[str, object],
    said: str,
) -> None:
    gpu_host, _ = deployed
    plan = tmp_path / "model.plan"
    shutil.copy(ready, plan)
    shutil.copy(sidecar(ready), sidecar(plan))
    edit_record(plan, **changes)
    before = contents(gpu_host.layout)
    code, printed = gpu_host.deploy("--plan", plan, "--max-batch-size=4")
    assert code == 26, printed
    assert said in printed
    assert "fix: " in printed
    assert contents(gpu_host.layout) == before


@pytest.mark.export
def test_a_plan_for_another_server_cannot_be_deployed(
    deployed: tuple[GpuHost, str], ready: Path, tmp_path: Path
) -> None:
    gpu_host, _ = deployed
    bare = tmp_path / "model.plan"
    shutil.copy(ready, bare)
    server_built_with(gpu_host.layout, "10.13.3")
    try:
        for plan in (ready, bare):  # one of them without a record
            code, said = gpu_host.deploy("--plan", plan)
            assert code == 26
            assert "was built by TensorRT 11.4.0.106, and the backend of Triton 2.60.0 built" in (
                said
            )
            assert "was built with TensorRT 10.13.3" in said
            assert "fix: `nox -s install_tensorrt -- --wheels 10.13.3`" in said
        code, said = gpu_host.deploy("--engine=tensorrt")
        assert code == 10
        assert "no Python of this host has TensorRT 10.13.3" in said
    finally:
        server_built_with(gpu_host.layout)
    code, said = gpu_host.deploy("--plan", bare)
    assert code == 26
    assert "has no record beside it, so what it computes is not known" in said


@pytest.mark.export
def test_convert_alone_takes_the_same_tensorrt(
    deployed: tuple[GpuHost, str], tmp_path: Path
) -> None:
    gpu_host, _ = deployed
    path, plan = tiny_onnx(tmp_path / "tiny.onnx"), tmp_path / "tiny.plan"
    options = ("--batch=1:2:4", "--workspace=64MiB", "--opt-level=2")
    done = gpu_host.slipway("convert", path, plan, *options, "--precision=tf32")
    assert done.returncode == 0, done.stderr
    record = PlanRecord.read(plan)
    assert record
    assert record.options == {
        "workspace": 2**26,
        "opt_level": 2,
        "hardware": "",
        "version_compatible": False,
        "flags": ["TF32"],
    }
    assert record.verification["plan"]["cases"][0]["passed"]
    cache = gpu_host.layout.factory / "timing" / "tensorrt-11.4.0.106-NVIDIA-L4.cache"
    assert cache.is_file()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("raise ModuleNotFoundError(name='tensorrt')", "was found, and cannot be imported"),
        (
            "raise ImportError('libnvinfer.so.11: cannot open shared object file')",
            "its libraries cannot be loaded: libnvinfer.so.11",
        ),
        (
            NO_BUILDER.replace("NUMBER", "35"),
            "NVIDIA's driver is too old for TensorRT 11.4.0.106",
        ),
        (
            NO_BUILDER.replace("NUMBER", "100"),
            "TensorRT 11.4.0.106 finds no GPU that it can use",
        ),
    ],
)
def test_what_is_wrong_with_tensorrt_is_told_apart(
    gpu_host: GpuHost, tmp_path: Path, spoil: str, said: str
) -> None:
    module = gpu_host.standin / "__init__.py"
    kept = module.read_text()
    module.write_text(f"{kept}\n{spoil}\n")
    path = tiny_onnx(tmp_path / "tiny.onnx")
    try:
        done = gpu_host.slipway("convert", path, tmp_path / "x.plan", "--batch=1:2:4")
    finally:
        module.write_text(kept)
    assert done.returncode == 10, done.stdout + done.stderr
    assert said in done.stderr
    assert "`--engine onnxruntime` serves the model on the CPU" in done.stderr


def test_a_plan_that_the_server_cannot_load_is_announced(gpu_host: GpuHost, tmp_path: Path) -> None:
    path = tiny_onnx(tmp_path / "tiny.onnx")
    server_built_with(gpu_host.layout, "10.13.3")
    try:
        done = gpu_host.slipway("convert", path, tmp_path / "x.plan", "--batch=1:2:4")
    finally:
        server_built_with(gpu_host.layout)
    assert done.returncode == 0, done.stderr
    said = "! the server built here has TensorRT 10.13.3, and cannot load this plan"
    assert said in done.stdout + done.stderr


def test_a_version_that_is_not_there_is_named(gpu_host: GpuHost) -> None:
    found = [one.version for one in tensorrt_python.candidates(gpu_host.layout)]
    assert found == ["11.4.0.106"]
    with pytest.raises(HostError, match=r"TensorRT 10\.13 is not installed .* there is 11\.4\.0"):
        tensorrt_python.find(gpu_host.layout, "10.13")


def test_a_plan_is_served_by_the_server_that_was_built(layout: Layout) -> None:
    manifest = deploy_tiny(layout)
    repository = Repository(layout)
    assert repository.plans() == {}
    path = repository.manifest_path("tiny", manifest.version)
    engine = {"name": "tensorrt", "precision": "fp16", "version_compatible": True}
    path.write_text(json.dumps({**manifest.to_json(), "engine": engine}))
    assert repository.plans() == {"tiny": True}
    with pytest.raises(HostError, match="embedded server has no backend for TensorRT plans"):
        servers.server_installation(layout, "embedded", plans=repository.plans())
    with pytest.raises(HostError, match="no server was built"):
        servers.server_installation(layout, plans=repository.plans())
    server_built_with(layout, "11.4.0")
    chosen = servers.server_installation(layout, plans=repository.plans())
    assert chosen.name == "Triton 2.60.0 built here"
    assert chosen.backend_config == ("tensorrt,version-compatible=true",)
