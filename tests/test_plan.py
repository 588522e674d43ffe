"""Plans, the records beside them, and whether a server can load them."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
from gpu_host import edit_record, server_built_with
from hypothesis import given
from hypothesis import strategies as st

from pipeline.matching import Target, check
from pipeline.plan import Header, PlanRecord, read_header, same, sidecar
from provision.errors import PlanError
from provision.files import sha256
from provision.gpu import Device
from provision.layout import Layout

L4 = Device("NVIDIA L4", "23034 MiB", "8.9")
H100 = Device("NVIDIA H100 80GB HBM3", "81559 MiB", "9.0")
SERVER = Target("Triton 2.60.0 built here", "10.13.3", (L4,))


def plan_of(folder: Path, version: str = "10.13.3.9", tag: bytes = b"ftrt") -> Path:
    """A file that begins as a plan does."""
    path = folder / "model.plan"
    path.write_bytes(tag + bytes(20) + bytes(map(int, version.split("."))) + b"weights")
    return path


def record_of(plan: Path, **changes: object) -> PlanRecord:
    """The record of a plan, written beside it."""
    header = read_header(plan)
    record = PlanRecord(
        product=header.product,
        tensorrt=header.version,
        sha256=sha256(plan),
        onnx_sha256="0" * 64,
        precision="fp16",
        strongly_typed=True,
        inputs=[{"name": "input", "dtype": "float32", "shape": [-1, 3, 32, 32]}],
        outputs=[{"name": "output", "dtype": "float32", "shape": [-1, 1000]}],
        profile={"input": [[1, 3, 32, 32], [4, 3, 32, 32], [8, 3, 32, 32]]},
        gpu={"name": L4.name, "capability": L4.capability, "driver": "580.82.07"},
        capabilities=[],
        options={"workspace": 0, "opt_level": None, "hardware": "", "version_compatible": False},
        layers={"CONVOLUTION": {"HALF": 26}},
        engine={"layers": {"fp16": 26}, "memory": 1000},
        verification={},
        created="2026-01-01T00:00:00+00:00",
    )
    record = replace(record, **changes)  # type: ignore[arg-type] # any of its fields
    sidecar(plan).write_text(record.to_text())
    return record


def test_the_header_tells_the_version(tmp_path: Path) -> None:
    assert read_header(plan_of(tmp_path)) == Header("tensorrt", "10.13.3.9")
    rtx = plan_of(tmp_path, "1.7.1.116", b"vtrt")
    assert read_header(rtx) == Header("tensorrt_rtx", "1.7.1.116")


@pytest.mark.parametrize(
    "content",
    [b"", b"ftrt", b"ONNX" + bytes(40), b"ftrt" + b"\1\0\0\0" + bytes(40), b"ptrt" + bytes(40)],
)
def test_what_is_no_plan_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.plan").write_bytes(content)
    with pytest.raises(PlanError, match=r"x\.plan is not a TensorRT plan"):
        read_header(tmp_path / "x.plan")


@given(st.binary(max_size=64))
def test_no_bytes_make_the_header_fail_otherwise(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.plan"
    path.write_bytes(content)
    with contextlib.suppress(PlanError):
        assert read_header(path).version.count(".") == 3


def test_a_missing_plan_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be read: no such file"):
        read_header(tmp_path / "none.plan")
    with pytest.raises(PlanError, match="cannot be read: is a directory"):
        read_header(tmp_path)


def test_a_record_survives_being_written(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    record = record_of(plan)
    assert PlanRecord.read(plan) == record
    assert record.max_batch_size == 8
    assert check(plan, record, SERVER) == []


def test_a_plan_without_record_is_judged_by_its_header(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert PlanRecord.read(plan) is None
    assert "has no record beside it" in check(plan, None, SERVER)[0]
    with pytest.raises(PlanError, match=r"TensorRT 10\.9\.0\.1, and the backend .* 10\.13\.3"):
        check(plan_of(tmp_path, "10.9.0.1"), None, SERVER)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sha256": "1" * 64}, "is not the record of this model.plan"),
        ({"tensorrt": "10.9.0.34"}, "says that TensorRT 10.9.0.34 built the plan, and the plan"),
        ({"product": "tensorrt_rtx"}, "says that TensorRT for RTX 10.13.3.9 built the plan"),
        ({"schema": 2}, "it is of schema 2, not 1"),
        ({"colour": "green"}, "is not the record of a plan"),
    ],
)
def test_a_wrong_record_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    plan = plan_of(tmp_path)
    record_of(plan)
    edit_record(plan, **change)
    with pytest.raises(PlanError) as caught:
        PlanRecord.read(plan)
    assert said in caught.value.what


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1}', "\0"])
def test_a_record_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    plan = plan_of(tmp_path)
    sidecar(plan).write_text(text)
    with pytest.raises(PlanError, match="is not the record of a plan"):
        PlanRecord.read(plan)


@pytest.mark.parametrize(
    ("version", "target", "said"),
    [
        ("10.13.2.6", SERVER, r"built by TensorRT 10\.13\.2\.6, .* with TensorRT 10\.13\.3"),
        ("8.0.3.4", SERVER, r"built by TensorRT 8\.0\.3\.4"),
        ("10.13.3.9", Target("Triton 2.60.0 built here", "", (L4,)), "has no TensorRT backend"),
        ("10.13.3.9", Target("", "", (L4,)), "no server is built here"),
        ("10.13.3.9", replace(SERVER, devices=(H100,)), r"has NVIDIA H100 .* capability 9\.0"),
        ("10.13.3.9", replace(SERVER, devices=(L4, H100)), r"capability 9\.0"),
        ("10.13.3.9", replace(SERVER, devices=()), "this host shows no GPU"),
    ],
)
def test_a_mismatch_is_refused_with_both_versions(
    tmp_path: Path, version: str, target: Target, said: str
) -> None:
    plan = plan_of(tmp_path, version)
    with pytest.raises(PlanError, match=said) as caught:
        check(plan, record_of(plan), target)
    assert caught.value.fix


def test_a_plan_for_rtx_has_no_backend(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "1.7.1.116", b"vtrt")
    with pytest.raises(PlanError, match=r"RTX 1\.7\.1\.116, for which Triton has no backend"):
        check(plan, record_of(plan), SERVER)


def test_compatibility_that_was_built_in_is_heeded(tmp_path: Path) -> None:
    options = {"version_compatible": True, "hardware": "ampere_plus"}
    plan = plan_of(tmp_path, "10.9.0.34")
    record = record_of(plan, options=options)
    assert check(plan, record, replace(SERVER, devices=(H100,))) == []
    turing = Device("Tesla T4", "15360 MiB", "7.5")
    with pytest.raises(PlanError, match="Tesla T4"):
        check(plan, record, replace(SERVER, devices=(turing,)))
    for later in ("10.14.1.48", "8.6.1.6"):
        plan = plan_of(tmp_path, later)
        with pytest.raises(PlanError, match="was built by TensorRT"):
            check(plan, record_of(plan, options=options), SERVER)


def test_another_model_of_gpu_is_worth_a_remark(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    other = Device("NVIDIA L40S", "46068 MiB", "8.9")
    (remark,) = check(plan, record_of(plan), replace(SERVER, devices=(other,)))
    assert "built on NVIDIA L4 and this host has NVIDIA L40S" in remark


def test_the_target_is_the_server_that_was_built(layout: Layout) -> None:
    assert Target.of(None, (L4,)) == Target("", "", (L4,))
    manifest = server_built_with(layout, "10.13.3")
    assert Target.of(manifest, (L4,)) == SERVER
    assert Target.of(server_built_with(layout, ""), ()).tensorrt == ""


def test_versions_agree_in_the_parts_that_both_have() -> None:
    assert same("10.13.3.9", "10.13.3")
    assert same("10.13.3", "10.13.3.9")
    assert not same("10.13.3.9", "10.13.30")
