"""Conversions with the real TensorRT for RTX, which builds plans without a GPU.

Nothing here runs a plan: no machine without an RTX card can.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import SIDE, Slipway, tiny_onnx

from pipeline import convert, graph, tensorrt_worker
from pipeline.builder import Builder, no_gpu
from pipeline.convert import Conversion
from pipeline.plan import PlanRecord, read_header, sidecar
from pipeline.plan_options import Batches, PlanOptions
from pipeline.proof import Worker
from provision import environments, tensorrt_python
from provision.environments import Environment
from provision.errors import ConversionError, HostError, SlipwayError, UsageError
from provision.files import sha256
from provision.layout import REPOSITORY, Layout

RTX = "--engine=tensorrt_rtx"
DYNAMIC, FIXED = Batches(1, 2, 4), Batches(4, 4, 4)
# One of each kind: residual, plain, depthwise, shuffled, squeeze and excitation, transformer.
ARCHITECTURES = (
    *("resnet50", "squeezenet1_1", "mobilenet_v3_small"),
    *("shufflenet_v2_x0_5", "efficientnet_b0", "swin_t"),
)
_EXPORT = """
import sys
from pathlib import Path
import numpy as np
from pipeline.export import export_onnx
from pipeline.weights import WeightsSpec, load
folder, *names = sys.argv[1:]
images = np.random.default_rng(0).standard_normal((2, 3, 224, 224), np.float32)
for name in names:
    model, _ = load(name, WeightsSpec("random", "0"), calibration=images, progress=print)
    export_onnx(model, Path(folder, name + ".onnx"), crop=224)
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, export_python: Path) -> Path:
    """A folder with the ONNX file of each architecture, with seeded random weights."""
    folder = tmp_path_factory.mktemp("onnx")
    command = [str(export_python), "-c", _EXPORT, str(folder), *ARCHITECTURES]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=600)
    return folder


@pytest.fixture
def builder(layout: Layout, tmp_path: Path) -> Builder:
    """TensorRT for RTX."""
    return Builder(tensorrt_python.for_rtx(layout), (), tmp_path, tmp_path / "log")


@pytest.fixture
def build(layout: Layout, tmp_path: Path, builder: Builder) -> Callable[..., dict[str, Any]]:
    """Put a precision into a graph and build a plan of it, without judging what it computes.

    Random weights amplify what is rounded, so that most of these networks would not pass.
    """

    def run(path: Path, precision: str, batches: Batches | None) -> dict[str, Any]:
        capabilities = ("8.9",) if precision == "fp8" else ("8.6", "12.0")
        options = PlanOptions(precision, batches, capabilities=capabilities)
        worker = Worker(layout, tmp_path, tmp_path / "log")
        whole = graph.from_json(worker({"job": "read", "onnx": str(path)}))
        conversion = Conversion(path, tmp_path / "model.plan", options)
        worker(convert._precision_request(conversion, options, tmp_path, whole))
        converted, plan = tmp_path / "converted.onnx", tmp_path / "model.plan"
        profile = whole.profile(batches)
        built = builder.build(converted, plan, options, profile, timing_cache=None)
        return {**built, "size": plan.stat().st_size}

    return run


@pytest.mark.export
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_real_plans_of_each_architecture(
    exported: Path, tmp_path: Path, build: Callable[..., dict[str, Any]], architecture: str
) -> None:
    path = exported / f"{architecture}.onnx"
    wide = build(path, "fp32", DYNAMIC)
    half = build(path, "fp16", DYNAMIC)
    assert read_header(tmp_path / "model.plan").product == "tensorrt_rtx"
    byte = build(path, "int8", DYNAMIC)
    for kind in ("CONVOLUTION", "MATRIX_MULTIPLY"):
        if kind in wide["layers"]:
            count = wide["layers"][kind]["FLOAT"]
            assert wide["layers"][kind] == {"FLOAT": count}
            assert half["layers"][kind] == {"HALF": count}
    assert byte["quantized"] >= 0.5
    assert set(byte["layers"]["QUANTIZE"]) == {"INT8"}
    assert half["size"] < 0.75 * wide["size"]  # mostly weights, each of two bytes
    fixed = build(path, "fp32", FIXED)
    assert fixed["layers"] == wide["layers"]
    assert wide["flags"] == half["flags"] == byte["flags"] == []


@pytest.mark.export
def test_a_fixed_batch_and_fp8(exported: Path, build: Callable[..., dict[str, Any]]) -> None:
    path = exported / "squeezenet1_1.onnx"
    assert build(path, "fp32", FIXED)["layers"]["CONVOLUTION"] == {"FLOAT": 26}
    assert build(path, "fp16", FIXED)["layers"]["CONVOLUTION"] == {"HALF": 26}
    assert build(path, "int8", FIXED)["quantized"] == 1.0
    assert set(build(path, "fp8", FIXED)["layers"]["QUANTIZE"]) == {"FP8"}
    assert build(path, "tf32", FIXED)["flags"] == ["TF32"]


def test_convert_writes_the_plan_and_its_record(slipway: Slipway, tmp_path: Path) -> None:
    path, plan = tiny_onnx(tmp_path / "tiny.onnx"), tmp_path / "out" / "tiny.plan"
    done = slipway("convert", path, plan, RTX, "--batch=1:2:4", "--precision=fp16")
    assert done.returncode == 0, done.stderr
    assert "strongly typed, so each layer computes in the graph's types; TF32 is off" in done.stdout
    assert "1 matrix_multiply layers in fp16" in done.stdout
    assert "! the plan was built and not run (no GPU of this host runs it)" in done.stdout
    record = PlanRecord.read(plan)
    assert record
    assert (record.product, record.precision, record.strongly_typed) == (
        *("tensorrt_rtx", "fp16"),
        True,
    )
    assert record.onnx_sha256 == sha256(path)
    assert record.profile == {"input": [[n, 3, SIDE, SIDE] for n in (1, 2, 4)]}
    assert list(record.capabilities) == ["8.6", "8.9", "12.0"]
    assert record.outputs == [{"name": "output", "dtype": "float32", "shape": [-1, 1000]}]
    assert list(record.verification) == ["graph"]  # the plan itself did not run
    cases = record.verification["graph"]["cases"]
    assert [case["batch"] for case in cases] == [3, 1, 2, 4]
    assert 0 < max(case["max_abs"] for case in cases) < 0.1
    assert sorted(p.name for p in plan.parent.iterdir()) == ["tiny.plan", "tiny.plan.json"]


def test_the_real_network_is_right_in_each_precision(
    slipway: Slipway, tmp_path: Path, fixture: Callable[[str], Path], export_python: Path
) -> None:
    weights, path = fixture("squeezenet1_1-imagenet1k_v1.pth"), tmp_path / "squeezenet.onnx"
    code = (
        "import sys, torch, torchvision; from pathlib import Path\n"
        "from pipeline.export import export_onnx\n"
        "model = torchvision.models.squeezenet1_1().eval()\n"
        "model.load_state_dict(torch.load(sys.argv[1], weights_only=True))\n"
        "export_onnx(model, Path(sys.argv[2]), crop=224)\n"
    )
    command = [str(export_python), "-c", code, str(weights), str(path)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    sizes = {}
    for precision, least in (("fp32", 0.0), ("fp16", 0.9999), ("int8", 0.99), ("fp8", 0.99)):
        plan = tmp_path / f"{precision}.plan"
        done = slipway("convert", path, plan, RTX, f"--precision={precision}", "--batch=1:4:8")
        assert done.returncode == 0, done.stderr
        sizes[precision] = plan.stat().st_size
        if least:
            record = PlanRecord.read(plan)
            assert record
            cases = record.verification["graph"]["cases"]
            assert min(case["cosine"] for case in cases) > least
            assert precision == "fp8" or cases[0]["top1"] == 1.0  # of the photos
    assert sizes["fp16"] < 0.6 * sizes["fp32"]


def test_int8_of_a_network_that_quantizing_breaks_is_not_kept(
    slipway: Slipway, tmp_path: Path
) -> None:
    path, plan = tiny_onnx(tmp_path / "tiny.onnx"), tmp_path / "tiny.plan"
    broken = onnx.load(path)
    weight = onnx.numpy_helper.to_array(broken.graph.initializer[0]).copy()
    weight[0, :] *= 1000  # one weight of each class takes the whole range
    broken.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "weight"))
    onnx.save(broken, path)
    plan.write_text("what was there")
    done = slipway("convert", path, plan, RTX, "--precision=int8", "--batch=1:2:4")
    assert done.returncode == 22
    assert "the graph does not compute what the original computes in fp32, within" in done.stderr
    assert "The worst outputs:\n    " in done.stderr
    assert plan.read_text() == "what was there"
    assert not sidecar(plan).exists()


def _unknown_operator(path: Path) -> None:
    model = onnx.load(path)
    model.graph.node[0].op_type, model.graph.node[0].domain = "Frobnicate", "acme"
    model.graph.node[0].name = "strange"
    model.opset_import.append(onnx.helper.make_opsetid("acme", 1))
    onnx.save(model, path)


def _unsupported(path: Path) -> None:
    """A valid operator that TensorRT has not."""
    kinds, helper = onnx.TensorProto, onnx.helper
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("Det", ["square"], ["det"], name="a determinant"),
        helper.make_node("Reshape", ["flat", "shape"], ["square"]),
        helper.make_node("Reshape", ["det", "back"], ["output"]),
    ]
    nodes = [nodes[0], nodes[2], nodes[1], nodes[3]]
    values = {"shape": np.array([-1, 1000, 3, 3]), "back": np.array([-1, 1000])}
    graph_ = helper.make_graph(
        nodes,
        "det",
        [helper.make_tensor_value_info("input", kinds.FLOAT, ["batch", 9, 10, 100])],
        [helper.make_tensor_value_info("output", kinds.FLOAT, ["batch", 1000])],
        [onnx.numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph_, opset_imports=opsets, ir_version=8), path)


def _external(path: Path) -> None:
    onnx.save(onnx.load(path), path, save_as_external_data=True, size_threshold=0, location="w.bin")
    (path.parent / "w.bin").unlink()


@pytest.mark.parametrize(
    ("spoil", "code", "said"),
    [
        (lambda path: path.unlink(), 25, "cannot be read: no such file or directory"),
        (lambda path: path.write_bytes(b"no protobuf"), 25, "is not an ONNX file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), 25, "is not an ONNX file"),
        (lambda path: path.write_bytes(b""), 25, "is not valid ONNX"),
        (_external, 25, "w.bin, which is missing"),
        (_unknown_operator, 25, "operator Frobnicate"),
        (_unsupported, 25, "operator Det"),
    ],
)
def test_a_bad_graph_is_named_and_nothing_is_written(
    slipway: Slipway, tmp_path: Path, spoil: Callable[[Path], None], code: int, said: str
) -> None:
    path, plan = tiny_onnx(tmp_path / "tiny.onnx"), tmp_path / "tiny.plan"
    spoil(path)
    done = slipway("convert", path, plan, RTX, "--batch=1:2:4")
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "fix: " in done.stderr
    assert not plan.exists()


def test_the_line_of_an_unsupported_operator_is_shown(slipway: Slipway, tmp_path: Path) -> None:
    _unsupported(tmp_path / "det.onnx")
    done = slipway("convert", tmp_path / "det.onnx", tmp_path / "det.plan", RTX, "--batch=1:2:4")
    assert "(a determinant), operator Det, of " in done.stderr
    assert "the node is: " in done.stderr
    assert "det = Det (square)" in done.stderr


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ((), 2, "has a dynamic batch, and no profile is given for it"),
        (("--batch=8:4:1",), 2, "the batches 8:4:1 are not in order"),
        (("--batch=1:2:4", "--workspace=lots"), 2, "'lots' is not a size"),
        (("--batch=1:2:4", "--compute-capability=9.0"), 25, "for compute capability 9.0"),
        (("--batch=1:2:4", "--precision=int8", "--calibration=/nowhere"), 2, "with images"),
        (
            ("--batch=1:2:4", "--precision=fp8", "--compute-capability=8.6"),
            25,
            "GPUs of compute capability 8.6 cannot compute in fp8_e4m3",
        ),
        (("--batch=1:2:4", "--engine=auto"), 10, "tensorrt is not installed on this host"),
    ],
)
def test_bad_options_are_named(
    slipway: Slipway, tmp_path: Path, options: tuple[str, ...], code: int, said: str
) -> None:
    path, plan = tiny_onnx(tmp_path / "tiny.onnx"), tmp_path / "tiny.plan"
    done = slipway("convert", path, plan, RTX, *options)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert not plan.exists()


@pytest.mark.export
def test_too_small_a_workspace_is_named(exported: Path, builder: Builder, tmp_path: Path) -> None:
    options = PlanOptions(batches=DYNAMIC, workspace=1, capabilities=("8.6",))
    profile = {"input": [[n, 3, 224, 224] for n in (1, 2, 4)]}
    with pytest.raises(ConversionError, match="within the workspace") as caught:
        builder.build(
            exported / "squeezenet1_1.onnx",
            tmp_path / "x.plan",
            options,
            profile,
            timing_cache=None,
        )
    assert "--workspace" in caught.value.fix


@pytest.mark.parametrize("precision", ["fp16", "int8", "fp8"])
def test_a_graph_that_is_fp32_is_not_built_as_anything_else(
    builder: Builder, tmp_path: Path, precision: str
) -> None:
    path = tiny_onnx(tmp_path / "tiny.onnx")
    options = PlanOptions(precision, DYNAMIC, capabilities=("8.9",))
    profile = {"input": [[n, 3, SIDE, SIDE] for n in (1, 2, 4)]}
    with pytest.raises(ConversionError, match=f"{precision} was asked for, and"):
        builder.build(path, tmp_path / "x.plan", options, profile, timing_cache=None)
    assert not (tmp_path / "x.plan").exists()


def test_a_plan_cannot_be_loaded_without_its_gpu(builder: Builder, tmp_path: Path) -> None:
    path, plan = tiny_onnx(tmp_path / "tiny.onnx"), tmp_path / "x.plan"
    options = PlanOptions("fp32", DYNAMIC, capabilities=("8.6",))
    profile = {"input": [[n, 3, SIDE, SIDE] for n in (1, 2, 4)]}
    builder.build(path, plan, options, profile, timing_cache=None)
    with pytest.raises(SlipwayError, match="cannot load the plan"):
        builder.inspect(plan, "fp32")


def test_the_precision_of_layers_is_read_from_the_engine() -> None:
    """In each form that EngineInspector has used."""

    def layer(kind: str, *formats: str) -> dict[str, Any]:
        return {"LayerType": kind, "Outputs": [{"Format/Datatype": f} for f in formats]}

    information = {
        "Layers": [
            layer("CaskConvolution", "Channel major FP16 format where channel % 8 == 0"),
            layer("Convolution", "Half"),
            layer("kgen", "Row major linear FP32"),
            layer("gemm", "Float"),
            layer("CaskConvolution", "Thirty-two wide channel vectorized row major Int8 format"),
            layer("gemm", "FP8"),
            layer("gemm", "BFloat16"),
            layer("Reformat", "Row major linear FP32"),
            "a name alone, without details",
        ]
    }
    expected = {"fp16": 2, "fp32": 2, "int8": 1, "fp8": 1, "bf16": 1}
    assert tensorrt_worker.engine_precisions(information) == expected
    assert tensorrt_worker.engine_precisions({}) == {}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("CUDA initialization failure with error: 35", "driver is too old"),
        ("CUDA initialization failure with error: 100. Please check", "finds no GPU that it can"),
        ("", "finds no GPU that it can"),
    ],
)
def test_why_there_is_no_builder(said: str, expected: str) -> None:
    error = no_gpu("TensorRT 10.13.3.9", said)
    assert isinstance(error, HostError)
    assert expected in error.what
    assert "`--engine onnxruntime` serves the model on the CPU" in error.fix


@pytest.mark.parametrize(
    ("version", "options", "said"),
    [
        ("8.6.1", PlanOptions("fp8"), "knows no fp8"),
        ("10.13.3.9", PlanOptions(capabilities=("8.6",)), "for the GPU of this host alone"),
        ("8.0.3.4", PlanOptions(opt_level=3), "knows no --opt-level"),
        ("8.0.3.4", PlanOptions("fp16"), "a plan in fp16 could be one in fp32"),
        ("8.5.3", PlanOptions(hardware="ampere_plus"), "knows no --hardware-compatibility"),
        ("8.4.1", PlanOptions(version_compatible=True), "knows no --version-compatible"),
    ],
)
def test_what_a_version_does_not_know_is_refused(
    builder: Builder, version: str, options: PlanOptions, said: str
) -> None:
    old = replace(builder, tensorrt=replace(builder.tensorrt, version=version, rtx=False))
    with pytest.raises(UsageError, match=said):
        old.check(options)


def test_precisions_are_flags_up_to_10_11_and_types_from_there(builder: Builder) -> None:
    def typed(version: str) -> bool:
        found = replace(builder.tensorrt, version=version, rtx=False)
        return replace(builder, tensorrt=found).strongly_typed

    assert builder.strongly_typed
    versions = ["8.0.3.4", "8.6.1", "10.11.0.33", "10.12.0.36", "10.16.1.11", "11.4.0.106"]
    assert [typed(version) for version in versions] == [False, False, False, True, True, True]


def test_an_interrupted_conversion_leaves_what_was_there(slipway: Slipway, tmp_path: Path) -> None:
    path, plan = tiny_onnx(tmp_path / "tiny.onnx"), tmp_path / "tiny.plan"
    assert slipway("convert", path, plan, RTX, "--batch=1:2:4").returncode == 0
    before = plan.read_bytes(), sidecar(plan).read_bytes()
    running = slipway.start("convert", path, plan, RTX, "--batch=1:2:4", "--precision=fp16")
    assert running.stdout
    running.stdout.readline()
    running.kill()
    running.wait()
    assert (plan.read_bytes(), sidecar(plan).read_bytes()) == before
    assert json.loads(before[1])["precision"] == "fp32"


def test_the_environment_is_complete(host: Layout) -> None:
    """Its lock has all that its packages need at run time."""
    made: Environment = environments.ensure(host, "convert")
    code = "import onnxruntime.quantization, onnxruntime.transformers.float16, polygraphy"
    subprocess.run([made.python, "-c", code], check=True, capture_output=True)
    assert shutil.which("python", path=str(made.prefix / "bin"))


def _save(path: Path, arrays: dict[str, Any]) -> None:
    np.savez(path, **{f"0/{name}": array for name, array in arrays.items()})


def test_the_first_layer_that_differs_is_found(layout: Layout, tmp_path: Path) -> None:
    """With a defect planted in the middle, whose effects later layers show, too."""
    helper, kinds = onnx.helper, onnx.TensorProto
    weight = np.random.default_rng(0).standard_normal((SIDE * SIDE, 1000), np.float32)
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "weight"], ["product"], name="multiply"),
        helper.make_node("Relu", ["product"], ["output"], name="clip"),
    ]
    dims: dict[str, list[str | int | None]] = {
        "input": ["batch", 1, SIDE, SIDE],
        "output": ["batch", 1000],
    }
    values = {n: helper.make_tensor_value_info(n, kinds.FLOAT, d) for n, d in dims.items()}
    initial = [onnx.numpy_helper.from_array(weight, "weight")]
    graph_ = helper.make_graph(nodes, "three", [values["input"]], [values["output"]], initial)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph_, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    image = np.random.default_rng(1).standard_normal((2, 1, SIDE, SIDE), np.float32)
    flat = image.reshape(2, -1)
    wrong = flat @ np.roll(weight, 1, axis=0)
    answers = {"flat": flat, "product": wrong, "output": np.maximum(wrong, 0)}
    _save(tmp_path / "inputs.npz", {"input": image})
    _save(tmp_path / "outputs.npz", answers)
    worker = Worker(layout, tmp_path, tmp_path / "log")
    request = {
        "job": "bisect",
        "onnx": str(tmp_path / "m.onnx"),
        "inputs": str(tmp_path / "inputs.npz"),
        "outputs": str(tmp_path / "outputs.npz"),
        "names": ["noise"],
        "precision": "fp16",
    }
    found = worker(request)
    assert (found["node"], found["operator"], found["tensor"]) == ("multiply", "MatMul", "product")
    assert "product = MatMul (flat, weight)" in found["line"]
    answers |= {"product": flat @ weight, "output": np.maximum(flat @ weight, 0)}
    _save(tmp_path / "outputs.npz", answers)
    assert worker(request) == {"tensor": ""}


@pytest.mark.export
def test_the_acceptance_run_builds_everything_and_claims_nothing(
    slipway: Slipway, tmp_path: Path, fixture: Callable[[str], Path]
) -> None:
    weights = fixture("squeezenet1_1-imagenet1k_v1.pth")
    options = (RTX, "--model=squeezenet1_1", f"--weights={weights}", f"--report={tmp_path}")
    done = slipway("verify_gpu", *options)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "verify_gpu.json").read_text())
    states = {step["step"]: step["state"] for step in report["steps"]}
    assert [name for name, state in states.items() if state == "passed"] == [
        "export, verify and deploy on the CPU",
        "a plan with a wrong record is refused",
    ]
    assert sum(name.startswith("convert to ") for name in states) == 6
    assert set(states.values()) == {"passed", "not run"}
    done = slipway("verify_gpu")
    assert done.returncode == 10
    assert "TensorRT cannot serve here" in done.stderr


def test_options_of_plans_are_not_passed_over_on_the_cpu(slipway: Slipway) -> None:
    for option in ("--precision=fp16", "--batch=1:2:4", "--cuda-graphs"):
        done = slipway("deploy", "squeezenet1_1", "--engine=onnxruntime", option)
        assert done.returncode == 2
        assert "options of TensorRT plans are given, and the engine is onnxruntime" in done.stderr
