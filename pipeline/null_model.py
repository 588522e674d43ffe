"""A model for Triton's Python backend that computes nothing, so that what is left is Triton.

:mod:`pipeline.benchmark` puts it as ``model.py`` into a repository of its own. It runs inside the
backend's stub, in the serving environment, so it imports nothing of Slipway.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

_CLASSES = 1000


class TritonPythonModel:
    """Takes an image as the classifiers do, and answers as many zeros as they have classes."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with zeros."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        pb_utils.get_input_tensor_by_name(request, "input").as_numpy()
        zeros = np.zeros(_CLASSES, np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("output", zeros)])
