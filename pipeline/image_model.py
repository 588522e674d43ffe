"""What a server says of an image classifier, as far as a client needs it (recipe step 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.utils import triton_to_np_dtype

from pipeline.scaling import COLOUR, GREY, ImageInput
from provision.errors import UsageError

_IMAGE_DIMENSIONS = 3


@dataclass(frozen=True)
class ImageModel:
    """An image classifier that is served.

    Attributes:
        name: Its name.
        versions: The versions that are served.
        input_name: Of the input tensor.
        output_name: Of the output tensor.
        datatype: Of the input, as Triton calls it.
        max_batch_size: The largest batch of a request; 0 for a model without a batch dimension.
        image: What it takes for one image.
    """

    name: str
    versions: tuple[str, ...]
    input_name: str
    output_name: str
    datatype: str
    max_batch_size: int
    image: ImageInput

    @classmethod
    def read(cls, metadata: Mapping[str, Any], config: Mapping[str, Any]) -> ImageModel:
        """Read a model's metadata and configuration, and see that it is an image classifier.

        Both are as Triton's HTTP endpoint gives them, or its gRPC endpoint as JSON.
        https://github.com/kserve/kserve/blob/master/docs/predict-api/v2/required_api.md

        Raises:
            UsageError: It is none.
        """
        name = str(metadata["name"])
        inputs, outputs = metadata.get("inputs", ()), metadata.get("outputs", ())
        for kind, tensors in (("input", inputs), ("output", outputs)):
            if len(tensors) != 1:
                raise _unfit(name, f"it has {len(tensors)} {kind}s, and not one")
        (taken,), (given,) = inputs, outputs
        batch = int(config.get("max_batch_size", 0))
        if given["datatype"] != "FP32":
            raise _unfit(name, f"its output is {given['datatype']}, and not FP32")
        scores = _shape(given)[1 if batch else 0 :]
        if sum(size != 1 for size in scores) > 1:
            raise _unfit(name, f"its output is of shape {scores}, and not a vector")
        shape = _shape(taken)[1 if batch else 0 :]
        if len(shape) != _IMAGE_DIMENSIONS:
            raise _unfit(name, f"its input is of shape {shape}, and not an image's")
        last = _channels_last(name, shape, str(config["input"][0].get("format", "FORMAT_NONE")))
        height, width, channels = shape if last else (*shape[1:], shape[0])
        if height < 1 or width < 1:
            raise _unfit(name, f"it takes images of any size: its input is of shape {shape}")
        if channels not in {GREY, COLOUR}:
            raise _unfit(name, f"it takes images of {channels} channels, and not of 1 or 3")
        dtype = triton_to_np_dtype(taken["datatype"])
        if dtype is None or np.dtype(dtype).kind not in "fiu":
            raise _unfit(name, f"it takes {taken['datatype']}, and not numbers")
        return cls(
            name=name,
            versions=tuple(map(str, metadata.get("versions", ()))),
            input_name=str(taken["name"]),
            output_name=str(given["name"]),
            datatype=str(taken["datatype"]),
            max_batch_size=batch,
            image=ImageInput(channels, height, width, np.dtype(dtype), channels_last=last),
        )

    def check_batch(self, size: int) -> None:
        """Make sure that a request may hold so many images.

        Raises:
            UsageError: It may not.
        """
        if size > max(1, self.max_batch_size):
            one = "one image a request, without a batch dimension"
            most = f"at most {self.max_batch_size} images a request" if self.max_batch_size else one
            raise UsageError(
                f"a batch of {size} images was asked for, and {self.name} takes {most}",
                fix=f"give `-b {max(1, self.max_batch_size)}`, or deploy it with another "
                "`--max-batch-size`",
            )


def _shape(tensor: Mapping[str, Any]) -> list[int]:
    return [int(size) for size in tensor["shape"]]


def _channels_last(name: str, shape: list[int], form: str) -> bool:
    """Whether the input is HWC; where its configuration does not say, what its sizes say."""
    if form in {"FORMAT_NCHW", "FORMAT_NHWC"}:
        return form == "FORMAT_NHWC"
    last = shape[-1] in {GREY, COLOUR}
    if last == (shape[0] in {GREY, COLOUR}):
        raise _unfit(name, f"its input of shape {shape} has no format, and could be CHW or HWC")
    return last


def _unfit(name: str, why: str) -> UsageError:
    return UsageError(
        f"{name} is no image classifier that this client can ask: {why}",
        fix="name another model with `-m`, or write a client for this one after this example",
    )
