"""What only torch can show: weights, exports and the verification gate; see torch_facts.py."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import SOURCE

from pipeline import classifiers
from pipeline.weights import MIRROR_VARIABLE
from provision.errors import SlipwayError
from provision.files import sha256
from provision.layout import REPOSITORY

pytestmark = pytest.mark.export

Facts = dict[str, Any]


class WeightsServer(http.server.ThreadingHTTPServer):
    """A server of weights that fails in the way that the address asks for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.ended = threading.Event()
        self.requests: list[str] = []


class _Handler(http.server.BaseHTTPRequestHandler):
    server: WeightsServer

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        _, way, _ = self.path.split("/", 2)
        if way == "missing":
            self.send_error(404)
        elif way == "garbage":
            self.wfile.write(b"this is not HTTP\r\n\r\n")
        elif way == "hang":
            self.server.ended.wait(60)
        else:
            self.send_response(200)
            self.send_header("Content-Length", "10000" if way == "short" else "5")
            self.end_headers()
            self.wfile.write(b"wrong")

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def weights_server() -> Iterator[WeightsServer]:
    """The server, running."""
    with WeightsServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()
            thread.join()


def refusing() -> str:
    """The address of a server that is not there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="module")
def facts(export_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Facts:
    folder = tmp_path_factory.mktemp("facts")
    with weights_server() as server:
        result = subprocess.run(
            [
                export_python,
                Path(__file__).with_name("torch_facts.py"),
                *(folder, server.url, refusing()),
            ],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "NO_PROXY": "127.0.0.1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    assert result.returncode == 0, result.stderr
    found: Facts = json.loads((folder / "facts.json").read_text())
    found["folder"] = folder
    return found


def failure(data: dict[str, Any]) -> SlipwayError:
    assert "error" in data, data
    return SlipwayError.from_json(data)


def test_classifiers_are_torchvisions(facts: Facts) -> None:
    assert classifiers.names() == sorted(facts["names"])


def test_labels_are_torchvisions_in_upper_case(facts: Facts) -> None:
    labels = (SOURCE / "labels.txt").read_text().splitlines()
    assert labels == [label.upper() for label in facts["labels"]]


def test_seed_decides_the_weights(facts: Facts) -> None:
    seeds = facts["seeds"]
    assert facts["again"] == seeds["1"]
    assert seeds["1"]["some"] != seeds["2"]["some"]
    for loaded in seeds.values():
        assert loaded["note"] == "random weights: the labels mean nothing"
        assert loaded["spread"] == pytest.approx(1, rel=0.01)
        assert (loaded["kind"], loaded["sha256"]) == ("random", "")


@pytest.mark.parametrize("name", ["good", "half"])
def test_state_dict_is_loaded(facts: Facts, name: str) -> None:
    loaded = facts["weight_files"][name]
    path = facts["folder"] / "weight_files" / f"{name}.pth"
    assert (loaded["kind"], loaded["value"], loaded["sha256"]) == ("file", str(path), sha256(path))
    assert (loaded["training"], loaded["note"]) == (False, "")
    assert loaded["dtypes"] == ["torch.float32"]
    assert loaded["some"] == pytest.approx(facts["seeds"]["1"]["some"], abs=0.01)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("empty", "cannot be read as a state dict"),
        ("text", "cannot be read as a state dict"),
        ("truncated", "cannot be read as a state dict"),
        ("flipped", "cannot be read as a state dict"),
        ("evil", "cannot be read as a state dict"),
        ("evil pickle", "cannot be read as a state dict"),
        ("a whole model", "cannot be read as a state dict"),
        ("nested", "holds no state dict"),
        ("a list", "holds no state dict"),
        ("numbers", "holds no state dict"),
        ("not finite", "holds values that are not finite"),
        ("one missing", "does not fit squeezenet1_1"),
        ("another's", "does not fit squeezenet1_1"),
    ],
)
def test_what_is_no_state_dict_of_the_model(facts: Facts, name: str, said: str) -> None:
    error = failure(facts["weight_files"][name])
    assert error.exit_code == 20
    assert said in error.what
    assert f"{name}.pth" in error.what
    assert "torch.save(model.state_dict(), FILE)" in error.fix
    assert "\n" not in error.what + error.cause
    assert "\x1b" not in error.cause
    assert "`False`" not in error.cause, "torch's advice to read the file unsafely"


def test_nothing_in_a_weights_file_is_executed(facts: Facts) -> None:
    assert not (facts["folder"] / "weight_files" / "executed").exists()


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("missing", "answers 404 Not Found"),
        ("wrong", "is not the pinned file"),
        ("short", "is not the pinned file"),
        ("garbage", "cannot be had"),
        ("refused", "Connection refused"),
        ("hang", "timed out"),
    ],
)
def test_failed_download_names_the_other_ways(facts: Facts, way: str, said: str) -> None:
    error = failure(facts["downloads"][way])
    assert error.exit_code == 12
    assert said in error.what
    assert "--weights FILE" in error.fix
    assert "--weights random" in error.fix
    assert MIRROR_VARIABLE in error.fix


def test_mirror_that_is_no_address(facts: Facts) -> None:
    error = failure(facts["downloads"]["no address"])
    assert error.exit_code == 2
    assert error.what == f"{MIRROR_VARIABLE} is no address: nonsense"


def test_failed_downloads_leave_nothing_in_the_cache(facts: Facts) -> None:
    assert facts["downloads"]["left in the cache"] == []


def test_damaged_cache_says_what_to_delete(facts: Facts) -> None:
    error = failure(facts["downloads"]["damaged cache"])
    assert error.exit_code == 20
    assert "is damaged" in error.what
    assert "`rm " in error.fix


def test_unknown_weights_list_the_known(facts: Facts) -> None:
    error = failure(facts["downloads"]["unknown"])
    assert error.exit_code == 20
    assert "no weights IMAGENET1K_V9 for squeezenet1_1" in error.what
    assert "choose one of IMAGENET1K_V1" in error.fix


def test_auto_falls_back_and_says_so(facts: Facts) -> None:
    loaded = facts["downloads"]["auto"]
    assert loaded["kind"] == "random"
    assert "random weights: the labels mean nothing" in loaded["note"]
    assert "Connection refused" in loaded["note"]
    assert loaded["some"] == facts["seeds"]["0"]["some"]


def test_right_export_passes(facts: Facts) -> None:
    found = facts["verification"]
    assert [case["passed"] for case in found["cases"]] == [True, True]
    assert [case["batch"] for case in found["cases"]] == [1, 3]
    assert found["shapes"] == [[1, 10], [3, 10]]
    assert found["interface"] == ["input", "output"]
    # What is recorded is what another run of the same file gives.
    for case, largest in zip(found["cases"], found["largest"], strict=True):
        assert case["max_abs"] == pytest.approx(largest, abs=1e-6)
        assert largest < 1e-4


def test_export_is_one_file(facts: Facts) -> None:
    assert facts["verification"]["files"] == ["model.onnx", "wrong.onnx"]


def test_wrong_export_is_refused_with_its_worst_elements(facts: Facts) -> None:
    error = failure(facts["verification"]["wrong"])
    assert error.exit_code == 22
    assert "nothing was deployed" in error.what
    worst = error.what.splitlines()[1:]
    assert len(worst) == 10
    for line in (worst[0], worst[5]):
        assert "class 7: expected" in line
        assert "off by 5.00e-01" in line


@pytest.mark.parametrize(
    ("name", "said"),
    [("fixed", "not that of a classifier"), ("branching", "Could not guard on data-dependent")],
)
def test_what_is_no_classifier_is_refused(facts: Facts, name: str, said: str) -> None:
    error = failure(facts["exports"][name])
    assert error.exit_code == 21
    assert "deploy a smaller model" in error.fix
    assert said in error.what + error.cause
