"""The command line of TensorRT plans: the job `convert`, and what `deploy` shares with it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

from pipeline.plan_options import HARDWARE, PRECISIONS, Batches, PlanOptions, parse_size
from provision.errors import UsageError
from provision.layout import Layout

Jobs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - it has no public name
_MOST_LEVEL = 5


def add_convert(jobs: Jobs) -> None:
    """Declare `convert`."""
    job = jobs.add_parser(
        "convert",
        help="turn an ONNX file into a verified TensorRT plan",
        description="Convert an ONNX file to a TensorRT plan for the GPU of this host, compare it "
        "with ONNX Runtime, and write it with a record of what it is (PLAN.json). With `--engine "
        "tensorrt_rtx` a plan for RTX cards is built, on any machine and without a GPU; it is not "
        "run, and Triton cannot serve it.",
    )
    job.add_argument("onnx", type=Path, metavar="MODEL.onnx", help="the graph, in fp32")
    job.add_argument("plan", type=Path, metavar="PLAN", help="the file to write")
    job.add_argument(
        "--engine",
        choices=("auto", "tensorrt", "tensorrt_rtx"),
        default="auto",
        help="what builds it; auto takes TensorRT, or says why it cannot (default: %(default)s)",
    )
    job.add_argument(
        "--compute-capability",
        action="append",
        default=[],
        metavar="X.Y",
        help="for RTX: a GPU to build for; may be given several times",
    )
    add_plan_options(job)
    job.set_defaults(job=_convert)


def add_plan_options(job: argparse.ArgumentParser) -> None:
    """Declare the options of a plan."""
    plan = job.add_argument_group("TensorRT plans")
    plan.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="what layers compute in (default: %(default)s, with TF32 off)",
    )
    plan.add_argument(
        "--batch", metavar="MIN:OPT:MAX", help="the batches of the profile, or one for a fixed one"
    )
    plan.add_argument(
        "--workspace", metavar="SIZE", help="the most scratch memory of a layer, such as 4GiB"
    )
    plan.add_argument(
        "--opt-level",
        type=int,
        choices=range(_MOST_LEVEL + 1),
        metavar="0-5",
        help="how long the builder searches (default: TensorRT's, 3)",
    )
    plan.add_argument(
        "--timing-cache",
        type=Path,
        metavar="FILE",
        help="where measured tactics are kept (default: under the root, per GPU and version)",
    )
    plan.add_argument(
        "--hardware-compatibility",
        choices=HARDWARE,
        default="",
        help="the GPUs that may load the plan beside this host's",
    )
    plan.add_argument(
        "--version-compatible",
        action="store_true",
        help="let later TensorRTs of the same major version load the plan",
    )
    plan.add_argument(
        "--calibration",
        type=Path,
        metavar="FOLDER",
        help="photos to find the ranges of int8 and fp8 with (default: the sample photos)",
    )
    plan.add_argument(
        "--debug",
        action="store_true",
        help="where the plan differs, find the first layer that does",
    )


def plan_options(options: argparse.Namespace) -> PlanOptions:
    """What was asked for.

    Raises:
        UsageError: A value is not what it has to be.
    """
    return PlanOptions(
        precision=options.precision,
        batches=Batches.parse(options.batch) if options.batch else None,
        workspace=parse_size(options.workspace) if options.workspace else 0,
        opt_level=options.opt_level,
        timing_cache=options.timing_cache,
        hardware=options.hardware_compatibility,
        version_compatible=options.version_compatible,
        capabilities=tuple(getattr(options, "compute_capability", ())),
        calibration=options.calibration,
        debug=options.debug,
    )


def _convert(layout: Layout, options: argparse.Namespace) -> int:
    from pipeline.convert import Conversion, convert, tensorrt_for_a_plan_alone
    from pipeline.plan import sidecar
    from provision.console import say

    onnx, plan = options.onnx.expanduser().absolute(), options.plan.expanduser().absolute()
    if plan.is_dir() or onnx == plan:
        raise UsageError(f"{plan} is not a file to write a plan to", fix="name another PLAN")
    engine = "tensorrt" if options.engine == "auto" else options.engine
    chosen = plan_options(options)
    tensorrt = tensorrt_for_a_plan_alone(layout, engine)
    record = convert(layout, Conversion(onnx, plan, chosen), tensorrt)
    say(f"{plan}: {record.precision}, TensorRT {record.tensorrt}; record: {sidecar(plan)}")
    return 0
