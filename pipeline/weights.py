"""Where a model's weights come from: torchvision, a state-dict file, or a seed.

Parsing runs anywhere; :func:`load` runs in the export environment.
"""

from __future__ import annotations

import http.client
import os
import re
import socket
import urllib.error
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provision.errors import DownloadError, UsageError, WeightsError, storage_error
from provision.files import sha256

Array = NDArray[np.float32]
MIRROR_VARIABLE = "SLIPWAY_WEIGHTS_MIRROR"
_NETWORK_TIMEOUT_SECONDS = 30
_LOGIT_SPREAD = 0.5


@dataclass(frozen=True)
class WeightsSpec:
    """What was asked for with ``--weights``.

    Attributes:
        kind: "pretrained", "file", "random" or "auto".
        value: The torchvision name, the absolute path, or the seed.
    """

    kind: str
    value: str

    @classmethod
    def parse(cls, text: str) -> WeightsSpec:
        """Read ``NAME``, ``FILE``, ``random``, ``random:SEED`` or ``auto``.

        Raises:
            UsageError: It is none of these.
            WeightsError: It is a file that is not there.
        """
        if text == "auto":
            return cls("auto", "IMAGENET1K_V1")
        # More digits than that are no seed of torch's, which has 64 bits.
        if random := re.fullmatch(r"random(?::([0-9]{1,19}))?", text):
            return cls("random", str(int(random[1] or 0)))
        path = Path(text)
        try:
            path = path.expanduser()
            found = path.is_file()
        except (OSError, RuntimeError, ValueError):  # too long, say, or of a user who is not there
            found = False
        if found and not os.access(path, os.R_OK):
            raise WeightsError(f"{path} cannot be read", fix=f"make it readable: `chmod +r {path}`")
        if found:
            return cls("file", str(path.resolve()))
        if re.fullmatch(r"[A-Z][A-Z0-9_]*", text):
            return cls("pretrained", text)
        if path.suffix or "/" in text:
            raise WeightsError(
                f"there is no weights file {text}",
                fix="check the path, or give a torchvision weights name or `random`",
            )
        raise UsageError(
            f"'{text}' names no weights",
            fix="give a torchvision weights name (IMAGENET1K_V1), a state-dict file, "
            "`random` or `random:SEED`",
        )

    def to_json(self) -> dict[str, Any]:
        """The request as plain data; a file is known by its content."""
        data: dict[str, Any] = asdict(self)
        if self.kind == "file":
            data["sha256"] = sha256(Path(self.value))
        return data

    def __str__(self) -> str:
        return {"random": f"random:{self.value}", "auto": "auto"}.get(self.kind, self.value)


@dataclass(frozen=True)
class LoadedWeights:
    """What a model was given.

    Attributes:
        kind: "pretrained", "file" or "random".
        value: As in :class:`WeightsSpec`.
        sha256: Of the file they were read from; empty for random ones.
        note: What a user must know about them; empty where there is nothing to say.
    """

    kind: str
    value: str
    sha256: str
    note: str


def load(
    name: str, spec: WeightsSpec, *, calibration: Array, progress: Callable[[str], None]
) -> tuple[Any, LoadedWeights]:
    """Build a torchvision classifier with its weights, in evaluation mode, fp32, on the CPU.

    Args:
        name: A name from :mod:`pipeline.classifiers`.
        spec: Which weights.
        calibration: Inputs such as will be served, to give random weights their scale; fp32,
            [batch, 3, side, side].
        progress: Told what is being done.

    Raises:
        DownloadError: They cannot be downloaded; the message names the other two ways.
        WeightsError: They are damaged or do not fit the model.
    """
    if spec.kind == "file":
        return _from_file(name, Path(spec.value))
    if spec.kind == "random":
        return _random(name, int(spec.value), calibration, note="")
    try:
        return _pretrained(name, spec.value, progress)
    except DownloadError as error:
        if spec.kind != "auto":
            raise
        note = f"the pretrained weights cannot be had ({error.what})"
        return _random(name, 0, calibration, note=note)


def _build(name: str, **options: Any) -> Any:
    from torchvision.models import get_model

    if name in {"googlenet", "inception_v3"}:
        # Their pretrained weights expect another normalization than the preset's; torchvision
        # puts the difference into the model, and only when it loads the weights itself.
        options.setdefault("transform_input", True)
        if options.get("weights") is None:
            options["init_weights"] = True
    return get_model(name, **options).eval()


def _pretrained(
    name: str, value: str, progress: Callable[[str], None]
) -> tuple[Any, LoadedWeights]:
    from torchvision.models import get_model_weights

    known = get_model_weights(name)
    if value not in known.__members__:
        raise WeightsError(
            f"torchvision has no weights {value} for {name}",
            fix=f"choose one of {', '.join(known.__members__)}, a state-dict file, or `random`",
        )
    weights = known[value]
    file = _download(weights.url, progress)
    # Torchvision pins 32 bits of a hash and unpickles without restraint; this reads with it first.
    _read_state(file, fix=f"delete it (`rm {file}`) and run the same command again")
    # Verified and in torch's cache by now, so torchvision reads it from there.
    return _build(name, weights=weights), LoadedWeights("pretrained", value, sha256(file), "")


def _download(url: str, progress: Callable[[str], None]) -> Path:
    """The weights in torch's own cache, downloaded where missing; their hash is checked."""
    import torch

    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    prefix = re.search(r"-([0-9a-f]{8,})\.", file.name)
    pinned = prefix[1] if prefix else ""
    if not file.is_file():
        mirror = os.environ.get(MIRROR_VARIABLE)
        source = f"{mirror.rstrip('/')}/{file.name}" if mirror else url
        if not source.startswith(("http://", "https://", "file://")):
            raise UsageError(
                f"{MIRROR_VARIABLE} is no address: {mirror}", fix="set it as in http://HOST/FOLDER"
            )
        progress(f"downloading {source}")
        file.parent.mkdir(parents=True, exist_ok=True)
        socket.setdefaulttimeout(_NETWORK_TIMEOUT_SECONDS)
        fix = (
            "use weights that are on this host: `--weights FILE` (a state dict), or "
            "`--weights random` to try the rest; or set "
            f"{MIRROR_VARIABLE} to a server that has {file.name}"
        )
        try:
            torch.hub.download_url_to_file(source, str(file), pinned, progress=False)
        except urllib.error.HTTPError as error:
            raise DownloadError(f"{source} answers {error.code} {error.reason}", fix=fix) from None
        except RuntimeError as error:  # torch's word for a wrong hash
            raise DownloadError(f"{source} is not the pinned file: {error}", fix=fix) from None
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and (storage := storage_error(error, file)):
                storage.fix = "make room there, or set TORCH_HOME to a folder of yours that has it"
                raise storage from None
            reason = getattr(error, "reason", "") or error
            raise DownloadError(f"{source} cannot be had: {reason}", fix=fix) from None
    if not sha256(file).startswith(pinned):
        raise WeightsError(
            f"{file} is damaged: its SHA-256 does not start with {pinned}",
            fix=f"delete it (`rm {file}`) and run the same command again",
        )
    return file


def _read_state(path: Path, *, fix: str) -> dict[str, Any]:
    """A state dict from a file, without running anything that is in it."""
    import torch

    try:
        # weights_only: unpickling anything else would run code from the file.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - unpickling fails in as many ways as there are files
        raise WeightsError(
            f"{path} cannot be read as a state dict", cause=_why_unreadable(error), fix=fix
        ) from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and torch.is_tensor(value) for name, value in state.items()
    ):
        raise WeightsError(f"{path} holds no state dict", cause="not a dict of tensors", fix=fix)
    return state


def _from_file(name: str, path: Path) -> tuple[Any, LoadedWeights]:
    import torch

    fix = f"give a state dict of torchvision's {name}, as `torch.save(model.state_dict(), FILE)`"
    state = _read_state(path, fix=fix)
    model = _build(name, weights=None)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise WeightsError(f"{path} does not fit {name}", cause=lines[0][:300], fix=fix) from None
    if not all(bool(torch.isfinite(v).all()) for v in state.values() if v.is_floating_point()):
        raise WeightsError(f"{path} holds values that are not finite", fix=fix)
    return model.float(), LoadedWeights("file", str(path), sha256(path), "")


def _why_unreadable(error: Exception) -> str:
    """Torch's reason, without its advice to read the file in a way that runs what is in it."""
    said = str(error).strip()
    if "weights_only" in said:
        return "it is damaged, or holds more than tensors, which is refused as it could run code"
    return said.splitlines()[0].split(". ")[0][:300] if said else "it is empty"


def _random(name: str, seed: int, calibration: Array, *, note: str) -> tuple[Any, LoadedWeights]:
    """Seeded weights whose logits can be told apart.

    As torchvision initializes them, many networks answer next to nothing (a vision transformer's
    head is all zeros, an EfficientNet's logits are 1e-20) or overflow, and a comparison of such
    outputs proves nothing. One pass over the calibration images gives the batch norms their
    statistics, and the last layer is centred and scaled so that the logits spread by about 0.5.
    """
    import torch

    torch.manual_seed(seed)
    model = _build(name, weights=None)
    images = torch.from_numpy(calibration)
    last = [m for m in model.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))][-1]
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]  # noqa: SLF001 - torch exports no common public base
    with torch.no_grad():
        if not bool(last.weight.any()):
            torch.nn.init.normal_(last.weight, std=0.02)
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative: one pass is the statistic
            norm.train()
        model(images)
        model.eval()
        if isinstance(last, torch.nn.Linear) and last.bias is not None:
            # Otherwise what all images have in common outweighs what tells them apart.
            last.bias.sub_(model(images).mean(dim=0))
        factor = _LOGIT_SPREAD / float(model(images).std(dim=1).mean())
        last.weight.mul_(factor)
        if last.bias is not None:
            last.bias.mul_(factor)
    said = "random weights: the labels mean nothing" + (f"; {note}" if note else "")
    return model, LoadedWeights("random", str(seed), "", said)
