"""What needs torch to be found out, in one process where torch is, since importing it takes long.

Usage: python torch_facts.py FOLDER WEIGHTS_SERVER. The folder gets ``facts.json``: what each case
of the tests in ``test_export.py`` came to, an error as ``SlipwayError.to_json`` writes it.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torchvision

from pipeline import weights
from pipeline.export import export_onnx
from pipeline.verify import Tolerance, verify_onnx
from pipeline.weights import WeightsSpec
from provision.errors import SlipwayError

MODEL = "squeezenet1_1"
CALIBRATION = np.random.default_rng(0).standard_normal((2, 3, 64, 64), np.float32)


class Evil:
    """A pickle of it runs a program when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.trace}'",)


def tried(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a function returns, or the failure it ends in."""
    try:
        return function(*arguments, **options)
    except SlipwayError as error:
        return error.to_json()


def load(kind: str, value: str, name: str = MODEL) -> dict[str, Any]:
    """Load weights, and tell what came of them."""
    model, loaded = weights.load(
        name, WeightsSpec(kind, value), calibration=CALIBRATION, progress=lambda _: None
    )
    with torch.no_grad():
        logits = model(torch.from_numpy(CALIBRATION))
    return {
        "kind": loaded.kind,
        "value": loaded.value,
        "sha256": loaded.sha256,
        "note": loaded.note,
        "dtypes": sorted({str(v.dtype) for v in model.state_dict().values()}),
        "training": model.training,
        "spread": float(logits.std(dim=1).mean()) / weights._LOGIT_SPREAD,
        "some": logits[0, :3].tolist(),
    }


def weight_files(folder: Path) -> dict[str, Any]:
    """Files that hold weights, and files that do not."""
    model, _ = weights.load(
        MODEL, WeightsSpec("random", "1"), calibration=CALIBRATION, progress=lambda _: None
    )
    state = model.state_dict()
    first = next(iter(state))
    contents = {
        "good": state,
        "half": {name: value.half() for name, value in state.items()},
        "nested": {"state_dict": state},
        "a list": [1, 2],
        "numbers": dict(enumerate(state.values())),
        "a whole model": model,
        "not finite": {**state, first: torch.full_like(state[first], float("nan"))},
        "one missing": {name: value for name, value in state.items() if name != first},
        "another's": torchvision.models.squeezenet1_0().state_dict(),
    }
    for name, content in contents.items():
        torch.save(content, folder / f"{name}.pth")
    good = (folder / "good.pth").read_bytes()
    (folder / "empty.pth").touch()
    (folder / "text.pth").write_text("no weights\n" * 100)
    (folder / "truncated.pth").write_bytes(good[: len(good) // 2])
    flipped = bytearray(good)
    flipped[:2000] = bytes(2000)
    (folder / "flipped.pth").write_bytes(flipped)
    torch.save({"evil": Evil(folder / "executed")}, folder / "evil.pth")
    with (folder / "evil pickle.pth").open("wb") as file:
        pickle.dump(Evil(folder / "executed"), file)
    return {path.stem: tried(load, "file", str(path)) for path in folder.glob("*.pth")}


def downloads(folder: Path, server: str, refused: str) -> dict[str, Any]:
    """Pretrained weights from servers that do not give them."""
    torch.hub.set_dir(str(folder))
    cache = folder / "checkpoints"
    results = {}
    mirrors = {name: f"{server}/{name}" for name in ("missing", "wrong", "short", "garbage")}
    mirrors |= {"refused": refused, "no address": "nonsense"}
    for name, mirror in mirrors.items():
        os.environ[weights.MIRROR_VARIABLE] = mirror
        results[name] = tried(load, "pretrained", "IMAGENET1K_V1")
    results["left in the cache"] = sorted(path.name for path in cache.iterdir())
    weights._NETWORK_TIMEOUT_SECONDS = 1  # what is 30 for users
    os.environ[weights.MIRROR_VARIABLE] = f"{server}/hang"
    results["hang"] = tried(load, "pretrained", "IMAGENET1K_V1")
    os.environ[weights.MIRROR_VARIABLE] = refused
    results["auto"] = tried(load, "auto", "IMAGENET1K_V1")
    results["unknown"] = tried(load, "pretrained", "IMAGENET1K_V9")
    results["left in the cache"] += sorted(path.name for path in cache.iterdir())
    name = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[-1]
    (cache / name).write_bytes(b"damaged")
    results["damaged cache"] = tried(load, "pretrained", "IMAGENET1K_V1")
    return results


def verification(folder: Path) -> dict[str, Any]:
    """An export that is right, and the same with one number of one weight changed."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 30 * 30, 10)
    ).eval()
    path = folder / "model.onnx"
    export_onnx(model, path, crop=32)
    rng = np.random.default_rng(0)
    inputs = [(f"batch {n}", 5 * rng.standard_normal((n, 3, 32, 32), np.float32)) for n in (1, 3)]
    cases, references = verify_onnx(model, path, inputs, Tolerance.of("fp32"))
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    served = [session.run(["output"], {"input": image})[0] for _, image in inputs]
    wrong = onnx.load(path)
    bias = next(tensor for tensor in wrong.graph.initializer if list(tensor.dims) == [10])
    values = onnx.numpy_helper.to_array(bias).copy()
    values[7] += 0.5
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(wrong, folder / "wrong.onnx")
    return {
        "cases": [case.to_json() for case in cases],
        "shapes": [list(reference.shape) for reference in references],
        "largest": [float(np.abs(a - b).max()) for a, b in zip(served, references, strict=True)],
        "interface": [value.name for value in (*session.get_inputs(), *session.get_outputs())],
        "files": sorted(path.name for path in folder.iterdir()),
        "wrong": tried(verify_onnx, model, folder / "wrong.onnx", inputs, Tolerance.of("fp32")),
    }


def exports(folder: Path) -> dict[str, Any]:
    """What is no classifier cannot be exported as one."""
    fixed = torch.nn.Sequential(torch.nn.Flatten(0), torch.nn.Linear(2 * 3 * 8 * 8, 4)).eval()

    class Branching(torch.nn.Module):  # type: ignore[misc] # torch has no types here
        """Does one thing or the other, as its input says."""

        def forward(self, image: Any) -> Any:
            return image.flatten(1) if image.sum() > 0 else -image.flatten(1)

    return {
        name: tried(export_onnx, model, folder / "no.onnx", crop=8)
        for name, model in (("fixed", fixed), ("branching", Branching().eval()))
    }


def main(folder: Path, server: str, refused: str) -> None:
    """Find out everything."""
    facts = {
        "names": torchvision.models.list_models(module=torchvision.models),
        "labels": torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"],
        "seeds": {seed: load("random", seed) for seed in ("0", "1", "2", str(10**19 - 1))},
        "again": load("random", "1"),
    }
    for part in (weight_files, verification, exports):
        place = folder / part.__name__
        place.mkdir()
        facts[part.__name__] = part(place)
    facts["downloads"] = downloads(folder / "hub", server, refused)
    (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    sys.stdout = io.StringIO()  # the exporter is chatty
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
