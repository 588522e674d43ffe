"""The embedded engine: a model for Triton's Python backend that runs ONNX Runtime.

Deployed as ``model.py`` beside ``model.onnx``. It runs inside the backend's stub, in the serving
environment, so it imports nothing of Slipway.
https://github.com/triton-inference-server/python_backend#usage
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

_LAST_NUMPY_MAJOR = 1


class TritonPythonModel:
    """One instance: an ONNX Runtime session on the CPU."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the session, with the threads that the configuration asks for.

        Raises:
            TritonModelException: numpy is newer than the backend's stub can read.
        """
        if int(np.__version__.split(".")[0]) > _LAST_NUMPY_MAJOR:
            raise pb_utils.TritonModelException(
                f"numpy {np.__version__} is installed where the server runs, and this Triton's "
                "Python backend reads numpy 2 arrays wrong without an error; install 'numpy<2' "
                "there, or start the server with `nox -s serve`"
            )
        config = json.loads(args["model_config"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(
            config["parameters"]["intra_op_num_threads"]["string_value"]
        )
        # A spinning thread takes the core that the server's own threads need next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = ort.InferenceSession(
            str(path), sess_options=options, providers=["CPUExecutionProvider"]
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by a run of its own.

        Merging the requests of a batch into one run gains under 5 % on a CPU, and a row's last
        bits would then depend on who else asks at the same moment.
        """
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        image = pb_utils.get_input_tensor_by_name(request, "input").as_numpy()
        (logits,) = self.session.run(["output"], {"input": image})
        return pb_utils.InferenceResponse([pb_utils.Tensor("output", logits)])
