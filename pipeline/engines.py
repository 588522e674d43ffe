"""What runs a deployed model: the part of its configuration and files that clients do not see."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as triton

from provision.cores import available_cores


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
    def choose(cls, *, instances: int | None, threads: int | None) -> OnnxRuntimeEngine:
        """The engine with the numbers asked for, or the ones that suit the cores there are."""
        cores = available_cores()
        copies = instances or 1
        each = threads or max(1, cores // copies)
        reason = (
            "the embedded engine, which needs no GPU; "
            f"{copies} instance(s) of {each} thread(s) on {cores} core(s)"
        )
        return cls(copies, each, reason)

    def configure(self, config: Any) -> None:
        """Add this engine's fields to a ``ModelConfig``."""
        config.backend = self.backend
        config.ClearField("platform")
        config.ClearField("instance_group")
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
