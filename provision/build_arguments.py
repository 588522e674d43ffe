"""What build.py is given: the recipe's arguments (step 2), and what differs between releases.

Described by each release's own ``build.py --help``, which the arguments are checked against:
https://github.com/triton-inference-server/server/blob/r25.08/docs/customization_guide/build.md
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from provision.build_tree import BuildTree
from provision.errors import BuildError
from provision.releases import Release

_COMPONENTS = ("common", "core", "backend", "thirdparty")


def server_arguments(
    release: Release,
    features: frozenset[str],
    tree: BuildTree,
    *,
    tensorrt: tuple[Path, Path] | None = None,
) -> list[str]:
    """The arguments of build.py, but for how many compilers run at once.

    Args:
        release: What is built.
        features: What is built in.
        tree: Where.
        tensorrt: The folders of TensorRT's headers and of its libraries.
    """
    return list(_arguments(release, features, tree, tensorrt))


def _arguments(
    release: Release,
    features: frozenset[str],
    tree: BuildTree,
    tensorrt: tuple[Path, Path] | None,
) -> Iterator[str]:
    branch = release.branch
    yield "--no-container-build"
    if "cmake_dir_required" in release.traits:
        yield f"--cmake-dir={tree.folder / 'build'}"
    yield f"--build-dir={tree.scratch}"
    yield f"--install-dir={tree.staging}"
    # Otherwise it deletes and clones every backend at every run.
    yield "--no-force-clone"
    yield from ("--enable-logging", "--enable-stats", "--enable-metrics")
    if "tracing" in features:
        yield "--enable-tracing"
    if "gpu" in features:
        yield "--enable-gpu"
    yield from (f"--endpoint={name}" for name in ("http", "grpc") if name in features)
    yield from (f"--repo-tag={name}:{branch}" for name in _COMPONENTS)
    yield "--backend=ensemble"
    yield from (f"--backend={name}:{branch}" for name in ("tensorrt", "python") if name in features)
    yield f"--repoagent=checksum:{branch}"
    if tensorrt:
        headers, libraries = tensorrt
        yield f"--extra-backend-cmake-arg=tensorrt:TRITON_TENSORRT_INCLUDE_PATHS={headers}"
        yield f"--extra-backend-cmake-arg=tensorrt:CMAKE_LIBRARY_PATH={libraries}"
    yield from release.arguments


def check(arguments: Iterable[str], described: str, release: Release) -> None:
    """Make sure that a build.py knows its arguments, before it starts to work.

    Args:
        arguments: What it would be given.
        described: What its ``--help`` says.
        release: What it belongs to.

    Raises:
        BuildError: It does not know one.
    """
    known = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", described))
    names = dict.fromkeys(argument.partition("=")[0] for argument in arguments)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BuildError(
            f"the build.py of {release.name} does not know {', '.join(unknown)}",
            cause="It is not the build.py that provision/releases.toml describes",
            fix="correct the traits there",
        )
