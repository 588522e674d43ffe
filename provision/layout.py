"""The folders of a Slipway host: the published recipe's layout, under one root."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from provision.errors import UsageError

REPOSITORY = Path(__file__).resolve().parent.parent
"""The clone that this code runs from."""


@dataclass(frozen=True)
class Layout:
    """Where things are on this host (recipe: "Directory layout").

    Attributes:
        root: The folder that holds all the others.
    """

    root: Path

    @classmethod
    def from_environment(cls) -> Layout:
        """The layout under ``SLIPWAY_ROOT``, by default ``~/slipway``.

        Raises:
            UsageError: There is no such folder to be had.
        """
        wanted = os.environ.get("SLIPWAY_ROOT") or "~/slipway"
        fix = "set SLIPWAY_ROOT to a folder of yours"
        try:
            root = Path(wanted).expanduser().absolute()
        except RuntimeError:
            raise UsageError(f"{wanted} is in no home folder of this host", fix=fix) from None
        if os.pathsep in str(root):
            raise UsageError(
                f"the root {root} has a colon in its path, which PATH cannot hold", fix=fix
            )
        return cls(root)

    @property
    def vendor(self) -> Path:
        """Third-party tools, Python environments among them."""
        return self.root / "vendor"

    @property
    def transit(self) -> Path:
        """Downloads and work in progress; safe to delete when nothing runs."""
        return self.root / "transit"

    @property
    def factory(self) -> Path:
        """Source and build trees."""
        return self.root / "factory"

    @property
    def triton(self) -> Path:
        """The installed Triton server and client."""
        return self.root / "triton"

    @property
    def bin(self) -> Path:
        """Programs that are built here from Slipway's own source."""
        return self.root / "bin"

    @property
    def models(self) -> Path:
        """The live model repository."""
        return self.root / "models"

    @property
    def logs(self) -> Path:
        """One file per long job."""
        return self.root / "logs"

    @property
    def run(self) -> Path:
        """Locks and the record of the running server."""
        return self.root / "run"


def log_folder() -> Path | None:
    """Where the log of a defect goes; nowhere in particular for a user without a root."""
    try:
        return Layout.from_environment().logs
    except UsageError:
        return None
