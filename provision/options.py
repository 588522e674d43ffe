"""What of Triton is built in: chosen by the user, bounded by the release, said where it differs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from provision.choice import AUTO
from provision.releases import Release

BACKENDS = ("python",)
"""The backends that may be asked for beside those of the recipe."""


@dataclass(frozen=True)
class ServerOptions:
    """What of the server is built; the defaults are the recipe's (step 2).

    Attributes:
        gpu: Whether for a GPU: with CUDA, and the TensorRT backend.
        grpc: Whether it has the gRPC endpoint, beside the HTTP one.
        tracing: Whether it can trace requests.
        backends: Backends beside the recipe's.
    """

    gpu: bool = True
    grpc: bool = True
    tracing: bool = True
    backends: tuple[str, ...] = ()


@dataclass(frozen=True)
class How:
    """How to build, whatever is built.

    Attributes:
        mirror: Another mirror to take the sources from.
        jobs: How many compilers at once; None for as many as cores and memory allow.
        ccache: Whether to use ccache, where it is there.
        clean: Whether to begin with an empty tree in any case.
    """

    mirror: str | None = None
    jobs: int | None = None
    ccache: bool = True
    clean: bool = False


def add_release(parser: argparse.ArgumentParser) -> None:
    """Let a job be told which release."""
    parser.add_argument(
        "--release",
        default=AUTO,
        metavar="R",
        help="such as 22.01 or 2.60.0 (default: the newest that this host can build)",
    )


def add_mirror(parser: argparse.ArgumentParser) -> None:
    """Let a job be told where to take sources from."""
    parser.add_argument(
        "--mirror",
        metavar="DIR_OR_URL",
        help="take every source from a mirror, in which https://HOST/PATH is HOST/PATH (such as a "
        "copy of another host's transit/mirror), instead of from its own address",
    )


def add_server(parser: argparse.ArgumentParser) -> None:
    """Let a job be told what of the server."""
    parser.add_argument(
        "--backend",
        action="append",
        default=[],
        choices=BACKENDS,
        dest="backends",
        help="a backend beside ensemble and tensorrt; may be given several times",
    )
    parser.add_argument(
        "--http-only", dest="grpc", action="store_false", help="without the gRPC endpoint"
    )
    parser.add_argument(
        "--no-gpu", dest="gpu", action="store_false", help="without CUDA and the TensorRT backend"
    )
    parser.add_argument(
        "--no-tracing", dest="tracing", action="store_false", help="without request tracing"
    )


def add_compiling(parser: argparse.ArgumentParser) -> None:
    """Let a job be told how to compile."""
    parser.add_argument(
        "--jobs",
        type=_positive,
        metavar="N",
        help="how many compilers at once (default: one a core, if there are 2 GB for each)",
    )
    parser.add_argument(
        "--no-ccache",
        dest="ccache",
        action="store_false",
        help="compile everything, even where ccache has it",
    )
    parser.add_argument(
        "--clean", action="store_true", help="begin with an empty build tree in any case"
    )


def _positive(text: str) -> int:
    number = int(text) if text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number


def how(options: argparse.Namespace) -> How:
    """How the command line says to build."""
    return How(options.mirror, options.jobs, options.ccache, options.clean)


def server(options: argparse.Namespace) -> ServerOptions:
    """What the command line says."""
    return ServerOptions(
        options.gpu, options.grpc, options.tracing, tuple(dict.fromkeys(options.backends))
    )


def has_tracing(release: Release, options: ServerOptions) -> bool:
    """Whether a build has tracing."""
    return options.tracing and (options.grpc or "tracing_needs_grpc" not in release.traits)


def server_features(release: Release, options: ServerOptions) -> frozenset[str]:
    """The features of a build, as ``releases.toml`` and ``troubles.toml`` name them."""

    def chosen() -> Iterator[str]:
        yield from ("server", "http", "metrics", "checksum", "ensemble", *options.backends)
        if options.gpu:
            yield from ("gpu", "tensorrt")
        if options.grpc:
            yield "grpc"
        if has_tracing(release, options):
            yield "tracing"

    return frozenset(chosen())


def remarks(release: Release, options: ServerOptions) -> Iterator[str]:
    """What a build leaves out although nobody said so."""
    if not options.gpu:
        yield "without a GPU there is no TensorRT backend"
    if options.tracing and not has_tracing(release, options):
        yield f"without gRPC there is no tracing: {release.traits['tracing_needs_grpc'].reason}"
