"""The record beside a deployed version: what it is, what it was made from, how it was checked."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from provision.errors import RepositoryError
from provision.files import sha256

SCHEMA = 1


@dataclass(frozen=True)
class Manifest:
    """Everything known about one deployed version.

    Attributes:
        model: Its name in the repository.
        version: Its version there.
        architecture: The torchvision model.
        fingerprint: A hash over all that went in; equal fingerprints need no second deploy.
        created: When, ISO 8601, UTC.
        engine: Name, reason, backend, precision, instances, threads.
        weights: The request, its kind, SHA-256 and a note for the user.
        max_batch_size: As configured; 0 means no batch dimension.
        side: The side of the square input, in pixels.
        classes: The number of logits.
        preprocessing: What an image goes through before it is the input.
        verification: Runners, tolerance with its reason, one entry a case.
        libraries: Version by name, of the environment that exported.
        photos: SHA-256 of each sample photo that has reference logits, by name.
        files: Size in bytes and SHA-256 by path below the model's folder.
    """

    model: str
    version: int
    architecture: str
    fingerprint: str
    created: str
    engine: dict[str, Any]
    weights: dict[str, Any]
    max_batch_size: int
    side: int
    classes: int
    preprocessing: dict[str, Any]
    verification: dict[str, Any]
    libraries: dict[str, str]
    photos: dict[str, str]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def pretrained(self) -> bool:
        """Whether the weights are torchvision's own, so that labels can be expected."""
        return bool(self.weights["kind"] == "pretrained")

    @property
    def redeploy(self) -> str:
        """The command that deploys the same again."""
        words = ["nox -s deploy --", self.architecture, "--weights", self.weights["spec"]]
        if self.model != self.architecture:
            words += ["--name", self.model]
        words += ["--max-batch-size", str(self.max_batch_size)]
        if self.engine.get("name") == "tensorrt":
            words += ["--engine tensorrt --precision", self.engine["precision"]]
        words.append("--force")
        return " ".join(words)

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain data."""
        return asdict(self)

    def to_text(self) -> str:
        """The manifest as it is written."""
        return json.dumps(self.to_json(), indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest.

        Raises:
            RepositoryError: There is none, or it is of another schema.
        """
        fix = "deploy the model again with `--force`"
        try:
            data = json.loads(path.read_text())
            schema = data["schema"]
            if schema == SCHEMA:
                return cls(**data)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RepositoryError(f"{path} cannot be read: {error}", fix=fix) from None
        raise RepositoryError(f"{path} is of schema {schema}, not {SCHEMA}", fix=fix)


def describe(folder: Path, paths: list[Path]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of files, by their path below `folder`."""
    return {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(paths)
    }


def damaged(manifest: Manifest, folder: Path) -> list[str]:
    """The files that are missing or not what the manifest says, by path below `folder`."""
    return [
        name
        for name, facts in manifest.files.items()
        if not (folder / name).is_file()
        or (folder / name).stat().st_size != facts["size"]
        or sha256(folder / name) != facts["sha256"]
    ]
