"""Which models can be deployed: torchvision's image classifiers, by name."""

from __future__ import annotations

import difflib
from pathlib import Path

from provision import toml
from provision.errors import UsageError


def names() -> list[str]:
    """Every classifier's name, sorted."""
    return list(toml.load(Path(__file__).with_name("classifiers.toml"))["names"])


def check(name: str) -> None:
    """Make sure that there is a classifier of that name.

    Raises:
        UsageError: There is none; the message lists close matches.
    """
    known = names()
    if name in known:
        return
    close = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=5, cutoff=0.5)
    raise UsageError(
        f"torchvision has no classifier named '{name}'",
        fix=f"did you mean {', '.join(close)}?" if close else f"choose one of {', '.join(known)}",
    )
