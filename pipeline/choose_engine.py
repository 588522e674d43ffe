"""Which engine runs a model: what was asked for, or with ``auto`` TensorRT where all is there.

Facts are read, and the choice is a pure function of them; whatever is chosen, the reason is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from packaging.version import Version

from pipeline.plan_options import Asked
from provision import tensorrt_python
from provision.build_manifest import BuildManifest
from provision.errors import HostError
from provision.gpu import Device, read_driver
from provision.layout import Layout
from provision.releases import catalogue
from provision.tensorrt_python import CPU_WAY, agree


@dataclass(frozen=True)
class Facts:
    """What the choice depends on.

    Attributes:
        driver: The version of NVIDIA's driver; empty where there is none.
        devices: The GPUs that it drives.
        server: What was built into ``triton/server``; None where nothing was.
        tensorrt: The versions of TensorRT that Pythons of this host have.
    """

    driver: str
    devices: tuple[Device, ...]
    server: BuildManifest | None
    tensorrt: tuple[str, ...]

    @property
    def wanted(self) -> str:
        """The TensorRT that the server's backend was built with; empty where it has none."""
        return self.server.tensorrt if self.server else ""


@dataclass(frozen=True)
class Choice:
    """An engine, and why."""

    engine: Literal["tensorrt", "onnxruntime"]
    reason: str


def read_facts(layout: Layout) -> Facts:
    """Read them; Pythons are asked for TensorRT only where there is a GPU."""
    driver, devices = read_driver()
    found = tuple(c.version for c in tensorrt_python.candidates(layout)) if devices else ()
    return Facts(driver, devices, BuildManifest.read(layout.triton / "server"), found)


def choose(asked: Asked, facts: Facts) -> Choice:
    """The engine.

    Raises:
        HostError: TensorRT was asked for, and something that it needs is missing.
    """
    if asked == "onnxruntime":
        return Choice("onnxruntime", "asked for with --engine onnxruntime")
    missing = list(_missing(facts))
    if asked == "tensorrt" and missing:
        what, fix = missing[0]
        others = "; ".join(what for what, _ in missing[1:])
        raise HostError(
            f"TensorRT cannot serve here: {what}",
            cause=f"Missing besides: {others}" if others else "",
            fix=f"{fix}; {CPU_WAY}",
        )
    if missing:
        reasons = "; ".join(what for what, _ in missing)
        return Choice("onnxruntime", f"not TensorRT, since {reasons}")
    gpu = facts.devices[0]
    why = f"{gpu.name}, TensorRT {facts.wanted} and a server built with it are there"
    return Choice("tensorrt", f"asked for; {why}" if asked == "tensorrt" else why)


def _missing(facts: Facts) -> Iterator[tuple[str, str]]:
    """What keeps TensorRT from serving here, each with its fix."""
    if not facts.devices:
        if facts.driver:
            yield "the driver shows no GPU", "see what `nvidia-smi` says"
        else:
            yield (
                "there is no NVIDIA driver with a GPU (nvidia-smi shows none)",
                "install NVIDIA's driver, until `nvidia-smi` lists the GPU",
            )
    oldest = _oldest_driver(facts.server)
    if facts.devices and oldest and Version(facts.driver) < Version(oldest):
        yield (
            f"the driver {facts.driver} is too old for the server's CUDA, which needs {oldest}",
            f"install NVIDIA's driver {oldest} or later",
        )
    if not facts.wanted:
        built = "the server built here" if facts.server else "no server is built here, so none"
        yield (
            f"{built} has {'no ' if facts.server else 'a '}TensorRT backend",
            "build one: `nox -s build_server -- --backend tensorrt --backend python`",
        )
    elif facts.devices and not any(agree(v, facts.wanted) for v in facts.tensorrt):
        there = f" (there is {', '.join(facts.tensorrt)})" if facts.tensorrt else ""
        what = (
            f"no Python of this host has TensorRT {facts.wanted}, which the server was built with"
        )
        yield (
            f"{what}{there}",
            f"install it: `nox -s install_tensorrt -- --wheels {facts.wanted}`",
        )


def _oldest_driver(server: BuildManifest | None) -> str:
    if server is None:
        return ""
    major = server.tools.get("cuda", "").partition(".")[0]
    return catalogue().drivers.get(int(major), "") if major.isdecimal() else ""
