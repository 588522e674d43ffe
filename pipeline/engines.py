"""What runs a deployed model: the part of its configuration and files that clients do not see."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tritonclient.grpc import model_config_pb2 as triton

from pipeline.plan import PlanRecord, sidecar
from provision.cores import available_cores


class Engine(Protocol):
    """What runs a deployed model; clients cannot tell one from another."""

    @property
    def name(self) -> str:
        """What it is called on the command line."""

    @property
    def reason(self) -> str:
        """Why this one."""

    def configure(self, config: Any) -> None:
        """Add this engine's fields to a ``ModelConfig``."""

    def to_json(self) -> dict[str, Any]:
        """The engine as the manifest records it."""


@dataclass(frozen=True)
class OnnxRuntimeEngine:
    """ONNX Runtime on the CPU in Triton's Python backend: the embedded default.

    Attributes:
        instances: How many copies of the model serve at the same time, each a process.
        threads: How many threads each may compute with.
        reason: Why this engine and these numbers.
    """

    instances: int
    threads: int
    reason: str

    name = "onnxruntime"
    backend = "python"
    precision = "fp32"

    @classmethod
    def choose(
        cls, *, instances: int | None, threads: int | None, reason: str = ""
    ) -> OnnxRuntimeEngine:
        """The engine with the numbers asked for, or the ones that suit the cores there are.

        Args:
            instances: How many copies; None for one.
            threads: How many threads each; None for all cores.
            reason: Why this engine and no other.
        """
        cores = available_cores()
        copies = instances or 1
        each = threads or max(1, cores // copies)
        numbers = f"{copies} instance(s) of {each} thread(s) on {cores} core(s)"
        return cls(copies, each, "; ".join(filter(None, (reason, numbers))))

    def configure(self, config: Any) -> None:
        """Add this engine's fields to a ``ModelConfig``."""
        for field in ("platform", "instance_group", "optimization"):
            config.ClearField(field)
        config.backend = self.backend
        config.parameters["intra_op_num_threads"].string_value = str(self.threads)
        config.instance_group.add(kind=triton.ModelInstanceGroup.KIND_CPU, count=self.instances)

    def files(self, onnx: Path) -> dict[str, Path]:
        """What goes into the version folder: name there, file here."""
        return {
            "model.onnx": onnx,
            "model.py": Path(__file__).with_name("onnxruntime_model.py"),
        }

    def to_json(self) -> dict[str, Any]:
        """The engine as the manifest records it."""
        return {
            "name": self.name,
            "reason": self.reason,
            "backend": self.backend,
            "precision": self.precision,
            "instances": self.instances,
            "threads": self.threads,
        }


@dataclass(frozen=True)
class TensorRtEngine:
    """A TensorRT plan in Triton's TensorRT backend.

    https://github.com/triton-inference-server/tensorrt_backend#readme

    Attributes:
        record: What is known of the plan.
        instances: How many copies serve at the same time on each GPU.
        gpus: The numbers of the GPUs that serve.
        cuda_graphs: Whether a batch is launched as a CUDA graph, which takes less of the CPU.
        reason: Why this engine.
    """

    record: PlanRecord
    instances: int
    gpus: tuple[int, ...]
    cuda_graphs: bool
    reason: str

    name = "tensorrt"
    platform = "tensorrt_plan"

    def configure(self, config: Any) -> None:
        """Add this engine's fields to a ``ModelConfig``."""
        for field in ("backend", "instance_group", "parameters", "optimization"):
            config.ClearField(field)
        config.platform = self.platform
        for gpu in self.gpus:
            config.instance_group.add(
                kind=triton.ModelInstanceGroup.KIND_GPU, count=self.instances, gpus=[gpu]
            )
        if self.cuda_graphs:
            config.optimization.cuda.graphs = True

    @staticmethod
    def files(plan: Path) -> dict[str, Path]:
        """What goes into the version folder: name there, file here."""
        return {"model.plan": plan, "model.plan.json": sidecar(plan)}

    def to_json(self) -> dict[str, Any]:
        """The engine as the manifest records it."""
        return {
            "name": self.name,
            "reason": self.reason,
            "backend": "tensorrt",
            "precision": self.record.precision,
            "instances": self.instances,
            "gpus": list(self.gpus),
            "cuda_graphs": self.cuda_graphs,
            "tensorrt": self.record.tensorrt,
            "profile": dict(self.record.profile),
            "gpu": dict(self.record.gpu),
            "layers": dict(self.record.engine) or dict(self.record.layers),
            "version_compatible": bool(self.record.options.get("version_compatible")),
        }
