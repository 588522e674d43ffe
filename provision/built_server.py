"""The server that was built from source here, ready to be started."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from provision import environments
from provision.build_manifest import BuildManifest
from provision.errors import HostError
from provision.installation import ServerInstallation, keep_bytecode_out
from provision.interpreters import Interpreter
from provision.layout import Layout
from provision.releases import release


def installed_server(layout: Layout, *, python: bool = True) -> ServerInstallation:
    """The server in ``triton/server``, with the Python environment for its Python backend.

    Args:
        layout: Where.
        python: Whether it has to have that backend; plans do without.

    Raises:
        HostError: None is installed, or not with the Python backend.
    """
    folder = layout.triton / "server"
    manifest = BuildManifest.read(folder)
    if manifest is None:
        raise HostError(
            f"no server was built into {folder}", fix="build one: `nox -s build_server`"
        )
    if "python" not in manifest.features and not python:
        return built_server(folder, manifest)
    if "python" not in manifest.features:
        raise HostError(
            f"the server in {folder} has no Python backend, which serves ONNX models here",
            fix="build it in: `nox -s build_server -- --backend python`",
        )
    environment = environments.ensure(layout, "serving", _interpreter(manifest))
    keep_bytecode_out(environment.site_packages)
    return built_server(folder, manifest, environment)


def built_server(
    folder: Path, manifest: BuildManifest, environment: environments.Environment | None = None
) -> ServerInstallation:
    """The server in a folder, which its manifest describes.

    Args:
        folder: Where it is.
        manifest: What it was made from.
        environment: What its Python backend runs models in.
    """
    variables = environment.variables() if environment else dict(os.environ)
    libraries = [folder / "lib", folder / "lib64", *map(Path, manifest.libraries)]
    before = variables.get("LD_LIBRARY_PATH", "")
    variables["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [*_there(libraries), before]))
    agents = folder / "repoagents"
    return ServerInstallation(
        name=f"Triton {manifest.triton} built here",
        program=folder / "bin" / "tritonserver",
        backends=folder / "backends",
        variables=variables,
        agents=agents if agents.is_dir() else None,
        addresses="no_http_address" not in release(manifest.release).traits,
        grpc="grpc" in manifest.features,
    )


def _interpreter(manifest: BuildManifest) -> Interpreter:
    """The interpreter that the Python backend's stub is linked to."""
    library = manifest.python["libpython"]
    return Interpreter(
        executable=Path(manifest.python["executable"]),
        version=manifest.python["version"],
        libpython=Path(library) if library else None,
    )


def _there(folders: Iterable[Path]) -> list[str]:
    return [str(folder) for folder in folders if folder.is_dir()]
