"""The folders of a Slipway host: the published recipe's layout, under one root."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

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
        """The layout under ``SLIPWAY_ROOT``, by default ``~/slipway``."""
        root = os.environ.get("SLIPWAY_ROOT")
        return cls(Path(root).expanduser().absolute() if root else Path.home() / "slipway")

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
