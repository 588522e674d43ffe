"""The client against the real server: answers as types, failures in our words."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from helpers import CLASSES, SIDE, SOURCE, deploy_tiny, detached, logits, own_root, photo_tensors
from tritonclient.utils import InferenceServerException

from pipeline.client import Classification, TritonClient
from pipeline.config import read_labels
from pipeline.server_record import ServerRecord
from provision.errors import ServerUnreachableError, UsageError
from provision.layout import Layout

LABELS = read_labels(SOURCE / "labels.txt", classes=CLASSES)


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, host: Layout
) -> Iterator[tuple[Layout, ServerRecord]]:
    """A server with the model in both forms."""
    layout = own_root(tmp_path_factory.mktemp("served"), host)
    deploy_tiny(layout, model="batched")
    deploy_tiny(layout, model="single", max_batch_size=0)
    with detached(layout) as (_, record):
        yield layout, record


@pytest.fixture
def client(served: tuple[Layout, ServerRecord]) -> Iterator[TritonClient]:
    _, record = served
    with TritonClient(record.url) as opened:
        yield opened


def test_what_the_server_says_of_itself(client: TritonClient) -> None:
    assert client.live()
    assert client.ready()
    assert client.server()["version"] == "2.51.0"
    assert {(entry["name"], entry["state"]) for entry in client.repository()} == {
        ("batched", "READY"),
        ("single", "READY"),
    }


def test_both_forms_of_a_model(client: TritonClient) -> None:
    (image,) = client.metadata("batched")["inputs"]
    assert image == {"name": "input", "datatype": "FP32", "shape": [-1, 3, SIDE, SIDE]}
    (image,) = client.metadata("single")["inputs"]
    assert image == {"name": "input", "datatype": "FP32", "shape": [3, SIDE, SIDE]}
    assert client.config("batched")["max_batch_size"] == 8
    assert client.config("single")["max_batch_size"] == 0
    assert client.config("single")["output"][0]["label_filename"] == "labels.txt"


@pytest.mark.parametrize("model", ["batched", "single"])
def test_classes_come_with_labels_best_first(
    served: tuple[Layout, ServerRecord], client: TritonClient, model: str
) -> None:
    layout, _ = served
    image = photo_tensors()["coffee"][np.newaxis]
    (expected,) = logits(layout.models / model / "1" / "model.onnx", image)
    order = np.argsort(-expected)[:3]
    (best,) = client.classify(model, image if model == "batched" else image[0], classes=3)
    assert [(c.index, c.label) for c in best] == [(i, LABELS[i]) for i in order]
    assert [c.score for c in best] == pytest.approx(expected[order], abs=1e-5)


def test_a_batch_gives_an_answer_for_each_image(client: TritonClient) -> None:
    images = np.stack(list(photo_tensors().values()))
    together = client.logits("batched", images)
    assert together.shape == (3, CLASSES)
    for image, row in zip(images, together, strict=True):
        # One run for three images may add up in another order.
        assert client.logits("batched", image[np.newaxis])[0] == pytest.approx(row, abs=1e-4)
    assert [len(best) for best in client.classify("batched", images, classes=2)] == [2, 2, 2]


def test_statistics_count_images(client: TritonClient) -> None:
    def images() -> int:
        return int(client.statistics("batched")["model_stats"][0].get("inference_count", 0))

    before = images()
    client.logits("batched", np.zeros((5, 3, SIDE, SIDE), np.float32))
    assert images() == before + 5


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda c: c.logits("nobody", np.zeros((1, 3, SIDE, SIDE), np.float32)), "unknown model"),
        (lambda c: c.metadata("nobody"), "unknown model"),
        (lambda c: c.logits("batched", np.zeros((1, 3, 9, 9), np.float32)), "shape"),
        (lambda c: c.logits("batched", np.zeros((9, 3, SIDE, SIDE), np.float32)), "batch"),
    ],
)
def test_a_refusal_is_the_servers_own(
    client: TritonClient, ask: Callable[[TritonClient], object], words: str
) -> None:
    with pytest.raises(InferenceServerException, match=words):
        ask(client)
    assert client.ready()
    assert not client.model_ready("nobody")


@pytest.mark.parametrize(
    "url",
    ["", "localhost", ":8000", "http://localhost:8000", "localhost:http", "localhost:8000/v2", "8"],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(UsageError, match="is not a server's address") as raised:
        TritonClient(url)
    assert raised.value.fix == "give it as HOST:PORT"


ASKING: list[Callable[[TritonClient], object]] = [
    lambda c: c.ready(),
    lambda c: c.model_ready("batched"),
    lambda c: c.server(),
    lambda c: c.repository(),
    lambda c: c.statistics("batched"),
    lambda c: c.logits("batched", np.zeros((1, 3, SIDE, SIDE), np.float32)),
]


def assert_unreachable(url: str) -> None:
    with TritonClient(url) as client:
        assert not client.live()
        for ask in ASKING:
            with pytest.raises(ServerUnreachableError, match=f"no Triton server answers at {url}"):
                ask(client)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert_unreachable(f"127.0.0.1:{port}")


def test_the_grpc_port_is_not_the_http_port(served: tuple[Layout, ServerRecord]) -> None:
    _, record = served
    assert_unreachable(f"{record.host}:{record.grpc}")


@pytest.mark.parametrize(
    "answer", [b"", b"220 mail.example ESMTP\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"]
)
def test_somebody_else_listens(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1000)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            url = f"127.0.0.1:{listener.getsockname()[1]}"
            with TritonClient(url) as client, pytest.raises(ServerUnreachableError):
                client.server()
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_classification_is_read_from_its_text() -> None:
    assert Classification.parse("7.5:504:COFFEE MUG") == Classification(7.5, 504, "COFFEE MUG")
    assert Classification.parse("-1.5e-05:3:A:B") == Classification(-1.5e-05, 3, "A:B")
    assert Classification.parse("2.0:3") == Classification(2.0, 3, "")
