"""What a benchmark found: figures against their targets."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from provision.console import console, warn

SCHEMA = 1
"""Raised whenever a field of the report is renamed, is removed or changes its meaning."""

CONCURRENCY = 4
"""How many requests are under way at once where throughput is measured."""


@dataclass(frozen=True)
class Figure:
    """One thing that was measured, against its target.

    Attributes:
        name: What it is, in words.
        unit: Its unit; empty for a ratio.
        target: What it should reach.
        at_least: Whether more is better.
        samples: Each measurement.
        choose: Which figure stands for the samples.
        note: What it was made from, in words.
    """

    name: str
    unit: str
    target: float
    at_least: bool
    samples: tuple[float, ...]
    choose: Callable[[tuple[float, ...]], float] = statistics.median
    note: str = ""

    @property
    def measured(self) -> float:
        """The figure that stands for the samples."""
        return self.choose(self.samples)

    @property
    def share(self) -> float:
        """What was measured, divided by the target."""
        return self.measured / self.target

    @property
    def met(self) -> bool:
        """Whether the target was reached; a figure that is no number reaches none."""
        return self.measured >= self.target if self.at_least else self.measured <= self.target

    def to_json(self) -> dict[str, Any]:
        """The figure as it is reported."""
        return {
            "name": self.name,
            "measured": self.measured,
            "unit": self.unit,
            "target": self.target,
            "direction": "at least" if self.at_least else "at most",
            "share_of_target": self.share,
            "met": self.met,
            "samples": list(self.samples),
            "note": self.note,
        }


@dataclass(frozen=True)
class Turns:
    """Throughputs measured in turns, in images a second; entries of one place are neighbours.

    Attributes:
        alone: ONNX Runtime's in process.
        served: Triton's, over HTTP.
        onnxruntime: Its version.
    """

    alone: tuple[float, ...]
    served: tuple[float, ...]
    onnxruntime: str

    def figure(self) -> Figure:
        """Served over in-process throughput, of neighbours; the median of that is what counts."""
        return Figure(
            name="served ÷ in-process throughput",
            unit="",
            target=0.95,
            at_least=True,
            samples=tuple(
                served / alone for served, alone in zip(self.served, self.alone, strict=True)
            ),
            note=f"medians {statistics.median(self.served):.2f} images/s served over HTTP, "
            f"{CONCURRENCY} requests at once, and {statistics.median(self.alone):.2f} by ONNX "
            f"Runtime {self.onnxruntime} alone",
        )

    def to_json(self) -> dict[str, Any]:
        """The throughputs as they are reported."""
        return {
            "unit": "images/s",
            "in_process": list(self.alone),
            "served": list(self.served),
            "concurrency": CONCURRENCY,
            "onnxruntime": self.onnxruntime,
        }


def show(figures: tuple[Figure, ...]) -> None:
    """Print the figures as a table, and name those that miss their targets."""
    table = Table(box=None, pad_edge=False)
    for column in ("figure", "measured", "target", "÷ target", "met"):
        words = column in {"figure", "met"}
        table.add_column(column, justify="left" if words else "right", overflow="fold")
    for figure in figures:
        sign = "≥" if figure.at_least else "≤"
        table.add_row(
            figure.name,
            f"{figure.measured:.2f} {figure.unit}".strip(),
            f"{sign} {figure.target:g} {figure.unit}".strip(),
            f"{figure.share:.2f}",
            "[green]yes[/]" if figure.met else "[red]no[/]",
        )
    console.print(table)
    missed = [figure.name for figure in figures if not figure.met]
    if missed:
        warn(f"missed: {'; '.join(missed)}; on a busy host, measure again when it is quiet")
