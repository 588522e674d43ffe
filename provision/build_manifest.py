"""What was built, from what, and how: written beside it, with a bill of materials in CycloneDX.

https://cyclonedx.org/docs/1.5/json/
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

from provision.files import sha256, write_atomically
from provision.mirror import Pin
from provision.releases import Source

NAME = "slipway.json"
BILL = "sbom.cdx.json"


@dataclass(frozen=True)
class BuildManifest:
    """What is installed in a folder.

    Attributes:
        what: "server" or "client".
        release: The NGC tag.
        triton: Its version.
        features: What is built in.
        stamp: The SHA-256 of everything that decided what came out.
        commits: The commit of each repository.
        arguments: What the build was given.
        tools: The versions of the tools.
        troubles: The known troubles that something was injected against.
        python: The interpreter that the Python backend is linked to, or that wheels are for.
        libraries: The folders that the loader has to look into, beside the system's.
        proof: What it said when it was tried.
        created: When, in UTC.
        seconds: How long the build took, the last run of it.
        files: The SHA-256 of each installed file, by its path.
    """

    what: str
    release: str
    triton: str
    features: tuple[str, ...]
    stamp: str
    commits: Mapping[str, str]
    arguments: tuple[str, ...]
    tools: Mapping[str, str]
    troubles: Mapping[str, str]
    python: Mapping[str, str]
    libraries: tuple[str, ...]
    proof: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    seconds: float = 0.0
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def tensorrt(self) -> str:
        """The TensorRT that its backend was built with; empty where it has none."""
        return self.tools.get("tensorrt", "") if "tensorrt" in self.features else ""

    def write(self, folder: Path) -> None:
        """Write it into the folder that it tells of."""
        write_atomically(folder / NAME, json.dumps(asdict(self), indent=2))

    @classmethod
    def read(cls, folder: Path) -> BuildManifest | None:
        """The manifest of what is installed in a folder; None where there is none."""
        try:
            data = json.loads((folder / NAME).read_text())
        except (OSError, ValueError):
            return None
        try:
            for name in ("features", "arguments", "libraries"):
                data[name] = tuple(data[name])
            return cls(**data)
        except (TypeError, KeyError):
            return None

    def altered(self, folder: Path) -> list[str]:
        """The installed files that are not what was installed, or are not there."""
        return [
            name
            for name, expected in self.files.items()
            if not (folder / name).is_file() or sha256(folder / name) != expected
        ]


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file below a folder, links and our own notes aside."""
    return {
        str(path.relative_to(folder)): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.name not in {NAME, BILL}
    }


def write_bill(
    folder: Path, manifest: BuildManifest, commits: Mapping[Pin, str], archives: Iterable[Source]
) -> None:
    """Write the bill of materials: every repository and archive that went in."""
    bom = Bom()
    bom.metadata.component = Component(
        name=f"triton-{manifest.what}",
        version=manifest.triton,
        type=ComponentType.APPLICATION,
        bom_ref=f"triton-{manifest.what}",
    )
    for pin, commit in sorted(commits.items(), key=lambda item: (item[0].url, item[1])):
        bom.components.add(_repository(pin, commit))
    for archive in archives:
        bom.components.add(_archive(archive))
    bom.register_dependency(bom.metadata.component, bom.components)
    outputter = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_5)
    write_atomically(folder / BILL, outputter.output_as_string(indent=2))


def _repository(pin: Pin, commit: str) -> Component:
    owner, name = pin.url.removesuffix(".git").split("/")[-2:]
    on_github = "://github.com/" in pin.url
    return Component(
        name=name,
        group=owner,
        version=commit,
        type=ComponentType.LIBRARY,
        bom_ref=f"{owner}/{name}@{commit}",
        purl=PackageURL("github", owner, name, commit) if on_github else None,
        external_references=[
            ExternalReference(type=ExternalReferenceType.VCS, url=XsUri(pin.url)),
        ],
    )


def _archive(archive: Source) -> Component:
    return Component(
        name=archive.name,
        type=ComponentType.LIBRARY,
        bom_ref=archive.url,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=archive.sha256)],
        external_references=[
            ExternalReference(type=ExternalReferenceType.DISTRIBUTION, url=XsUri(archive.url)),
        ],
    )
