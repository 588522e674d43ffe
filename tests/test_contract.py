"""One preprocessing contract: the same tensors and, to the last bit, the same scores everywhere.

The Python client over HTTP and gRPC, the C++ client, and ONNX Runtime in this process, for a model
with a batch dimension and one without.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL
import pytest
from golden import golden_images
from helpers import (
    CLASSES,
    PREPROCESSING,
    SIDE,
    SOURCE,
    Slipway,
    deploy_tiny,
    detached,
    own_root,
    recipe_lines,
)
from numpy.typing import NDArray

from pipeline.build_image_client import client_library
from pipeline.client import TritonClient
from pipeline.config import read_labels
from pipeline.dat import DatRequest, write_dat
from pipeline.images import read_image
from pipeline.preprocess import Preprocessing, preprocess
from pipeline.scaling import NAMES, ImageInput, Scaler
from pipeline.server_record import ServerRecord
from provision.layout import Layout

LABELS = read_labels(SOURCE / "labels.txt", classes=CLASSES)
MODELS = ["batched", "single"]
NBYTES = 4 * 3 * SIDE * SIDE
Served = tuple[Layout, ServerRecord]
Tensors = dict[Path, NDArray[np.float32]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, host: Layout) -> Iterator[Served]:
    """A server with a model in both forms; the client library is the host's."""
    layout = own_root(tmp_path_factory.mktemp("served"), host)
    (layout.root / "triton").symlink_to(host.triton)
    deploy_tiny(layout, model="batched")
    deploy_tiny(layout, model="single", max_batch_size=0)
    with detached(layout) as (_, record):
        yield layout, record


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The golden set."""
    return golden_images(tmp_path_factory.mktemp("golden") / "images")


@pytest.fixture(scope="module")
def tensors(images: list[Path]) -> Tensors:
    """The inputs that the model was trained for."""
    return {path: preprocess(read_image(path), PREPROCESSING) for path in images}


@pytest.fixture(scope="module")
def image_client(served: Served) -> Path:
    """The C++ client, built as a user builds it."""
    layout, _ = served
    if client_library(layout) is None:
        pytest.skip("needs the client library: `nox -s build_client -- --http-only`")
    built = Slipway(layout)("build_image_client")
    assert built.returncode == 0, built.stderr
    return layout.bin / "image_client"


@pytest.fixture
def run(served: Served, image_client: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the C++ client on the server, without a hint where its library is."""
    _, record = served
    # Whoever has a proxy for the world does not have it for this server.
    variables = {**os.environ, "http_proxy": "http://127.0.0.1:9"}
    variables.pop("LD_LIBRARY_PATH", None)

    def run(*arguments: str | Path, url: str = record.url) -> subprocess.CompletedProcess[str]:
        command = [image_client, "-u", url, *arguments]
        return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)

    return run


def dat(layout: Layout, image: Path, file: Path, model: str = "batched") -> Path:
    """Write an image as input of a model, in this process."""
    write_dat(layout, DatRequest(str(image), file, model))
    return file


# Tensors


def test_a_dat_file_is_the_python_clients_tensor(
    served: Served, tensors: Tensors, tmp_path: Path
) -> None:
    layout, _ = served
    for path, tensor in tensors.items():
        written = np.fromfile(dat(layout, path, tmp_path / "image.dat"), "<f4")
        assert np.array_equal(written.reshape(3, SIDE, SIDE), tensor), path


@pytest.mark.parametrize("scaling", NAMES)
def test_preprocess_as_a_user_runs_it(layout: Layout, images: list[Path], scaling: str) -> None:
    file = layout.root / "photo.dat"
    result = Slipway(layout)("preprocess", images[0], file, "-s", scaling, "--side", "64")
    assert result.returncode == 0, result.stderr
    size = f"{file}: {4 * 3 * 64 * 64} bytes, fp32 [3, 64, 64], little-endian; {scaling}: "
    assert result.stdout.startswith(size)
    spec = Preprocessing.usual(64) if scaling == "IMAGENET" else None
    target = ImageInput(3, 64, 64, np.dtype(np.float32))
    expected = Scaler(scaling, target, spec).read(images[0])  # type: ignore[arg-type] # one of NAMES
    assert np.array_equal(np.fromfile(file, "<f4").reshape(3, 64, 64), expected)


def test_preprocess_fails_in_sentences(layout: Layout, images: list[Path], tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("not a photo")
    cases: list[tuple[list[str | Path], int, str]] = [
        ([text, tmp_path / "x.dat"], 40, "text.jpg is not an image"),
        ([images[0], tmp_path / "x.dat", "-m", "nobody"], 24, "nobody is not deployed in"),
        ([images[0], tmp_path], 13, f"cannot write {tmp_path}"),
        ([images[0]], 2, "the following arguments are required: FILE.dat"),
    ]
    for arguments, code, words in cases:
        result = Slipway(layout)("preprocess", *arguments)
        assert result.returncode == code
        assert words in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.export
def test_they_are_torchvisions_tensors(
    served: Served, images: list[Path], export_python: Path, tmp_path: Path
) -> None:
    layout, _ = served
    usual = Preprocessing.usual()
    cases = [{"file": str(path), **spec.to_json()} for path in images for spec in (usual,)]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    script = Path(__file__).with_name("torchvision_preset.py")
    done = subprocess.run(
        [export_python, script, tmp_path], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == PIL.__version__
    for number, path in enumerate(images):
        file = tmp_path / "image.dat"
        write_dat(layout, DatRequest(str(path), file))
        ours = np.fromfile(file, "<f4").reshape(3, 224, 224)
        assert np.array_equal(ours, np.load(tmp_path / f"{number}.npy")), path


# Scores


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_python_clients_scores_are_onnx_runtimes(
    served: Served, tensors: Tensors, model: str, protocol: str
) -> None:
    layout, _ = served
    folder = next(iter(tensors)).parent
    result = Slipway(layout)("classify", "-m", model, "-i", protocol, "-c", "5", "-a", folder)
    assert result.returncode == 0, result.stderr
    expected = []
    for number, tensor in enumerate(tensors.values(), 1):
        expected.append(f"Request {number}, batch size 1")
        expected += recipe_lines(layout.models / model, tensor, LABELS, 5)
    assert result.stdout.splitlines() == [*expected, "DONE"]


@pytest.mark.parametrize("model", MODELS)
def test_the_cpp_clients_scores_are_onnx_runtimes(
    served: Served,
    tensors: Tensors,
    run: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    model: str,
) -> None:
    layout, _ = served
    for path, tensor in tensors.items():
        file = dat(layout, path, tmp_path / f"{path.stem}.dat", model)
        result = run(model, file)
        assert (result.returncode, result.stderr) == (0, "")
        lines = recipe_lines(layout.models / model, tensor, LABELS, 5)
        assert result.stdout.splitlines() == [f"Image '{file}':", *lines]


# The C++ client by itself


@pytest.fixture
def file(served: Served, images: list[Path], tmp_path: Path) -> Path:
    """An input for the models."""
    layout, _ = served
    return dat(layout, images[0], tmp_path / "image.dat")


def test_it_takes_options_before_and_after(
    run: Callable[..., subprocess.CompletedProcess[str]], file: Path
) -> None:
    five = run("batched", file).stdout
    two = run("-c", "2", "-x", "1", "batched", file)
    assert two.stdout.splitlines() == five.splitlines()[:3]
    assert run("batched", file, "-c2").stdout == two.stdout
    assert len(run("-c", "5000", "single", file).stdout.splitlines()) == CLASSES + 1
    assert "POST /v2/models/batched/infer" in run("-v", "batched", file).stderr
    shown = run("--help")
    assert shown.returncode == 0
    assert shown.stdout.startswith("usage: image_client [-u HOST:PORT]")


@pytest.mark.parametrize("size", [0, 1, NBYTES - 4, NBYTES + 4])
def test_a_file_of_the_wrong_size_is_named_with_both_sizes(
    run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, size: int
) -> None:
    file = tmp_path / "wrong.dat"
    file.write_bytes(bytes(size))
    for model, shape in (
        ("batched", f"[1, 3, {SIDE}, {SIDE}]"),
        ("single", f"[3, {SIDE}, {SIDE}]"),
    ):
        result = run(model, file)
        assert (result.returncode, result.stdout) == (40, "")
        what, fix = result.stderr.splitlines()
        assert what == (
            f"error: '{file}' holds {size} bytes, and the input of {model} takes {NBYTES}: "
            f"FP32 {shape}"
        )
        assert f"nox -s preprocess -- -m {model} " in fix


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "a model and a file are needed, and 0 arguments were given"),
        (["batched"], 2, "and 1 arguments were given"),
        (["batched", "FILE", "more"], 2, "and 3 arguments were given"),
        (["-q", "batched", "FILE"], 2, "there is no option -q"),
        (["batched", "FILE", "-c"], 2, "-c lacks its value"),
        (["-c", "0", "batched", "FILE"], 2, "'0' is not a number of classes"),
        (["-c", "5x", "batched", "FILE"], 2, "'5x' is not a number of classes"),
        (["-c", "-1", "batched", "FILE"], 2, "'-1' is not a number of classes"),
        (["nobody", "FILE"], 33, "does not serve nobody: Request for unknown model"),
        (["-x", "7", "batched", "FILE"], 33, "does not serve batched version 7: "),
        (["batched", "/nowhere.dat"], 40, "'/nowhere.dat' cannot be read: No such file"),
        (["batched", "/"], 40, "'/' cannot be read: it is not a regular file"),
    ],
)
def test_its_failures_are_sentences(
    run: Callable[..., subprocess.CompletedProcess[str]],
    file: Path,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    result = run(*[file if word == "FILE" else word for word in arguments])
    assert (result.returncode, result.stdout) == (code, "")
    what, fix = result.stderr.splitlines()
    assert what.startswith("error: ")
    assert words in what
    assert fix.startswith("fix: ")


def test_it_says_where_no_server_is(
    served: Served, run: Callable[..., subprocess.CompletedProcess[str]], file: Path
) -> None:
    _, record = served
    for url in ("127.0.0.1:1", f"127.0.0.1:{record.grpc}"):
        result = run("batched", file, url=url)
        assert (result.returncode, result.stdout) == (32, "")
        assert result.stderr.startswith(f"error: no Triton server answers at {url}: ")


def test_it_says_when_its_answer_cannot_be_written(
    served: Served, image_client: Path, file: Path
) -> None:
    _, record = served
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [image_client, "-u", record.url, "batched", file],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert result.returncode == 13
    assert "cannot be written to standard output" in result.stderr


def test_its_exit_codes_are_slipways(image_client: Path, layout: Layout) -> None:
    shown = subprocess.check_output([image_client, "--help"], text=True)
    ours = Slipway(layout)("--help").stdout
    listed = {int(code) for code in re.findall(r"^ +(\d+)  \w", shown, re.MULTILINE)}
    assert listed < {int(code) for code in re.findall(r"^ +(\d+)  \w", ours, re.MULTILINE)}


def test_both_clients_count_as_one_image_each(
    served: Served, run: Callable[..., subprocess.CompletedProcess[str]], file: Path
) -> None:
    _, record = served

    def images() -> int:
        with TritonClient(record.url) as client:
            return int(client.statistics("batched")["model_stats"][0].get("inference_count", 0))

    before = images()
    assert run("batched", file).returncode == 0
    assert images() == before + 1


# Building it


def test_without_the_library_it_says_how_to_get_it(layout: Layout) -> None:
    result = Slipway(layout)("build_image_client")
    assert result.returncode == 10
    what, fix = result.stderr.splitlines()
    assert what == f"error: there is no libhttpclient.so in {layout.triton / 'client'}"
    assert "nox -s build_client -- --http-only" in fix


def test_without_a_compiler_it_says_so(layout: Layout, image_client: Path, served: Served) -> None:
    assert image_client.is_file()
    (layout.root / "triton").symlink_to(served[0].root / "triton")
    result = Slipway(layout)("build_image_client", env={"PATH": "/nowhere", "CXX": ""})
    assert result.returncode == 10
    assert "there is no C++ compiler" in result.stderr


def test_a_source_that_does_not_compile_leaves_the_program_that_was_there(
    layout: Layout, image_client: Path, served: Served, tmp_path: Path
) -> None:
    (layout.root / "triton").symlink_to(served[0].root / "triton")
    layout.bin.mkdir()
    old = layout.bin / "image_client"
    old.write_bytes(image_client.read_bytes())
    compiler = tmp_path / "g++"
    compiler.write_text(
        '#!/bin/sh\nif [ "$1" = --version ]; then echo "g++ 12.2.0"; exit; fi\n'
        'exec /usr/bin/g++ -DkHelp=42 "$@"\n'
    )
    compiler.chmod(0o755)
    result = Slipway(layout)("build_image_client", env={"CXX": str(compiler)})
    assert result.returncode == 15
    assert "the C++ client does not compile" in result.stderr
    assert (layout.logs / "build-image-client.log").is_file()
    assert [path.name for path in layout.bin.iterdir()] == ["image_client"]
    assert old.read_bytes() == image_client.read_bytes()
