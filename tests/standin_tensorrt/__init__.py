"""A stand-in for TensorRT 11: TensorRT for RTX builds, ONNX Runtime runs.

Nothing else of what the worker does is replaced: it parses and builds with the real library, through
Polygraphy's loaders for TensorRT. What cannot be had without a GPU is running a plan, so a plan
carries the graph that it was made from, and is "run" by ONNX Runtime. ``paths.txt`` names the
folders that have both; ``wrong.txt`` beside it makes the answers wrong.
"""

import json
import struct
import sys
from pathlib import Path

_HERE = Path(__file__).parent
sys.path += (_HERE / "paths.txt").read_text().split("\n")

import numpy as np  # noqa: E402
import onnxruntime as ort  # noqa: E402
from tensorrt_rtx import *  # noqa: E402, F403

__version__ = (_HERE / "version.txt").read_text().strip()
_parts = [int(part) for part in __version__.split(".")]
_HEADER = b"ftrt" + bytes(20) + bytes(_parts)


class _Engine:
    def __init__(self, plan):
        (size,) = struct.unpack("<Q", plan[-8:])
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        self.onnx = plan[-8 - size : -8]
        self.session = ort.InferenceSession(self.onnx, options, providers=["CPUExecutionProvider"])

    def create_engine_inspector(self):
        return self

    def get_engine_information(self, _):
        written = "FP16" if b"graph_input_cast_0" in self.onnx else "FP32"
        written = "Int8" if b"QuantizeLinear" in self.onnx else written
        output = {"Name": "x", "Format/Datatype": f"Row major linear {written} format"}
        return json.dumps({"Layers": [{"LayerType": "Convolution", "Outputs": [output]}]})


class _Runner:
    """In the place of Polygraphy's TrtRunner."""

    def __init__(self, engine, name):
        self.name, self.engine = name, engine()
        self.is_active = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def get_input_metadata(self, **_):
        from polygraphy.common import TensorMetadata

        metadata = TensorMetadata()
        for tensor in self.engine.session.get_inputs():
            metadata.add(tensor.name, np.float32, [-1, *tensor.shape[1:]])
        return metadata

    def infer(self, feed_dict, **_):
        names = [tensor.name for tensor in self.engine.session.get_outputs()]
        outputs = dict(zip(names, self.engine.session.run(names, dict(feed_dict)), strict=True))
        if (_HERE / "wrong.txt").exists():
            outputs = {name: array[..., ::-1].copy() for name, array in outputs.items()}
        return outputs

    def last_inference_time(self):
        return 0.0


def _stand_in():
    import polygraphy.backend.trt as real

    build = real.engine_bytes_from_network
    parse = real.network_from_onnx_path
    parsed = []

    def remember(path, **options):
        parsed.append(Path(path).read_bytes())
        return parse(path, **options)

    def with_graph(network, **options):
        built = bytes(build(network, **options))
        return _HEADER + built + parsed[-1] + struct.pack("<Q", len(parsed[-1]))

    real.network_from_onnx_path = remember
    real.engine_bytes_from_network = with_graph
    real.engine_from_bytes = _Engine
    real.EngineFromBytes = lambda plan: lambda: _Engine(plan)
    real.TrtRunner = _Runner


_stand_in()
