"""Whether a server can load a plan: made by the same TensorRT, for the same kind of GPU.

https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/engine-compatibility.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from pipeline.plan import PRODUCTS, Header, PlanRecord, read_header, same
from provision.build_manifest import BuildManifest
from provision.errors import PlanError
from provision.gpu import Device

_AMPERE = (8, 0)


@dataclass(frozen=True)
class Target:
    """What is to load a plan.

    Attributes:
        server: What it is, for people.
        tensorrt: The TensorRT that its backend was built with; empty where it has no such backend.
        devices: The GPUs of the host.
    """

    server: str
    tensorrt: str
    devices: tuple[Device, ...]

    @classmethod
    def of(cls, manifest: BuildManifest | None, devices: tuple[Device, ...]) -> Target:
        """The server that was built here, on this host."""
        if manifest is None:
            return cls("", "", devices)
        return cls(f"Triton {manifest.triton} built here", manifest.tensorrt, devices)


def check(plan: Path, record: PlanRecord | None, target: Target) -> list[str]:
    """Make sure that a server can load a plan.

    Args:
        plan: The plan.
        record: What is known of it; without it only the version is judged.
        target: The server and its GPUs.

    Returns:
        What is worth knowing and no hindrance, in words.

    Raises:
        PlanError: It cannot; the message has both versions.
    """
    made = Header(record.product, record.tensorrt) if record else read_header(plan)
    _check_server(plan, made, record, target)
    if record is None:
        return [f"{plan} has no record beside it, so its GPU and its precision are not known"]
    return _check_gpu(plan, record, target.devices)


def _check_server(plan: Path, made: Header, record: PlanRecord | None, target: Target) -> None:
    if made.product != "tensorrt":
        raise PlanError(
            f"{plan} was built by {PRODUCTS[made.product]} {made.version}, for which Triton has no "
            "backend",
            fix="convert with TensorRT (`--engine tensorrt`) on the host that serves, or deploy "
            "with `--engine onnxruntime`",
        )
    if not target.tensorrt:
        raise PlanError(
            f"{plan} cannot be served: {target.server or 'no server is built here that'} has no "
            "TensorRT backend",
            fix="build a server with it: `nox -s build_server -- --backend tensorrt`",
        )
    compatible = bool(record and record.options.get("version_compatible"))
    if same(made.version, target.tensorrt) or (compatible and _later(made.version, target)):
        return
    raise PlanError(
        f"{plan} was built by TensorRT {made.version}, and the backend of {target.server} was "
        f"built with TensorRT {target.tensorrt}",
        cause="a plan is loaded by the version alone that built it",
        fix=f"`nox -s install_tensorrt -- --wheels {target.tensorrt}`, then convert again",
    )


def _later(built: str, target: Target) -> bool:
    """Whether a version compatible plan of one version may be loaded by another: later, same major.

    https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/advanced.html#version-compatibility
    """
    old, new = Version(built), Version(target.tensorrt)
    return old.major == new.major and old.release[:3] <= new.release[:3]


def _check_gpu(plan: Path, record: PlanRecord, devices: Sequence[Device]) -> list[str]:
    if not devices:
        raise PlanError(
            f"{plan} was built for {_gpu(record)}, and this host shows no GPU",
            cause="the driver is missing: `nvidia-smi` lists nothing",
            fix="install NVIDIA's driver, or deploy with `--engine onnxruntime`",
        )
    kind = str(record.options.get("hardware", ""))
    capability = record.gpu.get("capability", "")
    remarks = []
    for device in devices:
        same_gpu = capability == device.capability
        later = kind == "ampere_plus" and _numbers(device.capability) >= _AMPERE
        if not same_gpu and not later:
            raise PlanError(
                f"{plan} was built for {_gpu(record)}, and this host has {device.name} of compute "
                f"capability {device.capability}",
                cause="a plan runs on the GPU that it was built for"
                + (", and on Ampere and later" if kind == "ampere_plus" else ""),
                fix="convert again on this host, or with `--hardware-compatibility ampere_plus`",
            )
        if same_gpu and record.gpu.get("name") != device.name and not kind:
            remarks.append(
                f"the plan was built on {record.gpu.get('name')} and this host has {device.name}, "
                "of the same compute capability: it loads, and may be slower than one built here"
            )
    return remarks


def _gpu(record: PlanRecord) -> str:
    if not record.gpu:
        return "no GPU that its record names"
    return f"{record.gpu['name']} of compute capability {record.gpu['capability']}"


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(map(int, capability.split(".")))
