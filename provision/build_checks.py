"""What a build asks of a host before it begins."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence

from provision import releases
from provision.choice import choose
from provision.console import say
from provision.doctor import Diagnosis, diagnose
from provision.errors import HostError, UsageError
from provision.files import lock
from provision.layout import Layout
from provision.requirements import Row

# Triton's build writes paths into shell scripts as they are.
_PLAIN = re.compile(r"[\w./+@-]+")
# What a build brings by itself, so that its lack is no hindrance.
_BROUGHT = frozenset({"cmake"})


def examine(layout: Layout, release: str, *, gpu: bool, needs: Sequence[str]) -> Diagnosis:
    """Choose a release, say which, and make sure that this host can build it.

    Args:
        layout: Where.
        release: Its name, or "auto".
        gpu: Whether for a GPU.
        needs: Which of the rows of `doctor` that are for one kind of build alone count, such as
            "tensorrt".

    Raises:
        HostError: The host lacks something, which is named with its fix.
    """
    found = diagnose(layout, release, gpu=gpu)
    chosen = found.choice.release
    say(f"Triton {chosen.triton} ({chosen.name}): {found.choice.reason}", style="bold")
    if chosen.missing:
        whole = [release.name for release in releases.releases() if not release.missing]
        raise HostError(
            f"{chosen.name} cannot be built by Slipway: of it is not known: "
            f"{', '.join(chosen.missing)}",
            fix=f"take one of those that are known whole: {', '.join(whole)}",
        )
    hindrances = [row for row in found.rows if _hinders(row, needs)]
    if hindrances:
        told = [f"{row.name}: {row.found or 'none'} ({row.needed or 'any'})" for row in hindrances]
        raise HostError(
            f"{chosen.name} cannot be built here; found (needed): {'; '.join(told)}",
            cause=f"First of all: {hindrances[0].fix}{_fitting(found, hindrances, gpu=gpu)}",
            fix=f"see `nox -s doctor -- --release {chosen.name}`, which has the fix of each; with "
            "--install it adds the distribution's packages",
        )
    return found


def _fitting(found: Diagnosis, hindrances: Sequence[Row], *, gpu: bool) -> str:
    """Which release fits what the host has, where that rules the chosen one out."""
    if all(row.state != "wrong" for row in hindrances):
        return ""
    with contextlib.suppress(HostError):
        choice = choose(found.host, releases.catalogue(), gpu=gpu)
        return f". {choice.release.name} fits what the host has"
    return ". No release fits what this host has"


def _hinders(row: Row, needs: Sequence[str]) -> bool:
    """Whether a row of `doctor` keeps a build with these needs from succeeding."""
    if row.only and row.only not in needs:
        return False
    return row.name not in _BROUGHT and (row.hinders or row.only == "examples")


def check_root(layout: Layout) -> None:
    """Make sure that Triton's build can cope with the root.

    Raises:
        UsageError: Its path has a blank or another character that a shell takes for something else.
    """
    if not _PLAIN.fullmatch(str(layout.root)):
        raise UsageError(
            f"Triton cannot be built below {str(layout.root)!r}",
            fix="set SLIPWAY_ROOT to a folder without blanks and the like in its path; "
            "Triton's own build does not quote paths",
        )


@contextlib.contextmanager
def only_build(layout: Layout, what: str) -> Iterator[None]:
    """Keep other builds out of this root.

    Raises:
        BusyError: There is one.
    """
    with lock(layout.run / "build.lock", holder=f"building {what}"):
        yield
