"""What a plan is built with: precision, batches, and the builder's own options (recipe step 4)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from provision.errors import UsageError

Asked = Literal["auto", "tensorrt", "onnxruntime"]
ENGINES: tuple[Asked, ...] = ("auto", "tensorrt", "onnxruntime")
PRECISIONS = ("fp32", "tf32", "fp16", "int8", "fp8")
HARDWARE = ("ampere_plus", "same_compute_capability")
QUANTIZED = frozenset({"int8", "fp8"})
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?", re.IGNORECASE)
_CAPABILITY = re.compile(r"[1-9]\d?\.\d")


@dataclass(frozen=True)
class Batches:
    """The batches of a profile: the least, the one to be fastest at, and the largest."""

    least: int
    best: int
    most: int

    @classmethod
    def parse(cls, text: str) -> Batches:
        """Read ``MIN:OPT:MAX``, or one number for a batch that is fixed.

        Raises:
            UsageError: It is neither, or not in order.
        """
        parts = text.split(":")
        fix = "write `--batch MIN:OPT:MAX`, such as 1:4:8, or one number for a fixed batch"
        if len(parts) not in (1, 3) or not all(part.isdecimal() for part in parts):
            raise UsageError(f"'{text}' is not a range of batches", fix=fix)
        numbers = [int(part) for part in parts]
        least, best, most = numbers * 3 if len(parts) == 1 else numbers
        if not 1 <= least <= best <= most:
            raise UsageError(f"the batches {text} are not in order, from 1 up", fix=fix)
        return cls(least, best, most)

    @classmethod
    def up_to(cls, max_batch_size: int) -> Batches:
        """What serves requests of up to `max_batch_size` images; 0 means one, as 1 does."""
        most = max(1, max_batch_size)
        return cls(1, (most + 1) // 2, most)

    @property
    def each(self) -> tuple[int, ...]:
        """The different ones of the three, in order."""
        return tuple(sorted({self.least, self.best, self.most}))

    def __str__(self) -> str:
        return f"{self.least}:{self.best}:{self.most}"


def parse_size(text: str) -> int:
    """A size in bytes: ``512M``, ``4GiB``, or a plain number.

    Raises:
        UsageError: It is none.
    """
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found.group(1)) * _UNITS[found.group(2).upper()]) if found else 0
    if not size:
        raise UsageError(
            f"'{text}' is not a size", fix="write `--workspace` as 512MiB, 4GiB or in bytes"
        )
    return size


@dataclass(frozen=True)
class PlanOptions:
    """What a plan is built with.

    Attributes:
        precision: One of :data:`PRECISIONS`.
        batches: The profile's; None for what suits the model.
        workspace: The largest scratch memory of a layer, in bytes; 0 for all there is.
        opt_level: How long the builder searches, 0 to 5; None for its default.
        timing_cache: The file of measured tactics; None for the one of this GPU and version.
        hardware: One of :data:`HARDWARE`, or empty for the GPU of this host alone.
        version_compatible: Whether later versions of TensorRT may load it.
        capabilities: For RTX: the compute capabilities to build for, as "8.6".
        calibration: Images for int8 and fp8; None for the sample photos.
        debug: Whether to look for the first layer that differs, where the plan does.
    """

    precision: str = "fp32"
    batches: Batches | None = None
    workspace: int = 0
    opt_level: int | None = None
    timing_cache: Path | None = None
    hardware: str = ""
    version_compatible: bool = False
    capabilities: tuple[str, ...] = ()
    calibration: Path | None = None
    debug: bool = False

    def __post_init__(self) -> None:
        for capability in self.capabilities:
            if not _CAPABILITY.fullmatch(capability):
                raise UsageError(
                    f"'{capability}' is not a compute capability",
                    fix="write it as NVIDIA does: `--compute-capability 8.6`",
                )

    def to_json(self) -> dict[str, Any]:
        """The builder's part, as a plan's record has it."""
        return {
            "workspace": self.workspace,
            "opt_level": self.opt_level,
            "hardware": self.hardware,
            "version_compatible": self.version_compatible,
        }
