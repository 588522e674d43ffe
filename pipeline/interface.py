"""Whether a server shows a model as it was deployed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import json_format

from pipeline.config import read_config
from pipeline.manifest import Manifest


def differences(
    metadata: dict[str, Any], config: dict[str, Any], manifest: Manifest, deployed: Path
) -> list[str]:
    """What a server says of a model otherwise than it was deployed, in words.

    Args:
        metadata: The model's metadata, as the server gives it.
        config: Its configuration, as the server completed it.
        manifest: Of the version that should be served.
        deployed: The ``config.pbtxt`` that was deployed; what it leaves open the server may choose.

    Raises:
        ConfigError: The file cannot be read.
    """
    found = []
    batch = [-1] if manifest.max_batch_size else []
    wanted = {
        "input": ("FP32", [*batch, 3, manifest.side, manifest.side]),
        "output": ("FP32", [*batch, manifest.classes]),
    }
    tensors = (*metadata["inputs"], *metadata["outputs"])
    seen = {t["name"]: (t["datatype"], [int(n) for n in t["shape"]]) for t in tensors}
    if seen != wanted:
        found.append(f"the tensors are {seen}, and {wanted} was deployed")
    if str(manifest.version) not in metadata["versions"]:
        found.append(
            f"version {manifest.version} was deployed, and {', '.join(metadata['versions'])} is "
            "served"
        )
    if not deployed.is_file():
        return [*found, f"{deployed} is missing"]
    source = json_format.MessageToDict(read_config(deployed), preserving_proto_field_name=True)
    return found + _missing(source, config, "")


def _missing(wanted: Any, seen: Any, where: str) -> list[str]:
    """Where `seen` lacks something that is in `wanted`."""
    if isinstance(wanted, dict):
        if not isinstance(seen, dict):
            return [f"{where} is missing"]
        return [
            problem
            for key, value in wanted.items()
            for problem in _missing(value, seen.get(key), f"{where}.{key}".lstrip("."))
        ]
    if isinstance(wanted, list):
        if not isinstance(seen, list) or len(wanted) != len(seen):
            return [f"{where} is {seen}, and {wanted} was deployed"]
        pairs = enumerate(zip(wanted, seen, strict=True))
        return [p for n, (a, b) in pairs for p in _missing(a, b, f"{where}[{n}]")]
    # Protobuf's JSON writes 64-bit numbers as text, and Triton's does not.
    return [] if str(wanted) == str(seen) else [f"{where} is {seen}, and {wanted} was deployed"]
