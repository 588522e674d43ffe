"""The part of a deploy that is TensorRT's: a plan that is proved, and that the server can load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.matching import Target, check
from pipeline.plan import PlanRecord
from pipeline.plan_options import Batches, PlanOptions
from provision.console import warn
from provision.errors import PlanError, UsageError
from provision.files import sha256
from provision.layout import Layout

if TYPE_CHECKING:
    from pipeline.choose_engine import Facts
    from pipeline.engines import TensorRtEngine


@dataclass(frozen=True)
class PlanOrder:
    """What is to be made.

    Attributes:
        model: The model's name.
        options: What the plan is built with, its batches settled.
        ready: A plan that was built already, instead.
        instances: How many copies on each GPU.
        cuda_graphs: Whether batches are launched as CUDA graphs.
        reason: Why TensorRT.
    """

    model: str
    options: PlanOptions
    ready: Path | None
    instances: int
    cuda_graphs: bool
    reason: str


def check_ready(plan: Path, facts: Facts) -> PlanRecord:
    """Make sure, before anything is done, that a plan can be deployed here.

    Raises:
        PlanError: The server or the GPU cannot load it, or it has no record.
    """
    record = PlanRecord.read(plan)
    for remark in check(plan, record, Target.of(facts.server, facts.devices)):
        warn(remark)
    if record is None:
        raise PlanError(
            f"{plan} has no record beside it, so what it computes is not known",
            fix="convert the model with `nox -s convert`, which writes one, or deploy without "
            "--plan",
        )
    return record


def settle_batches(
    options: PlanOptions, max_batch_size: int, *, given: int | None
) -> tuple[int, PlanOptions]:
    """The largest batch of a request, and the profile that goes with it.

    Args:
        options: The plan's.
        max_batch_size: What was asked for, or the source's.
        given: What was asked for, if anything was.

    Raises:
        UsageError: They do not go together.
    """
    batches = options.batches
    if batches is None:
        return max_batch_size, replace(options, batches=Batches.up_to(max_batch_size))
    if batches.least != 1:
        raise UsageError(
            f"the profile {batches} starts at {batches.least}, and Triton asks for single images",
            fix=f"give --batch 1:{batches.best}:{batches.most}",
        )
    most = 0 if given == 0 and batches.most == 1 else batches.most
    if given is not None and given != most:
        raise UsageError(
            f"--max-batch-size {given} and --batch {batches} do not go together",
            fix="leave out --max-batch-size; the profile says it",
        )
    return most, options


def make(
    layout: Layout,
    order: PlanOrder,
    onnx: Path,
    preprocessing: Mapping[str, Any],
    facts: Facts,
    work: Path,
) -> tuple[TensorRtEngine, dict[str, Path]]:
    """Build a plan, or take the one that is ready; prove it, and that the server can load it.

    Returns:
        The engine, and what goes into the version folder.

    Raises:
        PlanError: The server or the GPU cannot load it, or it was made from another model.
        VerificationError: It does not compute what the model computes.
        SlipwayError: It cannot be built; nothing is deployed then.
    """
    from pipeline.convert import Conversion, convert, prove, tensorrt_of
    from pipeline.engines import TensorRtEngine

    tensorrt = tensorrt_of(layout, "tensorrt", facts.wanted)
    target = Target.of(facts.server, facts.devices)
    conversion = Conversion(
        onnx, work / "model.plan", order.options, preprocessing=preprocessing, name=order.model
    )
    if order.ready is None:
        plan, record = conversion.plan, convert(layout, conversion, tensorrt)
    else:
        plan, record = order.ready, check_ready(order.ready, facts)
        _check_origin(plan, record, onnx, order.options)
        record = prove(layout, conversion, plan, record, tensorrt)
    for remark in check(plan, record, target):
        warn(remark)
    if "plan" not in record.verification:
        raise PlanError(
            f"{plan} was not run, so what it computes is not proved",
            fix="deploy on a host whose GPU runs it",
        )
    gpus = tuple(range(len(facts.devices)))
    engine = TensorRtEngine(record, order.instances, gpus, order.cuda_graphs, order.reason)
    return engine, engine.files(plan)


def _check_origin(plan: Path, record: PlanRecord, onnx: Path, options: PlanOptions) -> None:
    """Make sure that a plan was made from this model, for these batches."""
    if record.onnx_sha256 != sha256(onnx):
        raise PlanError(
            f"{plan} was made from another ONNX file than this model's, {record.onnx_sha256[:12]} "
            f"and not {sha256(onnx)[:12]}",
            cause="other weights, or other versions of torch or onnx",
            fix="deploy without --plan, which converts this model",
        )
    wanted = options.batches.most if options.batches else 1
    if record.profile and record.max_batch_size < wanted:
        raise PlanError(
            f"{plan} takes up to {record.max_batch_size} images, and {wanted} are to be served",
            fix=f"give --max-batch-size {record.max_batch_size}",
        )
