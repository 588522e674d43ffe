"""Install a prepared model as the next version: configuration, labels, files, manifest."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import deployed_config, read_config, read_labels, to_text
from pipeline.engines import Engine
from pipeline.manifest import Manifest, describe
from pipeline.repository import Repository, add_file, add_files
from provision.errors import ConfigError


@dataclass(frozen=True)
class Prepared:
    """What :mod:`pipeline.prepare` found out about a model; the attributes are the manifest's."""

    weights: dict[str, Any]
    side: int
    classes: int
    preprocessing: dict[str, Any]
    verification: dict[str, Any]
    libraries: dict[str, str]


def install_version(
    repository: Repository,
    model: str,
    prepared: Prepared,
    *,
    source: Path,
    engine: Engine,
    max_batch_size: int,
    files: Mapping[str, Path],
    architecture: str,
    fingerprint: str,
    photos: dict[str, str],
) -> Manifest:
    """Stage a version beside the live model, with its manifest, and swap it in.

    Args:
        repository: Where to; the caller holds :meth:`Repository.exclusive`.
        model: The model's name there.
        prepared: What was found out about it.
        source: The folder of its readable ``config.pbtxt`` and ``labels.txt``; one of another
            name lends its form.
        engine: What will run it.
        max_batch_size: The largest batch of a request; 0 for no batch dimension.
        files: What goes into the version folder: name there, file here.
        architecture: The torchvision model.
        fingerprint: A hash over all that went in.
        photos: SHA-256 of each sample photo with reference logits, by name.

    Raises:
        ConfigError: The sources do not fit the model.
    """
    config = deployed_config(
        read_config(source / "config.pbtxt"),
        name=model,
        side=prepared.side,
        classes=prepared.classes,
        max_batch_size=max_batch_size,
        engine=engine,
        own_source=source.name in {model, architecture},
    )
    label_file = config.output[0].label_filename
    if not label_file:
        raise ConfigError(
            f"the configuration of {model} names no label file",
            fix=f'add label_filename: "labels.txt" to the output in {source}/config.pbtxt',
        )
    labels = read_labels(source / label_file, classes=prepared.classes)
    version = (repository.versions(model) or [0])[-1] + 1
    staged = repository.stage(model)
    try:
        written = add_files(
            staged,
            {
                **{f"{version}/{name}": file for name, file in files.items()},
                "config.pbtxt": to_text(config),
                label_file: "".join(f"{label}\n" for label in labels),
            },
        )
        manifest = Manifest(
            model=model,
            version=version,
            architecture=architecture,
            fingerprint=fingerprint,
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            engine=engine.to_json(),
            weights=prepared.weights,
            max_batch_size=max_batch_size,
            side=prepared.side,
            classes=prepared.classes,
            preprocessing=prepared.preprocessing,
            verification=prepared.verification,
            libraries=prepared.libraries,
            photos=photos,
            files=describe(staged, written),
        )
        add_file(staged, repository.manifest_path(model, version).name, manifest.to_text())
        repository.install(model, staged)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return manifest
