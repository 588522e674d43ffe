"""A connection to a Triton server for classifying, over HTTP or gRPC, with binary tensors.

It belongs to the thread that uses it: Triton's HTTP client is built on gevent, whose sockets do.
https://github.com/triton-inference-server/client#python-apis
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import numpy as np
from geventhttpclient.response import HTTPParseError
from tritonclient.utils import InferenceServerException

from pipeline.client import check_address
from pipeline.image_model import ImageModel
from provision.errors import ModelLoadError, RefusedError, ServerUnreachableError

Protocol: TypeAlias = Literal["http", "grpc"]

_CONNECTING_SECONDS = 60.0
_ANSWERING_SECONDS = 600.0
_OUT_OF_REACH = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")
_LARGEST_MESSAGE = 2**31 - 1
# As Triton's client does without arguments; and no proxy, as for every other request of ours.
_CHANNEL = [
    ("grpc.max_send_message_length", _LARGEST_MESSAGE),
    ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
    ("grpc.enable_http_proxy", 0),
]


class Connection:
    """A connection; use it as a context manager, or close it.

    Args:
        url: ``HOST:PORT``, of the port for the protocol.
        protocol: Which. gRPC's libraries are loaded for gRPC alone.

    Raises:
        UsageError: That is no address.
    """

    def __init__(self, url: str, protocol: Protocol) -> None:
        check_address(url)
        self.url = url
        self.protocol = protocol
        self._library = importlib.import_module(f"tritonclient.{protocol}")
        # Not the library's own `verbose`, which prints every byte of every tensor.
        if protocol == "grpc":
            self._client = self._library.InferenceServerClient(url, channel_args=_CHANNEL)
            self._patience: dict[str, Any] = {"client_timeout": _ANSWERING_SECONDS}
        else:
            self._client = self._library.InferenceServerClient(
                url, connection_timeout=_CONNECTING_SECONDS, network_timeout=_ANSWERING_SECONDS
            )
            self._patience = {}

    def __enter__(self) -> Connection:  # noqa: PYI034 - typing.Self is Python 3.11's
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def server(self) -> dict[str, Any]:
        """The server's metadata: name, version, extensions."""
        with self._reaching():
            return dict(self._client.get_server_metadata(**self._as_json()))

    def model(self, name: str, version: str = "") -> ImageModel:
        """What the server says of a model.

        Raises:
            ModelLoadError: It does not serve the model.
            UsageError: The model is no image classifier.
        """
        try:
            with self._reaching():
                metadata = self._client.get_model_metadata(name, version, **self._as_json())
                config = self._client.get_model_config(name, version, **self._as_json())
        except RefusedError as refused:
            which = f"{name} version {version}" if version else name
            raise ModelLoadError(
                f"the server at {self.url} does not serve {which}",
                cause=refused.cause,
                fix="`nox -s status` shows what is served, `nox -s deploy -- MODEL` adds a model",
            ) from None
        return ImageModel.read(metadata, config.get("config", config))

    def tensor(self, model: ImageModel, images: np.ndarray[Any, Any]) -> Any:
        """The input of a request, to be sent along with it."""
        tensor = self._library.InferInput(model.input_name, list(images.shape), model.datatype)
        tensor.set_data_from_numpy(images)
        return tensor

    def shared(self, model: ImageModel, shape: Sequence[int], region: str, nbytes: int) -> Any:
        """The input of a request that lies in a registered region of shared memory."""
        tensor = self._library.InferInput(model.input_name, list(shape), model.datatype)
        tensor.set_shared_memory(region, nbytes)
        return tensor

    def register(self, region: str, key: str, nbytes: int) -> None:
        """Have the server map a region of system shared memory.

        https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_shared_memory.md

        Raises:
            RefusedError: It cannot.
        """
        with self._reaching():
            self._client.register_system_shared_memory(region, key, nbytes)

    def unregister(self, region: str) -> None:
        """Have the server let go of a region."""
        with self._reaching():
            self._client.unregister_system_shared_memory(region)

    def classify(
        self, model: ImageModel, tensor: Any, *, classes: int, version: str = "", number: int = 1
    ) -> list[list[str]]:
        """The best classes of each image, best first, each as the server's ``score:index:LABEL``.

        https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md

        Args:
            model: The model.
            tensor: What :meth:`tensor` or :meth:`shared` made.
            classes: How many classes of each image.
            version: The model's version; by default the one its policy serves.
            number: The number of the request, for the server's logs.

        Raises:
            RefusedError: The server refuses the request.
            ServerUnreachableError: It does not answer.
        """
        wanted = self._library.InferRequestedOutput(model.output_name, class_count=classes)
        with self._reaching():
            answer = self._client.infer(
                model.name,
                [tensor],
                model_version=version,
                outputs=[wanted],
                request_id=str(number),
                **self._patience,
            )
        found = answer.as_numpy(model.output_name)
        rows = found if model.max_batch_size else found[np.newaxis]
        return [[text.decode(errors="replace") for text in row.reshape(-1)] for row in rows]

    def _as_json(self) -> Mapping[str, Any]:
        return {"as_json": True, **self._patience} if self.protocol == "grpc" else {}

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except InferenceServerException as error:
            status = str(error.status() or "")
            lost = status.removeprefix("StatusCode.") in _OUT_OF_REACH
            # The HTTP client reports a lost connection in the same class as a refusal.
            if lost or (not status and "timed out" in str(error)):
                raise self._unreachable(error.message()) from None
            raise RefusedError(
                f"the server at {self.url} refused the request",
                cause=error.message().strip(),
                fix="put right what it names; its log has more",
            ) from None
        except (OSError, ValueError, HTTPParseError) as error:
            raise self._unreachable(error) from None

    def _unreachable(self, why: object) -> ServerUnreachableError:
        return ServerUnreachableError(
            f"no Triton server answers over {self.protocol} at {self.url}: {why}",
            fix="start one (`nox -s serve`), or name another with `-u HOST:PORT`; HTTP and gRPC "
            "have a port each",
        )
