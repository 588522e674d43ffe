"""Precision put into the ONNX graph, where strongly typed TensorRT takes it from.

Inputs and outputs stay fp32, so that clients cannot tell. The tools are ONNX Runtime's: its float16
converter and its quantizer need neither torch nor a GPU, run on every Python that we do, and
convert transformers that onnxconverter-common's converter cannot; NVIDIA's ModelOpt, the other
choice, brings onnxruntime-gpu, CuPy and a compiler with it.
https://onnxruntime.ai/docs/performance/model-optimizations/
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provision.errors import ConversionError

Array = NDArray[np.float32]

FP8_LARGEST = 448.0
"""The largest number of E4M3FN."""
_INT8_LARGEST = 127.0
_QUANTIZED = ["Conv", "Gemm", "MatMul"]
_FP8_OPSET = 19  # the first whose QuantizeLinear knows float 8
# What TensorRT takes: symmetric, with the weights' own pairs in the graph, and no quantized bias.
# https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html
_QDQ_OPTIONS = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,
    "AddQDQPairToWeight": True,
    "MatMulConstBOnly": True,  # attention's own products stay as they are
}


def convert(source: Path, target: Path, precision: str, calibration: Sequence[Array]) -> None:
    """Write a graph whose layers compute in a precision.

    Args:
        source: An ONNX file, fp32.
        target: The file to write.
        precision: "fp32", "tf32" (both as it is), "fp16", "int8" or "fp8".
        calibration: For int8 and fp8, what the first input will look like, fp32, each with a batch
            dimension.

    Raises:
        ConversionError: The graph cannot be converted.
    """
    if precision in {"fp32", "tf32"}:
        target.write_bytes(source.read_bytes())
        return
    try:
        if precision == "fp16":
            _to_half(source, target)
        else:
            _quantize(source, target, calibration)
            if precision == "fp8":
                _to_float8(target)
    except OSError:
        raise
    except Exception as error:
        raise ConversionError(
            f"the graph cannot be converted to {precision}: {error}",
            fix="build it in fp32, or report the model and the versions in the log",
        ) from error


def _to_half(source: Path, target: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    half = OnnxModel(convert_float_to_float16(onnx.load(source), keep_io_types=True))
    half.topological_sort()  # the casts of the inputs come last otherwise
    onnx.checker.check_model(half.model, full_check=True)
    onnx.save(half.model, target)


def _quantize(source: Path, target: Path, calibration: Sequence[Array]) -> None:
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    name = onnx.load(source, load_external_data=False).graph.input[0].name

    class Reader(CalibrationDataReader):  # type: ignore[misc] # ONNX Runtime has no types
        def __init__(self) -> None:
            self.arrays: Iterator[Array] = iter(calibration)

        def get_next(self) -> dict[str, Array] | None:
            array = next(self.arrays, None)
            return None if array is None else {name: array}

    quantize_static(
        source,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=_QUANTIZED,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options=_QDQ_OPTIONS,
    )
    onnx.checker.check_model(str(target), full_check=True)


def _to_float8(path: Path) -> None:
    """Turn a graph quantized to int8 into one quantized to E4M3: the same ranges, other steps.

    ONNX Runtime's own float 8 calibration fits weights to a normal distribution and is far off for
    activations, so the ranges are those found for int8, as ModelOpt has it, too.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    if _opset(model) < _FP8_OPSET:
        model = onnx.version_converter.convert_version(model, _FP8_OPSET)
    del model.graph.value_info[:]  # which has the types of int8
    pairs = [n for n in model.graph.node if n.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    scales = {node.input[1] for node in pairs}
    zeros = {node.input[2] for node in pairs}
    for tensor in model.graph.initializer:
        if tensor.name in scales:
            scale = numpy_helper.to_array(tensor) * np.float32(_INT8_LARGEST / FP8_LARGEST)
            tensor.CopyFrom(numpy_helper.from_array(scale.astype(np.float32), tensor.name))
        elif tensor.name in zeros:
            dims = list(tensor.dims)
            tensor.CopyFrom(
                onnx.helper.make_tensor(
                    tensor.name,
                    onnx.TensorProto.FLOAT8E4M3FN,
                    dims,
                    bytes(int(np.prod(dims, dtype=int))),
                    raw=True,
                )
            )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _opset(model: Any) -> int:
    return int(next(o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}))
