"""What the user sees while something runs: one line a step, alive on a terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.text import Text

console = Console(highlight=False, soft_wrap=True)


class Step:
    """One step of a job; its detail is shown when it ends."""

    def __init__(self, what: str, update: Callable[[str], None]) -> None:
        self.what = what
        self.detail = ""
        self._update = update

    def progress(self, doing: str) -> None:
        """Show what is being done now, where there is a terminal to show it on."""
        self._update(doing)


@contextlib.contextmanager
def step(what: str) -> Iterator[Step]:
    """Show a step while it runs, and its duration and detail when it has ended.

    Example:
        >>> with step("Export to ONNX") as export:
        ...     export.detail = "97.4 MiB"
        ✓ Export to ONNX: 97.4 MiB (0.0 s)
    """
    start = time.monotonic()
    if console.is_terminal:
        with console.status(f"{what} …") as status:
            running = Step(what, lambda doing: status.update(f"{what}: {doing} …"))
            try:
                yield running
            except BaseException:
                _ended("✗", "red", running, start)
                raise
    else:
        console.print(Text(f"… {what}"))
        running = Step(what, lambda _: None)
        try:
            yield running
        except BaseException:
            _ended("✗", "red", running, start)
            raise
    _ended("✓", "green", running, start)


def say(text: str, *, style: str = "") -> None:
    """Print one line as it is: no markup is read from it."""
    console.print(Text(text, style=style))


def warn(text: str) -> None:
    """Print one line that must not be overlooked."""
    say(f"! {text}", style="bold yellow")


def _ended(mark: str, style: str, ended: Step, start: float) -> None:
    line = Text(f"{mark} ", style=style)
    line.append(ended.what, style="default")
    if ended.detail:
        line.append(f": {ended.detail}", style="default")
    line.append(f" ({time.monotonic() - start:.1f} s)", style="dim")
    console.print(line)
