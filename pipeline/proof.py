"""The proof of a plan: it runs beside ONNX Runtime, and what differs is named.

Expected is always ONNX Runtime on the CPU, in fp32, with the graph as it was exported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import delegate
from pipeline.builder import Builder
from pipeline.plan_options import PlanOptions
from pipeline.verify import Tolerance
from provision import environments
from provision.console import step, warn
from provision.errors import VerificationError
from provision.layout import Layout

_SHOWN = 5


class Worker:
    """The convert environment, where graphs are read, changed and judged.

    Args:
        layout: Where it is.
        folder: For requests and results.
        log: What it prints.
    """

    def __init__(self, layout: Layout, folder: Path, log: Path) -> None:
        self.environment = environments.ensure(layout, "convert")
        self.folder = folder
        self.log = log

    def __call__(self, request: dict[str, Any], progress: Any = lambda _: None) -> dict[str, Any]:
        """Have one of its jobs done."""
        return delegate.call(
            self.environment,
            "pipeline.convert_worker",
            request,
            folder=self.folder,
            log=self.log,
            progress=progress,
        )


def run_plan(
    worker: Worker,
    builder: Builder,
    onnx: Path,
    options: PlanOptions,
    prepared: dict[str, Any],
    work: Path,
    profile: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What can be known only on a GPU: the plan's layers, and the judgement of its answers.

    Args:
        worker: The convert environment.
        builder: TensorRT.
        onnx: The graph as it was exported.
        options: What the plan was built with.
        prepared: What :mod:`pipeline.convert_worker` said of the inputs.
        work: The folder with ``model.plan`` and ``inputs.npz``.
        profile: The plan's.

    Returns:
        Both as the record has them; empty where no GPU runs the plan, which is said.

    Raises:
        VerificationError: It answers otherwise than ONNX Runtime, by more than is allowed.
    """
    if not builder.runs:
        why = "no GPU of this host runs it" if builder.tensorrt.rtx else "this host has no GPU"
        warn(f"the plan was built and not run ({why}), so its answers are not verified")
        return {}, {}
    plan, outputs = work / "model.plan", work / "outputs.npz"
    with step("Compare the plan with ONNX Runtime") as comparing:
        engine = builder.inspect(plan, options.precision)
        builder.infer(plan, work / "inputs.npz", outputs)
        request = {
            "job": "judge",
            "onnx": str(onnx),
            "inputs": str(work / "inputs.npz"),
            "outputs": str(outputs),
            "names": prepared["names"],
            "precision": options.precision,
        }
        answer = worker(request, comparing.progress)
        try:
            verdict = judged(
                "the plan", answer["cases"], Tolerance.of(options.precision), worker.log
            )
        except VerificationError as error:
            if options.debug:
                error.cause = first_difference(worker, builder, request, work, options, profile)
            else:
                error.fix += "; `--debug` finds the first layer that differs"
            raise
        verdict["polygraphy"] = answer["polygraphy"]
        comparing.detail = in_words(verdict)
    return engine, verdict


def first_difference(
    worker: Worker,
    builder: Builder,
    request: dict[str, Any],
    work: Path,
    options: PlanOptions,
    profile: dict[str, Any],
) -> str:
    """Build again with every tensor as an output, and find the first that differs."""
    plan, outputs = work / "debug.plan", work / "debug.npz"
    with step("Find the first layer that differs") as finding:
        builder.build(
            work / "converted.onnx",
            plan,
            options,
            profile,
            timing_cache=None,
            all_outputs=True,
            progress=finding.progress,
        )
        builder.infer(plan, work / "inputs.npz", outputs)
        found = worker({**request, "job": "bisect", "outputs": str(outputs)}, finding.progress)
        if not found["tensor"]:
            return "with every layer as an output none differs, so a fusion of layers does"
        finding.detail = f"{found['operator']} {found['node']}"
        return (
            f"the first layer that differs is {found['node']}, operator {found['operator']}, by "
            f"{found['max_abs']:.3g}: {found['line'][:300]}"
        )


def judged(
    what: str, cases: list[dict[str, Any]], tolerance: Tolerance, log: Path
) -> dict[str, Any]:
    """The judgement as the record has it.

    Raises:
        VerificationError: A case failed.
    """
    failed = [case for case in cases if not case["passed"]]
    if failed:
        worst = [f"    {case['name']}: {w}" for case in failed for w in case["worst"]][:_SHOWN]
        shown = "\n".join(worst)
        figures = "; ".join(
            f"{case['name']}: largest error {case['max_abs']:.3g}, cosine {case['cosine']:.4f}, "
            f"top-1 {case['top1']:.0%}"
            for case in failed
        )
        raise VerificationError(
            f"{what} does not compute what the original computes in fp32, within {tolerance} and "
            f"cosine {tolerance.cosine:g}: {figures}. The worst outputs:\n{shown}",
            cause=f"{tolerance.reason}; random weights amplify what is rounded",
            fix="choose a wider --precision, or calibrate with more images of your own "
            "(--calibration FOLDER)",
            log=log,
        )
    kept = [{k: v for k, v in case.items() if k != "worst"} for case in cases]
    return {"tolerance": tolerance.to_json(), "cases": kept}


def in_words(verdict: dict[str, Any]) -> str:
    """The worst figures of a judgement, for the line of a step."""
    cases = verdict["cases"]
    return (
        f"largest error {max(c['max_abs'] for c in cases):.1e}, cosine "
        f"{min(c['cosine'] for c in cases):.5f}, top-1 {min(c['top1'] for c in cases):.0%}"
    )
