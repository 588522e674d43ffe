"""Talking to a Triton server over HTTP: binary tensors, typed answers, errors in our words.

https://github.com/kserve/kserve/blob/master/docs/predict-api/v2/required_api.md and Triton's
extensions of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.http as triton_http
from geventhttpclient.response import HTTPParseError
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from provision.errors import ServerUnreachableError, UsageError

Array = NDArray[np.float32]
_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Classification:
    """One class as Triton's classification extension returns it: ``score:index:LABEL``."""

    score: float
    index: int
    label: str

    @classmethod
    def parse(cls, text: str) -> Classification:
        """Read ``score:index:LABEL``; the label is empty where the model has none."""
        score, index, *label = text.split(":", 2)
        return cls(float(score), int(index), label[0] if label else "")


class TritonClient:
    """A client of one server; use it as a context manager.

    Args:
        url: ``HOST:PORT``, without a scheme.
        concurrency: How many requests may be under way at once.
    """

    def __init__(self, url: str, *, concurrency: int = 1) -> None:
        self.url = url
        check_address(url)
        try:
            self._http = triton_http.InferenceServerClient(
                url,
                concurrency=concurrency,
                connection_timeout=_TIMEOUT_SECONDS,
                network_timeout=_TIMEOUT_SECONDS,
            )
        except (ValueError, InferenceServerException) as error:
            raise UsageError(
                f"'{url}' is not a server's address: {error}", fix="give it as HOST:PORT"
            ) from None

    def __enter__(self) -> TritonClient:  # noqa: PYI034 - typing.Self is Python 3.11's
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def live(self) -> bool:
        """Whether the server answers at all."""
        try:
            return bool(self._http.is_server_live())
        except (OSError, InferenceServerException, ValueError, HTTPParseError):
            return False

    def ready(self) -> bool:
        """Whether the server is ready to infer."""
        with self._reaching():
            return bool(self._http.is_server_ready())

    def model_ready(self, model: str, version: str = "") -> bool:
        """Whether a model (a version of it) is ready to infer."""
        with self._reaching():
            return bool(self._http.is_model_ready(model, version))

    def server(self) -> dict[str, Any]:
        """The server's metadata: name, version, extensions."""
        with self._reaching():
            return dict(self._http.get_server_metadata())

    def metadata(self, model: str, version: str = "") -> dict[str, Any]:
        """A model's metadata: versions, inputs, outputs."""
        with self._reaching():
            return dict(self._http.get_model_metadata(model, version))

    def config(self, model: str, version: str = "") -> dict[str, Any]:
        """A model's configuration, as the server completed it."""
        with self._reaching():
            return dict(self._http.get_model_config(model, version))

    def statistics(self, model: str) -> dict[str, Any]:
        """A model's statistics: one entry a version."""
        with self._reaching():
            return dict(self._http.get_inference_statistics(model))

    def repository(self) -> list[dict[str, Any]]:
        """The models the server knows, with their states."""
        with self._reaching():
            return list(self._http.get_model_repository_index())

    def logits(self, model: str, images: Array, *, version: str = "") -> Array:
        """The raw output for an input tensor, both fp32 and sent as binary.

        Args:
            model: The model.
            images: [batch, 3, side, side], or [3, side, side] for a model without batches.
            version: The model's version; by default the one its policy serves.

        Returns:
            [batch, classes], or [classes].

        Raises:
            InferenceServerException: The server refuses the request.
        """
        answer = self._infer(model, images, version, class_count=0)
        return np.asarray(answer.as_numpy("output"), np.float32)

    def classify(
        self, model: str, images: Array, *, classes: int, version: str = ""
    ) -> list[list[Classification]]:
        """The best classes of each image, best first, by Triton's classification extension.

        Arguments and errors are those of :meth:`logits`.
        """
        answer = self._infer(model, images, version, class_count=classes)
        rows = np.atleast_2d(answer.as_numpy("output"))
        return [[Classification.parse(text.decode()) for text in row] for row in rows]

    def _infer(self, model: str, images: Array, version: str, *, class_count: int) -> Any:
        tensor = triton_http.InferInput("input", list(images.shape), "FP32")
        tensor.set_data_from_numpy(np.ascontiguousarray(images), binary_data=True)
        wanted = triton_http.InferRequestedOutput(
            "output", binary_data=True, class_count=class_count
        )
        with self._reaching():
            return self._http.infer(model, [tensor], model_version=version, outputs=[wanted])

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except InferenceServerException as error:
            # The client reports a lost connection in the same class as a refusal.
            if error.status() is None and "timed out" in str(error):
                raise self._unreachable(error) from None
            raise
        except (OSError, ValueError, HTTPParseError) as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> ServerUnreachableError:
        return ServerUnreachableError(
            f"no Triton server answers at {self.url}: {error}",
            fix="start one (`nox -s serve`), or name another with `--url HOST:PORT`",
        )


def check_address(url: str) -> None:
    """Make sure that a server's address is ``HOST:PORT``, without a scheme.

    Raises:
        UsageError: It is not.
    """
    host, _, port = url.rpartition(":")
    if not host or "/" in url or not port.isdecimal():
        raise UsageError(f"'{url}' is not a server's address", fix="give it as HOST:PORT")
