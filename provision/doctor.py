"""`doctor`: what this host can build, what it lacks, and the fix for each thing that it lacks.

Facts are read, rows are derived from them, and operations from the rows; only :func:`main` runs
any, and only with ``--install``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from provision import releases
from provision.choice import AUTO, Choice, choose
from provision.console import console, say
from provision.errors import HostError
from provision.host import Host, read_host
from provision.layout import Layout
from provision.requirements import Row, check

_STYLES = {"ok": "green", "note": "yellow", "missing": "red", "wrong": "bold red"}
_WIDTH = 160  # where there is no terminal, which would have one
_MARKS = {"ok": "✓", "note": "!", "missing": "✗", "wrong": "✗"}


@dataclass(frozen=True)
class Operation:
    """A command that changes the host."""

    command: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.command)


@dataclass(frozen=True)
class Diagnosis:
    """What is to be said of a host and a release."""

    host: Host
    choice: Choice
    rows: tuple[Row, ...]

    @property
    def can_build(self) -> bool:
        """Whether all is known of the release, and nothing hinders."""
        return not self.choice.release.missing and not any(row.hinders for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """All of it, as plain data."""
        release = self.choice.release
        facts: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self.host), default=str))
        return {
            "release": release.name,
            "triton": release.triton,
            "reason": self.choice.reason,
            "proved": dataclasses.asdict(release.proved),
            "can_build": self.can_build,
            "rows": [{**dataclasses.asdict(row), "hinders": row.hinders} for row in self.rows],
            "host": facts,
        }


def diagnose(layout: Layout, name: str = AUTO, *, gpu: bool = True) -> Diagnosis:
    """Read the facts and hold them against a release.

    Raises:
        UsageError: There is no such release.
        HostError: `auto` finds none for this host.
    """
    asked = None if name == AUTO else releases.release(name)
    catalogue = releases.catalogue()
    everywhere = (lists for release in releases.releases() for lists in release.apt.values())
    host = read_host(layout, {n for p in everywhere for n in (*p.server, *p.client, *p.examples)})
    choice = Choice(asked, "asked for") if asked else choose(host, catalogue, gpu=gpu)
    return Diagnosis(host, choice, tuple(check(choice.release, host, catalogue, gpu=gpu)))


def operations(rows: Iterable[Row], *, root: bool) -> Iterator[Operation]:
    """What would add the packages that are missing."""
    packages = [row.package for row in rows if row.state == "missing" and row.package]
    if packages:
        apt = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get")
        prefix = apt if root else ("sudo", *apt)
        yield Operation((*prefix, "update"))
        yield Operation((*prefix, "install", "--yes", "--no-install-recommends", *packages))


def main(arguments: list[str]) -> int:
    """`python -m provision doctor`."""
    options = _parser().parse_args(arguments)
    layout = Layout.from_environment()
    found = diagnose(layout, options.release, gpu=options.gpu)
    planned = tuple(operations(found.rows, root=os.geteuid() == 0))
    if planned and options.install and not options.dry_run:
        if not options.json:
            _show(found)
        for operation in planned:
            _run(operation)
        found = diagnose(layout, found.choice.release.name, gpu=options.gpu)
    if options.json:
        result = found.to_json()
        result["operations"] = [operation.command for operation in planned]
        json.dump(result, sys.stdout, indent=2)
        print()
    else:
        _show(found)
        if planned and options.dry_run:
            say("--install would run:")
        for operation in planned if options.dry_run else ():
            say(f"$ {operation}")
    return 0 if found.can_build else HostError.exit_code


def _run(operation: Operation) -> None:
    """Show an operation and run it in the foreground, for sudo may ask for a password."""
    missing = next((p for p in ("sudo", "apt-get") if _needs(operation, p)), None)
    if missing:
        raise HostError(
            f"there is no {missing} to install packages with",
            fix=f"have an administrator run: {str(operation).removeprefix('sudo ')}",
        )
    print(f"$ {operation}", file=sys.stderr, flush=True)
    # Standard output is left to --json.
    done = subprocess.run(operation.command, stdout=sys.stderr, check=False)
    if done.returncode != 0:
        raise HostError(
            f"`{operation}` failed with exit code {done.returncode}",
            cause="Its own words are above",
            fix="run it by hand, then run doctor again",
        )


def _needs(operation: Operation, program: str) -> bool:
    return program in operation.command and not shutil.which(program)


def _show(found: Diagnosis) -> None:
    release = found.choice.release
    say(f"Triton {release.triton} ({release.name}): {found.choice.reason}", style="bold")
    say(f"{release.proved}", style="dim")
    if release.missing:
        say(f"! what is not known of it: {', '.join(release.missing)}", style="yellow")
    table = Table(box=None, pad_edge=False)
    for title in ("", "what", "found", "needed", "fix"):
        table.add_column(title, overflow="fold")
    for row in found.rows:
        style = _STYLES[row.state]
        cells = (Text(_MARKS[row.state], style=style), *map(Text, _cells(row)))
        table.add_row(*cells)
    wide = console if console.is_terminal else Console(width=_WIDTH, highlight=False)
    wide.print(table)
    hindrances = [row.name for row in found.rows if row.hinders]
    hindrances += [f"unknown: {name}" for name in release.missing]
    if hindrances:
        say(f"✗ {release.name} cannot be built here yet: {', '.join(hindrances)}", style="bold red")
    else:
        say(f"✓ {release.name} can be built here", style="bold green")


def _cells(row: Row) -> tuple[str, str, str, str]:
    found = row.found.replace(str(Path.home()), "~") if row.found else "none"
    return row.name, found, row.needed, row.fix


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m provision doctor",
        description="Say what this host can build, what it lacks, and the fix for each. Nothing is "
        "changed, unless with --install.",
        epilog="exit codes: 0 the release can be built; 2 wrong usage; 10 it cannot, or not yet",
    )
    parser.add_argument(
        "--release",
        default=AUTO,
        metavar="R",
        help="such as 25.08 or 2.60.0; auto (the default) is the newest that this host allows",
    )
    parser.add_argument(
        "--no-gpu", dest="gpu", action="store_false", help="for a build without CUDA and TensorRT"
    )
    parser.add_argument("--json", action="store_true", help="all facts and rows, for programs")
    parser.add_argument(
        "--install", action="store_true", help="install the missing packages with apt, shown first"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show what --install would run, and run nothing"
    )
    return parser
