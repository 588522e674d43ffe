"""Helpers of the tests: a small model, and the command line."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import psutil
from numpy.typing import NDArray

from pipeline import server_record
from pipeline.engines import OnnxRuntimeEngine
from pipeline.images import read_image
from pipeline.install import Prepared, install_version
from pipeline.manifest import Manifest
from pipeline.photos import sample_photos
from pipeline.preprocess import Preprocessing, preprocess
from pipeline.repository import Repository
from pipeline.server_record import ServerRecord
from provision.files import sha256
from provision.layout import REPOSITORY, Layout

SIDE = 32
CLASSES = 1000
FREE_PORTS = ("--http-port=0", "--grpc-port=0", "--metrics-port=0")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where shm_open(3) puts regions on Linux
PREPROCESSING = Preprocessing(40, SIDE, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SOURCE = REPOSITORY / "model_repository" / "resnet50"


def tiny_onnx(path: Path, *, seed: int = 0) -> Path:
    """Write a linear classifier [batch, 3, 32, 32] -> [batch, 1000], fp32, seeded."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((3 * SIDE * SIDE, CLASSES), np.float32) / SIDE
    helper, kinds = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["output"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("input", kinds.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("output", kinds.FLOAT, ["batch", CLASSES])],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def logits(model: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """What ONNX Runtime computes in this process, on the CPU."""
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["output"], {"input": images})[0], np.float32)


def recipe_lines(
    model: Path, tensor: NDArray[np.float32], labels: list[str], classes: int
) -> list[str]:
    """What either client prints of an input, as ONNX Runtime in this process computes it.

    Args:
        model: The model's folder in a repository.
        tensor: The input, without a batch dimension.
        labels: The model's.
        classes: How many lines.
    """
    (scores,) = logits(model / "1" / "model.onnx", tensor[np.newaxis])
    best = np.argsort(-scores, kind="stable")[:classes]
    return [f"    {scores[i]:.6f} ({i}) = {labels[i]}" for i in best]


def photo_tensors(
    preprocessing: Preprocessing = PREPROCESSING,
) -> dict[str, NDArray[np.float32]]:
    """The preprocessed sample photos by name."""
    return {p.name: preprocess(read_image(p.path), preprocessing) for p in sample_photos()}


def deploy_tiny(
    layout: Layout,
    *,
    model: str = "tiny",
    max_batch_size: int = 8,
    seed: int = 0,
    kind: str = "random",
    threads: int = 1,
) -> Manifest:
    """Install a small real model as a deploy does, leaving out only torch.

    Its reference logits are ONNX Runtime's, so it is served and judged as any other.
    """
    folder = layout.transit / f"tiny-{model}"
    folder.mkdir(parents=True, exist_ok=True)
    path = tiny_onnx(folder / "model.onnx", seed=seed)
    tensors = photo_tensors()
    references = dict(zip(tensors, logits(path, np.stack(list(tensors.values()))), strict=True))
    np.savez(folder / "reference.npz", **references)
    prepared = Prepared(
        weights={"spec": kind, "kind": kind, "value": str(seed), "sha256": "", "note": ""},
        side=SIDE,
        classes=CLASSES,
        preprocessing=PREPROCESSING.to_json(),
        verification={
            "between": ["ONNX Runtime", "ONNX Runtime"],
            "atol": 1e-3,
            "rtol": 1e-3,
            "reason": "a test",
            "cases": [],
        },
        libraries={"onnx": onnx.__version__},
    )
    engine = OnnxRuntimeEngine.choose(instances=1, threads=threads)
    repository = Repository(layout)
    with repository.exclusive(model, None):
        return install_version(
            repository,
            model,
            prepared,
            source=SOURCE,
            engine=engine,
            max_batch_size=max_batch_size,
            files={**engine.files(path), "reference.npz": folder / "reference.npz"},
            architecture="tiny",
            fingerprint=f"tiny-{seed}-{max_batch_size}",
            photos={photo.name: sha256(photo.path) for photo in sample_photos()},
        )


def own_root(folder: Path, host: Layout) -> Layout:
    """A root for what lives longer than a test; its vendor/ is the host's."""
    host.vendor.mkdir(parents=True, exist_ok=True)
    root = folder / "root"
    root.mkdir()
    (root / "vendor").symlink_to(host.vendor)
    return Layout(root)


def left_behind(layout: Layout) -> list[str]:
    """What there still is of the servers started under a root: records, processes, memory."""
    found = [f"record {record.id}" for record in server_record.records(layout)]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            variables = process.environ()
            ours = variables.get("SLIPWAY_ROOT") == str(layout.root)
            if ours and server_record.MARK in variables:
                found.append(f"process {process.pid} {process.name()}")
    logs = "".join(log.read_text(errors="replace") for log in layout.logs.glob("server-*.log"))
    prefixes = set(re.findall(r"slipway_[0-9a-f]{12}_", logs))
    found += [str(p) for p in SHARED_MEMORY.glob("slipway_*") if p.name[:21] in prefixes]
    return found


@contextlib.contextmanager
def detached(layout: Layout, *options: str) -> Iterator[tuple[Slipway, ServerRecord]]:
    """A server in the background, which is nobody's child, on free ports."""
    slipway = Slipway(layout)
    try:
        started = slipway("serve", "--detach", *FREE_PORTS, *options)
        assert started.returncode == 0, started.stderr
        record = server_record.running(layout)
        assert record
        yield slipway, record
    finally:
        slipway.end()


class Slipway:
    """The command line, run as a user runs it: in a process of its own."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._background: list[subprocess.Popen[str]] = []

    def __call__(
        self, *arguments: str | Path, env: Mapping[str, str] | None = None, timeout: float = 600
    ) -> subprocess.CompletedProcess[str]:
        """Run a job to its end."""
        return subprocess.run(
            self._command(arguments),
            cwd=REPOSITORY,
            env=self._variables(env),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def start(
        self, *arguments: str | Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a job and leave it running; it is ended with the test."""
        process = subprocess.Popen(
            self._command(arguments),
            cwd=REPOSITORY,
            env=self._variables(env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._background.append(process)
        return process

    def end(self) -> None:
        """End whatever still runs, in order."""
        for process in self._background:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            try:
                process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
        self("stop")

    @staticmethod
    def _command(arguments: tuple[str | Path, ...]) -> list[str]:
        return [sys.executable, "-m", "pipeline", *map(str, arguments)]

    def _variables(self, env: Mapping[str, str] | None) -> dict[str, str]:
        return {**os.environ, "SLIPWAY_ROOT": str(self.layout.root), **(env or {})}
