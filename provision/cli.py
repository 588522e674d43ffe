"""The command line of `python3 -m provision`: one subcommand per thing done to the host.

It runs on a bare host, so what a subcommand needs beyond the standard library is imported by that
subcommand alone.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from provision import bootstrap, failures
from provision.errors import EnvironmentBuildError, HostError, UsageError
from provision.layout import REPOSITORY

PROGRAM = "python3 -m provision"


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        help: One line for the list of commands.
        main: Runs it with the arguments after its name and returns the exit code.
    """

    help: str
    main: Callable[[list[str]], int]


def nox(arguments: list[str]) -> NoReturn:
    """Become the nox of this clone, so that signals and exit codes are its own."""
    program = bootstrap.ensure_nox(REPOSITORY)
    sys.stdout.flush()
    try:
        os.execv(program, [str(program), *arguments])  # noqa: S606
    except OSError as error:
        raise EnvironmentBuildError(
            f"cannot run {program}: {error.strerror}",
            cause="The clone may be on a file system mounted noexec",
            fix=f"move the clone, or else remove {program.parent.parent}, and run it again",
        ) from error


def _module(name: str, job: str) -> Callable[[list[str]], int]:
    """The main function of a module that needs more than the standard library."""

    def main(arguments: list[str]) -> int:
        try:
            module = importlib.import_module(f"provision.{name}")
        except ModuleNotFoundError as error:
            raise HostError(
                f"{sys.executable} lacks the module {error.name}",
                cause="This job needs more than Python's standard library",
                fix=f"run `{PROGRAM} nox -s {job}`, which brings what it needs",
            ) from None
        failures.end_in_order()
        return int(module.main(arguments))

    return main


COMMANDS = {
    "nox": Command("run nox, which is installed into the clone on first use", nox),
    "doctor": Command(
        "what this host can build, what it lacks, and how to fix it", _module("doctor", "doctor")
    ),
    "install_cmake": Command(
        "the CMake of a release, into vendor/", _module("cmake", "install_cmake")
    ),
    "install_cuda": Command(
        "CUDA's compiler and libraries, into vendor/, without root", _module("cuda", "install_cuda")
    ),
    "install_tensorrt": Command(
        "TensorRT's headers and libraries, put together in vendor/",
        _module("tensorrt", "install_tensorrt"),
    ),
    "fetch_sources": Command(
        "everything that a build downloads, pinned, into transit/mirror",
        _module("fetch_sources", "fetch_sources"),
    ),
    "build_server": Command(
        "the Triton server from source, into triton/server",
        _module("build_server", "build_server"),
    ),
    "build_client": Command(
        "the client libraries and the wheel from source, into triton/client",
        _module("build_client", "build_client"),
    ),
    "update_releases": Command(
        "resolve the branches and tags of releases to commits",
        _module("update_releases", "update_releases"),
    ),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, fix=f"see `{self.prog} --help`")


def parser() -> argparse.ArgumentParser:
    """The parser for the name of the command; each command parses its own arguments."""
    top = _Parser(
        prog=PROGRAM,
        description="Prepare this host to serve a model with NVIDIA Triton.",
        epilog=f"example: {PROGRAM} nox -s smoke",
    )
    names = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        names.add_parser(name, help=command.help, add_help=False)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run the command that the arguments name."""
    if arguments is None:
        arguments = sys.argv[1:]
    if not arguments or arguments[0] not in COMMANDS:
        parser().parse_args(arguments[:1])
        return 0
    # Not through argparse: it would take some of nox's options for its own.
    return COMMANDS[arguments[0]].main(arguments[1:])
