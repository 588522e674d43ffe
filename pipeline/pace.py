"""How far a client is, on standard error; standard output is for answers."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass
class Pace:
    """What was done so far, and lines for people beside the answers.

    Attributes:
        total: How many files there are.
        done: How many of them are done.
        begun: When, by the monotonic clock.
    """

    total: int
    done: int = 0
    begun: float = field(default_factory=time.monotonic)
    _show: Callable[[int], None] = lambda _: None

    def step(self, files: int) -> None:
        """Some more files are done."""
        self.done += files
        self._show(self.done)

    def say(self, text: str) -> None:
        """Print a line, above the progress bar where there is one."""
        print(text, file=sys.stderr, flush=True)

    def summary(self) -> str:
        """How quickly it went."""
        passed = time.monotonic() - self.begun
        rate = self.done / passed if passed else 0.0
        return f"{self.done} of {self.total} files in {passed:.1f} s, {rate:.1f} a second"


@contextlib.contextmanager
def pace(total: int, *, folder: bool) -> Iterator[Pace]:
    """Follow a job: for a folder with a bar on a terminal, and with a line at the end.

    Args:
        total: How many files there are.
        folder: Whether they are a folder's.
    """
    followed = Pace(total)
    if not folder:
        yield followed
        return
    try:
        with _bar(followed) if sys.stderr.isatty() else contextlib.nullcontext():
            yield followed
    finally:
        followed.say(followed.summary())


@contextlib.contextmanager
def _bar(followed: Pace) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        # Answers in a file or a pipe are not for the terminal; on it they go above the bar.
        redirect_stdout=sys.stdout.isatty(),
    ) as progress:
        task = progress.add_task("", total=followed.total)
        followed._show = lambda done: progress.update(task, completed=done)  # noqa: SLF001 - ours
        yield
