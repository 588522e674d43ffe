"""A TensorRT plan and the record beside it: what it was made from, for which TensorRT and GPU.

The record is ``PLAN.json``. A plan without one still tells its version in its first bytes; where is
read off trtexec's ``--getPlanVersionOnly``:
https://github.com/NVIDIA/TensorRT/blob/release/10.13/samples/common/sampleEngines.cpp
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from provision.errors import PlanError
from provision.files import sha256

SCHEMA = 1
# The tag that a plan begins with, and whose it is.
_TAGS = {b"ftrt": "tensorrt", b"vtrt": "tensorrt_rtx"}
_VERSION_AT = 24
_HEADER = 28
PRODUCTS = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}
_REBUILD = "build it anew: `nox -s convert -- MODEL.onnx PLAN`"


@dataclass(frozen=True)
class Header:
    """What the first bytes of a plan tell.

    Attributes:
        product: "tensorrt" or "tensorrt_rtx".
        version: Of what built it, as ``10.13.3.9``.
    """

    product: str
    version: str


@dataclass(frozen=True)
class PlanRecord:
    """Everything known about a plan.

    Attributes:
        product: "tensorrt" or "tensorrt_rtx".
        tensorrt: The version that built it.
        sha256: Of the plan.
        onnx_sha256: Of the ONNX file that it was made from, in fp32.
        precision: "fp32", "tf32", "fp16", "int8" or "fp8".
        strongly_typed: Whether each layer computes in the types of the graph.
        inputs: Name, dtype and shape of each; -1 for what is dynamic.
        outputs: The same.
        profile: By input: the least, the best and the largest shape.
        gpu: Name, compute capability and driver of the GPU that it was built on; empty without one.
        capabilities: The compute capabilities that it was built for, where they were named.
        options: What the builder was given beside that.
        layers: The network's layers: how many of each kind compute in which type.
        engine: The plan's own layers and memory, read on the GPU; empty where it was not loaded.
        verification: "graph" (the converted graph) and "plan", each against ONNX Runtime in fp32:
            the tolerance with its reason, and one entry a case. What did not run is not there.
        created: When, ISO 8601, UTC.
    """

    product: str
    tensorrt: str
    sha256: str
    onnx_sha256: str
    precision: str
    strongly_typed: bool
    inputs: Sequence[Mapping[str, Any]]
    outputs: Sequence[Mapping[str, Any]]
    profile: Mapping[str, Sequence[Sequence[int]]]
    gpu: Mapping[str, str]
    capabilities: Sequence[str]
    options: Mapping[str, Any]
    layers: Mapping[str, Mapping[str, int]]
    engine: Mapping[str, Any]
    verification: Mapping[str, Any]
    created: str
    schema: int = field(default=SCHEMA)

    @property
    def max_batch_size(self) -> int:
        """The largest batch of its profile; 0 where there is none."""
        return max((most[0] for _, _, most in self.profile.values()), default=0)

    def to_text(self) -> str:
        """The record as it is written."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, plan: Path) -> PlanRecord | None:
        """The record of a plan; None where there is none.

        Raises:
            PlanError: It cannot be read, or is of another plan.
        """
        path = sidecar(plan)
        if not path.is_file():
            return None
        try:
            data = json.loads(path.read_text())
            if data["schema"] != SCHEMA:
                raise ValueError(f"it is of schema {data['schema']}, not {SCHEMA}")  # noqa: TRY301
            record = cls(**data)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PlanError(f"{path} is not the record of a plan: {error}", fix=_REBUILD) from None
        if record.sha256 != sha256(plan):
            raise PlanError(f"{path} is not the record of this {plan.name}", fix=_REBUILD)
        header = read_header(plan)
        if record.product != header.product or not same(record.tensorrt, header.version):
            raise PlanError(
                f"{path} says that {PRODUCTS.get(record.product, record.product)} "
                f"{record.tensorrt} built the plan, and the plan says "
                f"{PRODUCTS[header.product]} {header.version}",
                fix=_REBUILD,
            )
        return record


def sidecar(plan: Path) -> Path:
    """Where the record of a plan is: beside it."""
    return plan.with_name(f"{plan.name}.json")


def read_header(plan: Path) -> Header:
    """What built a plan, without loading it.

    Raises:
        PlanError: It is not a plan.
    """
    try:
        with plan.open("rb") as file:
            first = file.read(_HEADER)
    except OSError as error:
        raise PlanError(
            f"{plan} cannot be read: {(error.strerror or '').lower()}",
            fix="check the path of the plan",
        ) from None
    product = _TAGS.get(first[:4])
    # trtexec reads no other serialization version, of which it knows where the version lies.
    if product is None or len(first) < _HEADER or first[4:8] != bytes(4):
        raise PlanError(
            f"{plan} is not a TensorRT plan",
            cause="it begins otherwise, or TensorRT before 8.5 built it",
            fix=_REBUILD,
        )
    return Header(product, ".".join(map(str, first[_VERSION_AT:_HEADER])))


def same(one: str, other: str) -> bool:
    """Whether two versions agree in all the parts that both of them have."""
    return all(a == b for a, b in zip(one.split("."), other.split("."), strict=False))
