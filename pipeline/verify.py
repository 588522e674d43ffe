"""The verification gate: two runners, the same inputs, every element compared.

:func:`compare` and the report it fills need numpy alone; :func:`verify_onnx` runs Polygraphy in
the export environment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provision import toml
from provision.errors import VerificationError

Array = NDArray[np.float32]
TOP = 5
_WORST_SHOWN = 5
# Logits that lie closer together than this many tolerances could hide a wrong answer.
_MEANINGFUL_SPREAD = 30


@dataclass(frozen=True)
class Tolerance:
    """What may differ, with the reason for the figures.

    Attributes:
        atol: The error that any element may have.
        rtol: What is added to it, as a share of the expected element's magnitude.
        reason: Why.
        spread: What is added to it, as a share of the standard deviation of the expected row.
        cosine: The least cosine similarity of a row.
    """

    atol: float
    rtol: float
    reason: str
    spread: float = 0.0
    cosine: float = 0.0

    @classmethod
    def of(cls, precision: str) -> Tolerance:
        """The tolerance of a precision, from ``tolerances.toml``."""
        return cls(**toml.load(Path(__file__).with_name("tolerances.toml"))[precision])

    def allowed(self, expected: Array) -> Array:
        """How far each element may be off; the shape is that of `expected`."""
        spread = expected.std(axis=-1, keepdims=True)
        allowed = self.atol + self.rtol * np.abs(expected) + self.spread * spread
        return np.asarray(allowed, np.float32)

    def to_json(self) -> dict[str, Any]:
        """The tolerance as the manifest records it; what is not judged is left out."""
        return {name: value for name, value in asdict(self).items() if value}

    def __str__(self) -> str:
        return f"{self.atol:g} + {self.rtol:g} * |logit|" + (
            f" + {self.spread:g} * the row's deviation" if self.spread else ""
        )


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: What was put in.
        batch: How many images.
        max_abs: The largest absolute error of a logit.
        max_rel: The largest error relative to the expected logit's magnitude plus `atol`.
        cosine: The smallest cosine similarity of a row.
        top1: The share of rows whose best class agrees.
        top5: The share of rows whose five best classes agree in order; classes whose expected
            logits lie within the tolerance of each other may change places.
        passed: Whether every element is within the tolerance and all top-5 agree.
        worst: The worst elements, in words, worst first.
    """

    name: str
    batch: int
    max_abs: float
    max_rel: float
    cosine: float
    top1: float
    top5: float
    passed: bool
    worst: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The case as the manifest records it: a passed one has no worst elements to show."""
        return {name: value for name, value in asdict(self).items() if name != "worst"}


def compare(name: str, expected: Array, actual: Array, tolerance: Tolerance) -> Case:
    """Compare two logit arrays of shape [batch, classes], fp32.

    Raises:
        VerificationError: `expected` says too little to compare with: its logits are not finite,
            or lie so close together that a wrong answer would pass.
    """
    if expected.shape != actual.shape:
        raise VerificationError(
            f"{name}: the output has shape {list(actual.shape)}, not {list(expected.shape)}",
            fix="export the model again",
        )
    _check_meaningful(name, expected, tolerance)
    with np.errstate(all="ignore"):  # an output may be anything, and what is wrong is shown
        return _judge(name, expected, actual, tolerance)


def _judge(name: str, expected: Array, actual: Array, tolerance: Tolerance) -> Case:
    error = np.where(np.isfinite(actual), np.abs(actual - expected), np.inf).astype(np.float32)
    allowed = tolerance.allowed(expected)
    top = [
        same_ranking(e, a, allowed=float(w.max()))
        for e, a, w in zip(expected, actual, allowed, strict=True)
    ]
    products = (expected * actual).sum(axis=1)
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(actual, axis=1)
    worst = np.argsort(error / allowed, axis=None)[::-1][:_WORST_SHOWN]
    top5 = float(np.mean(top))
    cosine = float((products / norms).min())
    return Case(
        name=name,
        batch=len(expected),
        max_abs=float(error.max()),
        max_rel=float((error / (np.abs(expected) + tolerance.atol)).max()),
        cosine=cosine,
        top1=float(np.mean(expected.argmax(axis=1) == actual.argmax(axis=1))),
        top5=top5,
        passed=bool((error <= allowed).all())
        and math.isclose(top5, 1.0)
        and not cosine < tolerance.cosine,
        worst=tuple(
            f"row {row}, class {column}: expected {expected[row, column]:.6f}, "
            f"got {actual[row, column]:.6f}, off by {error[row, column]:.2e} "
            f"(allowed {allowed[row, column]:.2e})"
            for row, column in (np.unravel_index(i, error.shape) for i in worst)
        ),
    )


def same_ranking(expected: Array, actual: Array, *, allowed: float) -> bool:
    """Whether two logit vectors have the same five best classes in the same order.

    Classes whose expected logits differ by no more than twice `allowed` may change places: each
    may have moved by `allowed`, and no more is claimed of them.
    """
    first = np.argsort(-expected, kind="stable")[:TOP]
    second = np.argsort(-actual, kind="stable")[:TOP]
    return bool((np.abs(expected[first] - expected[second]) <= 2 * allowed).all())


def _check_meaningful(name: str, expected: Array, tolerance: Tolerance) -> None:
    with np.errstate(all="ignore"):
        spread = float(expected.std(axis=1).min())
    needed = _MEANINGFUL_SPREAD * tolerance.atol
    if math.isfinite(spread) and spread >= needed:
        return
    raise VerificationError(
        f"{name}: the reference logits spread by {spread:.3g}, and a comparison within "
        f"{tolerance.atol:g} would prove nothing",
        cause="the weights are not those of a trained classifier",
        fix="check the weights file",
    )


def verify_onnx(
    model: Any,
    path: Path,
    inputs: Sequence[tuple[str, Array]],
    tolerance: Tolerance,
) -> tuple[list[Case], list[Array]]:
    """Run PyTorch and ONNX Runtime through Polygraphy over the same inputs, and compare.

    Args:
        model: The original, a ``torch.nn.Module`` in evaluation mode on the CPU.
        path: Its export.
        inputs: Names and arrays [batch, 3, side, side], fp32.
        tolerance: What may differ.

    Returns:
        One case an input, and PyTorch's logits for each.

    Raises:
        VerificationError: They differ; the message shows the worst elements.
    """
    from polygraphy.backend.base import BaseRunner
    from polygraphy.backend.onnxrt import (
        OnnxrtRunner,
        SessionFromOnnx,
    )
    from polygraphy.common import TensorMetadata
    from polygraphy.comparator import (
        Comparator,
        CompareFunc,
    )

    class TorchRunner(BaseRunner):  # type: ignore[misc] # Polygraphy has no types
        """PyTorch on the CPU; Polygraphy's own PytRunner moves its inputs to a GPU."""

        def get_input_metadata_impl(self) -> Any:
            _, *image = inputs[0][1].shape
            return TensorMetadata().add("input", np.dtype(np.float32), (-1, *image))

        def infer_impl(self, feed_dict: dict[str, Array]) -> dict[str, Array]:
            import torch

            with torch.no_grad():
                logits = model(torch.from_numpy(feed_dict["input"]))
            self.inference_time = 0.0
            return {"output": logits.numpy()}

    runners = [
        TorchRunner(name="PyTorch"),
        OnnxrtRunner(SessionFromOnnx(str(path), providers=["cpu"]), name="ONNX Runtime"),
    ]
    results = Comparator.run(runners, data_loader=[{"input": array} for _, array in inputs])
    judged = Comparator.compare_accuracy(
        results, compare_func=CompareFunc.simple(atol=tolerance.atol, rtol=tolerance.rtol)
    )
    references = [np.asarray(r["output"]) for r in results["PyTorch"]]
    answers = [np.asarray(r["output"]) for r in results["ONNX Runtime"]]
    cases = [
        compare(name, expected, actual, tolerance)
        for (name, _), expected, actual in zip(inputs, references, answers, strict=True)
    ]
    failed = [case for case in cases if not case.passed]
    if failed or not bool(judged):
        shown = "\n".join(f"    {case.name}: {w}" for case in failed or cases for w in case.worst)
        raise VerificationError(
            f"ONNX Runtime and PyTorch do not agree within atol {tolerance.atol:g} and rtol "
            f"{tolerance.rtol:g}; nothing was deployed. The worst elements:\n{shown}",
            fix="report the model and the versions in the log; "
            "another torch or onnxruntime may export it right",
        )
    return cases, references
