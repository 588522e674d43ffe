"""The Python client, run as a user runs it, on the real server: the recipe's lines, and ours."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import (
    CLASSES,
    PREPROCESSING,
    SHARED_MEMORY,
    SIDE,
    SOURCE,
    Slipway,
    deploy_tiny,
    detached,
    own_root,
    recipe_lines,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import server
from pipeline.answers import Answer, JsonLines, line
from pipeline.batches import Picture, batches
from pipeline.config import read_labels
from pipeline.image_model import ImageModel
from pipeline.images import read_image
from pipeline.photos import sample_photos
from pipeline.preprocess import preprocess
from pipeline.scaling import ImageInput, Name, Scaler
from pipeline.server_record import ServerRecord
from provision.errors import UsageError
from provision.installation import ServerInstallation
from provision.layout import REPOSITORY, Layout

LABELS = read_labels(SOURCE / "labels.txt", classes=CLASSES)
PHOTOS = {photo.name: photo.path for photo in sample_photos()}
TARGET = ImageInput(3, SIDE, SIDE, np.dtype(np.float32))
MODELS = ["batched", "single"]
Served = tuple[Layout, ServerRecord]
Classify = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, host: Layout) -> Iterator[Served]:
    """A server with a model in both forms."""
    layout = own_root(tmp_path_factory.mktemp("served"), host)
    deploy_tiny(layout, model="batched")
    deploy_tiny(layout, model="single", max_batch_size=0)
    with detached(layout) as (_, record):
        yield layout, record


@pytest.fixture
def classify(served: Served) -> Classify:
    """Run ``classify`` where the models were deployed from."""
    layout, _ = served
    return lambda *arguments: Slipway(layout)("classify", *arguments)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The sample photos in a folder, with what else lies in folders."""
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    (photos / ".hidden").write_text("not a photo")
    for name, path in PHOTOS.items():
        shutil.copy(path, photos / f"{name}{path.suffix}")
    return photos


def expected(model: Path, path: Path, classes: int, scaling: Name | None = None) -> list[str]:
    """The recipe's lines for a photo, computed by ONNX Runtime in this process."""
    tensor = (
        Scaler(scaling, TARGET).read(path)
        if scaling
        else preprocess(read_image(path), PREPROCESSING)
    )
    return recipe_lines(model, tensor, LABELS, classes)


# The recipe's output


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("protocol", ["http", "gRPC"])
def test_a_photo(served: Served, classify: Classify, model: str, protocol: str) -> None:
    layout, _ = served
    photo = PHOTOS["coffee"]
    result = classify("-m", model, "-c", "5", "-i", protocol, photo)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "Request 1, batch size 1",
        *expected(layout.models / model, photo, 5),
        "DONE",
    ]


@pytest.mark.parametrize("scaling", ["NONE", "INCEPTION", "VGG"])
def test_the_recipes_scalings(served: Served, classify: Classify, scaling: Name) -> None:
    layout, _ = served
    photo = PHOTOS["astronaut"]
    result = classify("-m", "batched", "-s", scaling, photo)
    lines = expected(layout.models / "batched", photo, 1, scaling)
    assert result.stdout.splitlines() == ["Request 1, batch size 1", *lines, "DONE"]


@pytest.mark.parametrize("options", [[], ["-a"], ["--shared-memory", "system"]])
def test_a_folder_in_the_order_of_its_names(
    served: Served, classify: Classify, folder: Path, options: list[str]
) -> None:
    layout, _ = served
    result = classify("-m", "single", "-c", "2", *options, folder)
    assert result.returncode == 0, result.stderr
    wanted = []
    for number, name in enumerate(sorted(PHOTOS), 1):
        lines = expected(layout.models / "single", PHOTOS[name], 2)
        wanted += [f"Request {number}, batch size 1", *lines]
    assert result.stdout.splitlines() == [*wanted, "DONE"]
    (summary,) = result.stderr.splitlines()
    assert summary.startswith("3 of 3 files in ")
    assert not list(SHARED_MEMORY.glob("slipway-client-*"))


@pytest.mark.parametrize("options", [[], ["-i", "grpc", "--shared-memory", "system", "-a"]])
def test_the_last_batch_is_filled_with_the_first_images(
    classify: Classify, folder: Path, options: list[str]
) -> None:
    result = classify("-m", "batched", "-b", "2", *options, folder)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [lines[0], lines[3], lines[-1]] == [
        "Request 1, batch size 2",
        "Request 2, batch size 2",
        "DONE",
    ]
    assert len(lines) == 2 * 3 + 1
    assert lines[5] == lines[1], "astronaut, again"
    assert not list(SHARED_MEMORY.glob("slipway-client-*"))


def test_standard_input(served: Served, classify: Classify) -> None:
    layout, _ = served
    command = [sys.executable, "-m", "pipeline", "classify", "-m", "batched", "-"]
    with PHOTOS["chelsea"].open("rb") as photo:
        result = subprocess.run(
            command,
            stdin=photo,
            capture_output=True,
            text=True,
            check=True,
            cwd=REPOSITORY,
            env={**os.environ, "SLIPWAY_ROOT": str(layout.root)},
        )
    assert result.stdout == classify("-m", "batched", PHOTOS["chelsea"]).stdout


def test_json_lines(served: Served, classify: Classify, folder: Path) -> None:
    layout, _ = served
    result = classify("-m", "batched", "-c", "2", "-b", "2", "--json", folder)
    found = [json.loads(text) for text in result.stdout.splitlines()]
    assert [Path(one["file"]).stem for one in found] == sorted(PHOTOS), "each once"
    assert [one["request"] for one in found] == [1, 1, 2]
    first = expected(layout.models / "batched", PHOTOS["astronaut"], 1)[0].split()
    best = found[0]["classes"][0]
    assert found[0]["scaling"] == "IMAGENET"
    assert found[0]["version"] == "1"
    # One run for two images may add up in another order.
    assert best["score"] == pytest.approx(float(first[0]), abs=1e-4)
    assert f"({best['index']})" == first[1]
    assert best["label"] == LABELS[best["index"]]


def test_verbose_says_what_is_sent(classify: Classify) -> None:
    quiet = classify("-m", "batched", PHOTOS["coffee"])
    result = classify("-v", "-m", "batched", "-x", "1", PHOTOS["coffee"])
    assert result.stdout == quiet.stdout
    said = result.stderr.splitlines()
    assert "Triton 2.51.0" in said[0]
    assert said[1] == f"batched: input FP32 (3, {SIDE}, {SIDE})"
    assert said[2].startswith("IMAGENET: shorter side 40, bilinear, centre 32, mean (0.485")
    assert said[3].startswith(f"request 1: (1, 3, {SIDE}, {SIDE}), {12 * SIDE * SIDE} bytes, ")


def test_a_model_from_elsewhere_gets_the_recipes_default(
    served: Served, layout: Layout, classify: Classify
) -> None:
    _, record = served
    photo = PHOTOS["coffee"]
    from_elsewhere = Slipway(layout)("classify", "-m", "batched", "-u", record.url, photo)
    assert from_elsewhere.stdout == classify("-m", "batched", "-s", "NONE", photo).stdout
    # And where it was deployed from, the very same as with -s.
    here = classify("-m", "batched", photo)
    assert here.stdout == classify("-m", "batched", "-s", "IMAGENET", photo).stdout
    assert here.stdout != from_elsewhere.stdout


# What goes wrong


def test_a_bad_file_does_not_stop_the_others(classify: Classify, folder: Path) -> None:
    without = classify("-m", "batched", "-b", "2", folder).stdout.removesuffix("DONE\n")
    (folder / "brick.jpg").write_text("not a photo")
    (folder / "empty.png").touch()
    result = classify("-m", "batched", "-b", "2", folder)
    assert result.returncode == 40
    assert result.stdout == without
    *told, what, fix = result.stderr.splitlines()
    assert f"skipped: {folder}/brick.jpg is not an image in a format that can be read" in told
    assert f"skipped: {folder}/empty.png is empty" in told
    assert what == (
        f"error: 2 of 5 files in {folder} cannot be classified: brick.jpg, empty.png; "
        "the others were classified"
    )
    assert fix.startswith("fix: ")
    lines = classify("-m", "batched", "--json", folder).stdout.splitlines()
    bad = [entry for entry in map(json.loads, lines) if "error" in entry]
    assert [Path(entry["file"]).name for entry in bad] == ["brick.jpg", "empty.png"]


def test_a_folder_without_a_photo(classify: Classify, tmp_path: Path) -> None:
    empty = classify("-m", "batched", tmp_path)
    assert empty.returncode == 2
    assert f"there is no file in the folder {tmp_path}" in empty.stderr
    for number in range(7):
        (tmp_path / f"{number}.jpg").write_text("not a photo")
    result = classify("-m", "batched", tmp_path)
    assert result.returncode == 40
    assert result.stdout == ""
    assert "7 of 7 files" in result.stderr
    assert "0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg and 2 more; nothing was classified" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-m", "nobody", "PHOTO"], 33, "does not serve nobody. Request for unknown model"),
        (["-m", "batched", "-x", "7", "PHOTO"], 33, "does not serve batched version 7"),
        (["-m", "batched", "-b", "9", "PHOTO"], 2, "batched takes at most 8 images a request"),
        (["-m", "single", "-b", "2", "PHOTO"], 2, "single takes one image a request"),
        (["-m", "batched", "-u", "nonsense", "PHOTO"], 2, "is not a server's address"),
        (["-m", "batched", "-c", "0", "PHOTO"], 2, "must be 1 or more"),
        (["-m", "batched", "-s", "RESNET", "PHOTO"], 2, "invalid choice: 'RESNET'"),
        (["-m", "batched", "-i", "ftp", "PHOTO"], 2, "invalid choice: 'ftp'"),
        (["PHOTO"], 2, "the following arguments are required: -m/--model-name"),
        (["-m", "batched", "missing.jpg"], 40, "missing.jpg does not exist"),
    ],
)
def test_a_failure_is_a_sentence(
    classify: Classify, arguments: list[str], code: int, words: str
) -> None:
    photo = str(PHOTOS["coffee"])
    result = classify(*[photo if word == "PHOTO" else word for word in arguments])
    assert result.returncode == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("image", ["chelsea.png", ""])
def test_answers_that_cannot_be_written(served: Served, folder: Path, image: str) -> None:
    layout, _ = served
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "pipeline", "classify", "-m", "batched", folder / image],
            cwd=REPOSITORY,
            env={**os.environ, "SLIPWAY_ROOT": str(layout.root)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert result.returncode == 13
    assert "error: cannot write standard output: no space left on device" in result.stderr


def test_a_server_that_dies_in_the_middle(
    layout: Layout, slipway: Slipway, installation: ServerInstallation, tmp_path: Path
) -> None:
    deploy_tiny(layout)
    photo = Path(shutil.copy(PHOTOS["coffee"], tmp_path))
    many = tmp_path / "many"
    many.mkdir()
    for number in range(3000):
        (many / f"{number:05}.png").hardlink_to(photo)
    with server.temporary(layout, installation) as record:
        process = slipway.start("classify", "-m", "tiny", "-u", record.url, many)
        assert process.stdout
        assert process.stdout.readline() == "Request 1, batch size 1\n"
        running = record.process()
        assert running
        running.kill()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 32
    assert f"no Triton server answers over http at {record.url}" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_nobody_listens(layout: Layout, served: Served, protocol: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = f"127.0.0.1:{listener.getsockname()[1]}"
    _, record = served
    other = f"127.0.0.1:{record.grpc if protocol == 'http' else record.http}"
    for url in (closed, other):
        result = Slipway(layout)(
            "classify", "-m", "batched", "-i", protocol, "-u", url, PHOTOS["coffee"]
        )
        assert result.returncode == 32, result.stderr
        assert f"no Triton server answers over {protocol} at {url}" in result.stderr


def test_ctrl_c_does_not_wait_for_a_server_that_hangs(
    served: Served, folder: Path, slipway: Slipway
) -> None:
    # A relay that lets the questions about the model through, and swallows what follows.
    _, record = served
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"127.0.0.1:{listener.getsockname()[1]}"
        process = slipway.start("classify", "-m", "batched", "-u", url, folder)
        asking, _ = listener.accept()
        with asking, socket.create_connection((record.host, record.http)) as server:
            for _ in ("metadata", "config"):
                server.sendall(asking.recv(1 << 16))
                asking.sendall(_whole_answer(server))
            hanging, _ = listener.accept()
            with hanging:
                assert hanging.recv(100).startswith(b"POST /v2/models/batched/infer")
                begun = time.monotonic()
                process.send_signal(signal.SIGINT)
                _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - begun < 15
    assert said.splitlines()[-1] == "interrupted"


def _whole_answer(server: socket.socket) -> bytes:
    answer = b""
    while True:
        answer += server.recv(1 << 16)
        head, _, body = answer.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split()[0])
        if len(body) == length:
            return answer


# Memory


# Not the rusage of a child, which begins with what its parent had when it started it.
PEAK = """
import sys
from pipeline.cli import main
code = main(sys.argv[1:])
status = open("/proc/self/status").read()
print(status.split("VmHWM:")[1].split()[0], file=sys.stderr)
sys.exit(code)
"""


def peak(layout: Layout, folder: Path, *options: str) -> int:
    """The most memory that a run took, in bytes."""
    result = subprocess.run(
        [sys.executable, "-c", PEAK, "classify", "-m", "batched", *options, folder],
        cwd=REPOSITORY,
        env={**os.environ, "SLIPWAY_ROOT": str(layout.root)},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(result.stderr.splitlines()[-1]) * 1024


def test_more_files_take_no_more_memory(served: Served, tmp_path: Path) -> None:
    layout, _ = served
    image = tmp_path / "image.png"
    Image.new("RGB", (400, 400), "red").save(image)
    peaks = []
    for count in (40, 1000):
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            (folder / f"{number:05}.png").hardlink_to(image)
        peaks.append(peak(layout, folder, "-a"))
    assert peaks[1] - peaks[0] < 5e6, "the inputs alone would be 12 MB"


# Parts


@given(st.integers(0, 40), st.integers(1, 9))
def test_batches_wrap_around_as_in_the_recipe(count: int, size: int) -> None:
    pictures = [Picture(str(number), np.zeros(1)) for number in range(count)]
    made = list(batches(pictures, size))
    assert len(made) == -(-count // size)
    files = [image.file for batch in made for image in batch.images]
    assert files == [str(number % count) for number in range(len(files))]
    assert all(len(batch.images) == size for batch in made)
    assert sum(batch.fresh for batch in made) == count


def test_a_class_without_a_label_and_one_with_colons() -> None:
    assert line("19.308859:250:SIBERIAN HUSKY") == "19.308859 (250) = SIBERIAN HUSKY"
    assert line("0.5:3:A:B") == "0.5 (3) = A:B"
    assert line("-1.000000:7") == "-1.000000 (7)"


def test_json_has_no_word_for_what_is_no_number() -> None:
    out = io.StringIO()
    JsonLines(out, {}).answer(Answer(1, ["a.jpg"], [["nan:3:X", "-inf:4"]], 1))
    classes = json.loads(out.getvalue(), parse_constant=pytest.fail)["classes"]
    assert classes == [
        {"score": None, "index": 3, "label": "X"},
        {"score": None, "index": 4, "label": ""},
    ]


def model(
    *, shape: list[Any], batch: int = 0, form: str = "FORMAT_NONE", **changes: Any
) -> ImageModel:
    tensor = {"name": "pixels", "datatype": "FP32", "shape": shape, **changes}
    scores = [-1, 10] if batch else [10]
    metadata = {
        "name": "m",
        "inputs": [tensor],
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": scores}],
    }
    return ImageModel.read(metadata, {"max_batch_size": batch, "input": [{"format": form}]})


def test_models_in_each_form() -> None:
    assert model(shape=[3, 20, 30]).image == ImageInput(3, 20, 30, np.dtype(np.float32))
    # As gRPC's JSON has it.
    assert model(shape=["-1", "20", "30", "3"], batch=4).image.channels_last
    given = model(shape=[1, 9, 3], form="FORMAT_NHWC", datatype="UINT8")
    assert given.image == ImageInput(3, 1, 9, np.dtype(np.uint8), channels_last=True)
    assert (given.input_name, given.output_name, given.datatype) == ("pixels", "scores", "UINT8")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": [20, 30]}, "not an image's"),
        ({"shape": [3, 20, 3]}, "could be CHW or HWC"),
        ({"shape": [3, -1, -1]}, "images of any size"),
        ({"shape": [4, 20, 30], "form": "FORMAT_NCHW"}, "images of 4 channels"),
        ({"shape": [3, 20, 30], "datatype": "BYTES"}, "takes BYTES, and not numbers"),
    ],
)
def test_models_that_are_no_image_classifiers(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        model(**changes)
