"""PyTorch to ONNX (recipe step 4). Runs in the export environment."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from provision.errors import ExportError

INPUT = "input"
OUTPUT = "output"
_PROTOBUF_LIMIT = 2 * 1024**3
_OTHER_MODEL = "deploy a smaller model of the same family"


def export_onnx(model: Any, path: Path, *, crop: int) -> None:
    """Write a classifier as one ONNX file, fp32, with a dynamic batch dimension.

    The graph takes ``input`` [batch, 3, crop, crop] and gives ``output`` [batch, classes]; these
    names are the recipe's. It is checked by ``onnx.checker``, shape inference included.

    Args:
        model: A ``torch.nn.Module`` in evaluation mode, on the CPU.
        path: The file to write.
        crop: The side of the square input, in pixels.

    Raises:
        ExportError: The model is too large for one file, or cannot be exported or checked.
    """
    import onnx
    import torch

    size = sum(v.numel() * v.element_size() for v in model.state_dict().values())
    if size >= _PROTOBUF_LIMIT:
        raise ExportError(
            f"the weights take {size / 1024**3:.1f} GiB, and a single ONNX file holds 2 GiB",
            cause="the limit is protobuf's",
            fix=_OTHER_MODEL,
        )
    example = torch.rand(2, 3, crop, crop)
    # The exporter warns of its own libraries' deprecations; they say nothing about the model.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                model,
                (example,),
                path,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
            onnx.checker.check_model(str(path), full_check=True)
        except OSError:
            raise
        except Exception as error:
            # The exporter's own words are advice to those who write models.
            inner = error.__cause__ or error
            reason = str(inner).strip().splitlines() or [type(inner).__name__]
            raise ExportError(
                "the model cannot be exported to ONNX", cause=reason[0][:300], fix=_OTHER_MODEL
            ) from error
    _check_interface(onnx.load(str(path)), crop)


def _check_interface(exported: Any, crop: int) -> None:
    """Make sure of what everything after relies on: names, shapes, one file."""
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*exported.graph.input, *exported.graph.output)
    }
    fits = (
        list(shapes) == [INPUT, OUTPUT]
        and shapes[INPUT][1:] == [3, crop, crop]
        and len(shapes[OUTPUT]) == 2  # noqa: PLR2004 - batch and classes
        and isinstance(shapes[INPUT][0], str)
        and shapes[INPUT][0] == shapes[OUTPUT][0]
        and not any(tensor.external_data for tensor in exported.graph.initializer)
    )
    if not fits:
        raise ExportError(
            f"the exported graph has the interface {shapes}, not that of a classifier with a "
            "dynamic batch",
            fix=_OTHER_MODEL,
        )
