"""TensorRT's builder and runtime, in the Python that has them; what they say is made plain.

:mod:`pipeline.tensorrt_worker` is the other side.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import Version

from pipeline import delegate
from pipeline.plan_options import PlanOptions
from pipeline.worker import Progress
from provision.errors import ConversionError, HostError, InternalError, SlipwayError, UsageError
from provision.gpu import Device
from provision.releases import catalogue
from provision.tensorrt_python import CPU_WAY, TensorRtPython

_STRONGLY_TYPED = Version("10.12")
_FP8 = Version("10")
_TELLS = Version("8.2")  # which brought the inspector
_WORKSPACE = re.compile(r"workspace (limit|size)|insufficient memory", re.IGNORECASE)
_CAPABILITY = re.compile(r"Compute capability (\d+\.\d) \(SM\d+\) not supported")
_TYPE = re.compile(r"target\(s\) sm(\d+), because the model contains HW-specific datatypes: (\w+)")


@dataclass(frozen=True)
class Builder:
    """What builds, inspects and runs plans.

    Attributes:
        tensorrt: The TensorRT to call.
        devices: The GPUs of this host.
        folder: For requests and results.
        log: What it prints.
    """

    tensorrt: TensorRtPython
    devices: tuple[Device, ...]
    folder: Path
    log: Path

    @property
    def strongly_typed(self) -> bool:
        """Whether layers compute in the types of the graph, and precisions are no flags."""
        return self.tensorrt.rtx or Version(self.tensorrt.version) >= _STRONGLY_TYPED

    @property
    def runs(self) -> bool:
        """Whether plans can be run here, so that they can be verified."""
        return bool(self.devices) and not self.tensorrt.rtx

    def check(self, options: PlanOptions) -> None:
        """Make sure that this TensorRT knows what is asked for, before anything is done.

        Raises:
            UsageError: It does not.
        """
        version = Version(self.tensorrt.version)
        name = self.tensorrt.name
        if options.precision == "fp8" and not self.tensorrt.rtx and version < _FP8:
            raise UsageError(f"{name} knows no fp8", fix="choose --precision int8 or fp16")
        tells = self.tensorrt.rtx or version >= _TELLS
        if options.precision not in {"fp32", "tf32"} and not tells:
            raise UsageError(
                f"{name} cannot tell what a plan's layers compute in, so a plan in "
                f"{options.precision} could be one in fp32",
                fix="choose --precision fp32, or TensorRT 8.2 or later",
            )
        if options.capabilities and not self.tensorrt.rtx:
            raise UsageError(
                f"{name} builds for the GPU of this host alone",
                fix="leave out --compute-capability, or choose --engine tensorrt_rtx",
            )
        newest = {"--version-compatible": options.version_compatible}
        newest |= {"--hardware-compatibility": bool(options.hardware)}
        newest |= {"--opt-level": options.opt_level is not None}
        asked = [flag for flag, given in newest.items() if given]
        if asked and not self.tensorrt.rtx and version < Version("8.6"):
            raise UsageError(
                f"{name} knows no {asked[0]}, which came with TensorRT 8.6",
                fix=f"leave out {asked[0]}",
            )

    def probe(self, progress: Progress = lambda _: None) -> str:
        """Load TensorRT and make a builder; its version.

        Raises:
            HostError: It cannot be loaded, or finds no GPU that it can use; the message says which.
        """
        return str(self._call({"job": "probe"}, progress)["tensorrt"])

    def build(
        self,
        onnx: Path,
        plan: Path,
        options: PlanOptions,
        profile: dict[str, Any],
        *,
        timing_cache: Path | None,
        all_outputs: bool = False,
        progress: Progress = lambda _: None,
    ) -> dict[str, Any]:
        """Build a plan from a graph that is in the precision already.

        Raises:
            ConversionError: It cannot be built; the message has the operator, or what to change.
            HostError: TensorRT cannot be used on this host.
        """
        request = {
            "job": "build",
            "onnx": str(onnx),
            "plan": str(plan),
            "precision": options.precision,
            "strongly_typed": self.strongly_typed,
            "rtx": self.tensorrt.rtx,
            "profile": profile,
            "capabilities": [list(map(int, c.split("."))) for c in options.capabilities],
            "timing_cache": str(timing_cache) if timing_cache else "",
            "all_outputs": all_outputs,
            **options.to_json(),
        }
        return self._call(request, progress, onnx)

    def inspect(self, plan: Path, precision: str) -> dict[str, Any]:
        """Load a plan on the GPU, and make sure that layers of it compute in the precision.

        Raises:
            ConversionError: None does.
        """
        return self._call({"job": "inspect", "plan": str(plan), "precision": precision})

    def infer(self, plan: Path, inputs: Path, outputs: Path) -> None:
        """Run a plan on the GPU over the arrays of a .npz, and write its outputs into another."""
        paths = {"plan": str(plan), "inputs": str(inputs), "outputs": str(outputs)}
        self._call({"job": "infer", **paths})

    def _call(
        self,
        request: dict[str, Any],
        progress: Progress = lambda _: None,
        onnx: Path | None = None,
    ) -> dict[str, Any]:
        folders = [str(folder) for folder in self.tensorrt.folders]
        result = delegate.call(
            self.tensorrt.environment,
            "pipeline.tensorrt_worker",
            {"folders": folders, **request},
            folder=self.folder,
            log=self.log,
            progress=progress,
            variables=self.tensorrt.variables(),
        )
        if "failure" in result:
            error = self._failure(result, onnx)
            error.log = self.log
            raise error
        return result

    def _failure(  # noqa: PLR0911 - one for each kind
        self, said: dict[str, Any], onnx: Path | None
    ) -> SlipwayError:
        name = self.tensorrt.name
        kind, what = said["failure"], said["what"]
        errors = said.get("errors", [])
        if kind == "no package":
            return HostError(
                f"{name} was found, and cannot be imported: {what}",
                fix=f"install it again: `nox -s install_tensorrt -- --wheels "
                f"{self.tensorrt.version}`; {CPU_WAY}",
            )
        if kind == "no libraries":
            return HostError(
                f"{name} has its Python package, and its libraries cannot be loaded: {what}",
                cause="PyPI has the package without the libraries, which NVIDIA's index has",
                fix=f"`nox -s install_tensorrt -- --wheels {self.tensorrt.version}`; {CPU_WAY}",
            )
        if kind == "no builder":
            return no_gpu(name, what)
        if kind == "parse":
            return _parse_failure(name, errors, onnx)
        if kind == "precision":
            return ConversionError(f"{name}: {what}", fix="choose another --precision")
        if kind in {"build", "load", "run"}:
            return _build_failure(name, kind, [*errors, what])
        return InternalError(f"{name} failed: {what}", fix="read the log")


def no_gpu(name: str, said: str) -> HostError:
    """Why TensorRT finds no GPU, from CUDA's number in what it said.

    https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html
    """
    number = re.search(r"error:? (\d+)", said)
    if number and number.group(1) == "35":  # cudaErrorInsufficientDriver
        oldest = "; ".join(f"{v} for CUDA {m}" for m, v in sorted(catalogue().drivers.items()))
        return HostError(
            f"NVIDIA's driver is too old for {name}, or is missing",
            cause=f"The oldest that does: {oldest}",
            fix=f"install a newer driver, then `nvidia-smi` shows its version; {CPU_WAY}",
        )
    return HostError(
        f"{name} finds no GPU that it can use: {said}",
        fix=f"see whether `nvidia-smi` lists one, and whether this user may use it; {CPU_WAY}",
    )


def _parse_failure(name: str, errors: list[dict[str, Any]], onnx: Path | None) -> ConversionError:
    if not errors:
        return ConversionError(
            f"{name} cannot read {onnx}", fix="see whether `onnx.checker` takes it; read the log"
        )
    first = errors[0]
    why = " ".join(str(first["why"]).split())[:400]
    node = f"node {first['node']}" + (f" ({first['name']})" if first["name"] else "")
    operator = f", operator {first['operator']}," if first["operator"] else ""
    return ConversionError(
        f"{name} does not take {node}{operator} of {onnx}: {why}",
        fix="export the model without that operator, or serve it with `--engine onnxruntime`",
    )


def _build_failure(name: str, kind: str, errors: list[str]) -> ConversionError:
    said = next((e for e in errors if e), "it says nothing")
    everything = " ".join(errors)
    if _WORKSPACE.search(everything):
        return ConversionError(
            f"{name} found no way to compute a layer within the workspace",
            cause=said[:300],
            fix="give more: `--workspace 4GiB`, or leave it out for all there is",
        )
    unknown = _CAPABILITY.search(everything)
    if unknown:
        return ConversionError(
            f"{name} builds nothing for compute capability {unknown.group(1)}",
            fix="choose another --compute-capability, such as 8.6, 8.9 or 12.0",
        )
    typed = _TYPE.search(everything)
    if typed:
        capability = f"{typed.group(1)[:-1]}.{typed.group(1)[-1]}"
        return ConversionError(
            f"GPUs of compute capability {capability} cannot compute in {typed.group(2)}",
            fix="choose another --precision, or for RTX another --compute-capability "
            "(fp8 needs 8.9 or later)",
        )
    verb = {"build": "cannot build a plan", "load": "cannot load the plan"}
    return ConversionError(
        f"{name} {verb.get(kind, 'cannot run the plan')}: {said[:400]}", fix="read the log"
    )
