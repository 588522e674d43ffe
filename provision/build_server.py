"""`build_server`: Triton from source, without a container, into ``triton/server`` (recipe step 2).

In this order: choose a release that this host can build, bring its sources into the mirror, ready a
build tree, run the release's own build.py there, try what it installed, and only then put that in
the place of what was there.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from provision import build_arguments, build_tree
from provision.build_checks import check_root, examine, only_build
from provision.build_job import Build, prepare
from provision.build_manifest import BuildManifest
from provision.built_server import built_server
from provision.console import say
from provision.errors import UsageError
from provision.layout import Layout
from provision.options import (
    How,
    ServerOptions,
    add_compiling,
    add_mirror,
    add_release,
    add_server,
    how,
    remarks,
    server,
    server_features,
)
from provision.reading import output
from provision.trial import try_out

# The repositories that build.py clones into its build folder, by the name that it gives each.
_CLONES = {
    "tensorrt": "tensorrt_backend",
    "python": "python_backend",
    "checksum": "checksum_repository_agent",
}


def build_server(layout: Layout, release: str, options: ServerOptions, how: How) -> BuildManifest:
    """Build, try and install the server, unless the very same is installed.

    Raises:
        HostError: The host lacks something.
        DownloadError: A source cannot be had.
        BusyError: Another build is at work under this root.
        BuildError: The build failed, or what it built is not right; what was installed stays.
    """
    check_root(layout)
    with only_build(layout, "the server"):
        needs = ("server", "tensorrt") if options.gpu else ("server",)
        found = examine(layout, release, gpu=options.gpu, needs=needs)
        chosen = found.choice.release
        for remark in remarks(chosen, options):
            say(f"- {remark}")
        features = server_features(chosen, options)
        return prepare(ServerBuild, layout, found, features, how).run(clean=how.clean)


class ServerBuild(Build):
    """A build of the server."""

    what = "server"

    def arguments(self) -> Sequence[str]:
        """The recipe's, and what this release wants besides."""
        return build_arguments.server_arguments(
            self.plan.release, self.plan.features, self.tree, tensorrt=self._tensorrt()
        )

    def cmake_variables(self) -> Mapping[str, str | Path]:
        """The host's Boost, for the Python backend."""
        folder = self.host.boost_folder
        return {"SLIPWAY_BOOST": folder} if folder and "boost" in self.plan.tools else {}

    def libraries(self) -> Sequence[Path]:
        """Python's, TensorRT's and CUDA's folders."""
        folders = []
        python, gpu = self.plan.python, self.host.gpu
        if "python" in self.plan.features and python.libpython:
            folders.append(python.libpython.parent)
        if "tensorrt" in self.plan.features and gpu.tensorrt_libraries:
            folders.append(gpu.tensorrt_libraries.path.parent)
        if "gpu" in self.plan.features and gpu.cuda:
            folders += [gpu.cuda.root / "lib64", gpu.cuda.root / "extras" / "CUPTI" / "lib64"]
        return folders

    def fill(self) -> None:
        """Clone what build.py would clone, once and as a whole."""
        for name, repository in _CLONES.items():
            if name in self.plan.features:
                pin = self.component(repository)
                build_tree.clone(pin, self.tree.scratch / name, self.variables)

    def compile(self) -> None:
        """Run build.py, once it is known to take its arguments."""
        python = self.tools.python.environment.python
        described = output(python, str(self.tree.folder / "build.py"), "--help", complaints=True)
        arguments = [*self.arguments(), f"--build-parallel={self.jobs}"]
        build_arguments.check(arguments, described, self.plan.release)
        self.execute([python, "build.py", *arguments], f"Build Triton {self.plan.release.triton}")

    def prove(self, manifest: BuildManifest) -> Mapping[str, Any]:
        """Ask it for its options, check its libraries, start it."""
        log = self.layout.logs / f"try-server-{self.plan.release.name}.log"
        server = built_server(self.tree.staging, manifest)
        return asdict(try_out(server, version=self.plan.release.triton, log=log))

    def _tensorrt(self) -> tuple[Path, Path] | None:
        """The folders of TensorRT's headers and libraries, for a build that needs them."""
        headers, libraries = self.host.gpu.tensorrt_headers, self.host.gpu.tensorrt_libraries
        if "tensorrt" not in self.plan.features or headers is None or libraries is None:
            return None
        return headers.path, libraries.path.parent


def main(arguments: list[str]) -> int:
    """`python -m provision build_server`."""
    options = _parser().parse_args(arguments)
    if options.tensorrt_root:
        root = options.tensorrt_root.expanduser().absolute()
        if not root.is_dir():
            raise UsageError(f"there is no folder {root}", fix="give the folder of TensorRT")
        os.environ["TENSORRT_ROOT"] = str(root)
    build_server(Layout.from_environment(), options.release, server(options), how(options))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m provision build_server",
        description="Build Triton from source, without a container, and install it into "
        "triton/server. By default it is the recipe's server: HTTP and gRPC, statistics, metrics, "
        "tracing, ensembles, TensorRT, checksums. An interrupted build is gone on with; what was "
        "installed stays until what was built has been tried.",
    )
    add_release(parser)
    add_mirror(parser)
    add_server(parser)
    add_compiling(parser)
    parser.add_argument(
        "--tensorrt-root",
        type=Path,
        metavar="DIR",
        help="the folder of TensorRT, with include/ and lib/ (default: TENSORRT_ROOT, else the "
        "system's)",
    )
    return parser
