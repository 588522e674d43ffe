"""Requests that a server must refuse, sent by hand: no well-meaning client would send them."""

from __future__ import annotations

import functools
import json
import math
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import requests

_TIMEOUT_SECONDS = 30
_BYTES_PER_VALUE = 4


@dataclass(frozen=True)
class Sender:
    """Sends wrong inference requests for one model.

    Attributes:
        url: ``HOST:PORT``.
        model: The model.
        shape: The shape of a right input, fp32.
    """

    url: str
    model: str
    shape: Sequence[int]

    def cases(self) -> dict[str, Callable[[], str]]:
        """What to try, by name; each sends, and says what is wrong with the answer, or nothing."""
        shape = list(self.shape)
        good = {"name": "input", "shape": shape, "datatype": "FP32"}
        larger = [*shape[:-1], shape[-1] + 1]
        size = _size(shape)
        absent = f"{self.model}-not-there"
        send = functools.partial
        return {
            "wrong shape": send(self._refused, "shape", {**good, "shape": larger}, _size(larger)),
            "wrong datatype": send(self._refused, "INT32", {**good, "datatype": "INT32"}, size),
            "wrong name": send(self._refused, "pixels", {**good, "name": "pixels"}, size),
            "too few bytes": send(self._refused, "size", good, size, sent=size // 2),
            "unknown model": send(self._refused, absent, good, size, model=absent),
            "a connection lost half way": send(self._hang_up, size),
        }

    def _refused(
        self,
        reason: str,
        tensor: dict[str, Any],
        size: int,
        *,
        sent: int | None = None,
        model: str = "",
    ) -> str:
        """Send a binary tensor of `size` bytes, or only `sent` of them, and judge the answer.

        It has to be an error of the client's (4xx), with a message that holds `reason`.

        https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
        """
        header = {"inputs": [{**tensor, "parameters": {"binary_data_size": size}}]}
        text = json.dumps(header).encode()
        with requests.Session() as session:
            session.trust_env = False  # no proxy, as for every other request
            answer = session.post(
                f"http://{self.url}/v2/models/{model or self.model}/infer",
                data=text + bytes(size if sent is None else sent),
                headers={"Inference-Header-Content-Length": str(len(text))},
                timeout=_TIMEOUT_SECONDS,
            )
        if not requests.codes.bad_request <= answer.status_code < requests.codes.server_error:
            return f"answered with {answer.status_code}"
        try:
            message = answer.json().get("error")
        except (ValueError, AttributeError):
            message = None
        if not message:
            return "refused without an error message"
        return "" if reason in message else f"refused for another reason: {message}"

    def _hang_up(self, size: int) -> str:
        host, _, port = self.url.rpartition(":")
        with socket.create_connection((host, int(port)), _TIMEOUT_SECONDS) as connection:
            connection.sendall(
                f"POST /v2/models/{self.model}/infer HTTP/1.1\r\nHost: {host}\r\n"
                f"Content-Length: {size}\r\n\r\n".encode()
                + bytes(size // 2)
            )
        return ""


def _size(shape: Sequence[int]) -> int:
    return math.prod(shape) * _BYTES_PER_VALUE
