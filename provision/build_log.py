"""Running a build: progress on the screen, all of it in the log, the first error at a failure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from provision import processes
from provision.errors import BuildError
from provision.troubles import Trouble, recognized

# The first error counts: what follows is mostly its consequence.
_ERRORS = (
    re.compile(
        r"(?:^|[\s:])(?:fatal )?error: |^CMake Error|: undefined reference to |"
        r"^/\S*ld: cannot find |No rule to make target|Killed signal terminated|^\w+Error: |"
        r"No space left on device|^fatal: "
    ),
    # These may be said by the way, too, so they count where there is none of the others.
    re.compile(r": command not found|: not found$|: No such file or directory|: Permission denied"),
)
# What looks like an error and is none: build.py's and make's own last words, git's remarks.
_NONE = re.compile(r"^error: build failed|error: (?:make|cmake) failed|No annotated tags can|-- ")
_PERCENT = re.compile(r"^\[\s*(\d+)%\] (.*)")
# Where in the build a line belongs: https://cmake.org/cmake/help/latest/module/ExternalProject.html
_STEP = re.compile(r"Performing (\w+) step for '([^']+)'")
_WRITTEN = re.compile(r"-- Build files have been written to: (\S+)")
_CONTEXT_LINES = 3
_FIX = "read the log from its first error on; the same command goes on where it failed"


@dataclass(frozen=True)
class FirstError:
    """The first error of a build.

    Attributes:
        text: The line, and what follows it.
        phase: The part of the build that it happened in.
    """

    text: str
    phase: str


class Phases:
    """Follows a build's output, and knows what part of it a line belongs to."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self.phase = "the start"

    def feed(self, line: str) -> str:
        """Take the next line; what to show for it, or nothing."""
        step, written = _STEP.search(line), _WRITTEN.search(line)
        if step:
            self.phase = f"{step.group(2)} ({step.group(1)})"
        elif written:
            self.phase = self._part(Path(written.group(1)))
        percent = _PERCENT.match(line)
        if percent:
            return f"{self.phase}, {percent.group(1)} %"
        return self.phase if step or written else ""

    def _part(self, folder: Path) -> str:
        """What is built in a folder: `python/build` is the backend, `…/protobuf-build` protobuf."""
        if not folder.is_relative_to(self._scratch):
            return folder.name
        parts = folder.relative_to(self._scratch).parts
        return parts[0] if parts[1:] == ("build",) else parts[-1].removesuffix("-build")


def run(
    command: Sequence[str],
    *,
    what: str,
    folder: Path,
    scratch: Path,
    variables: Mapping[str, str],
    log: Path,
    troubles: Sequence[Trouble],
    progress: Callable[[str], None],
) -> None:
    """Run a part of a build to its end.

    Args:
        command: What to run.
        what: What it does, for people.
        folder: Where to run it.
        scratch: The build folder, to tell the phases by.
        variables: Its environment.
        log: The file that all its output is added to.
        troubles: The known troubles that there may be.
        progress: Told what is being done.

    Raises:
        BuildError: It failed; with the first error, its phase, and what is known of it.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    start = log.stat().st_size if log.is_file() else 0
    phases = Phases(scratch)

    def on_line(line: str) -> None:
        shown = phases.feed(line)
        if shown:
            progress(shown)

    code = processes.run_logged(command, log=log, env=variables, cwd=folder, on_line=on_line)
    if code == 0:
        return
    with log.open(errors="replace") as file:
        file.seek(start)
        lines = file.read().splitlines()
    raise failure(what, code, lines, scratch=scratch, log=log, troubles=troubles)


def failure(
    what: str,
    code: int,
    lines: Sequence[str],
    *,
    scratch: Path,
    log: Path,
    troubles: Sequence[Trouble],
) -> BuildError:
    """The error that a failed build's output tells of.

    A trouble that says what to do, such as a full disk, is looked for in all of the output; the
    others in the first error alone, for their words may be said by the way, too.
    """
    first = first_error(lines, scratch)
    if first is None:
        last = "\n".join(f"    {line}" for line in lines[-_CONTEXT_LINES * 2 :])
        return BuildError(
            f"{what} failed with exit code {code}; its last words:\n{last}", fix=_FIX, log=log
        )
    advising = [trouble for trouble in troubles if trouble.fix]
    found = [*recognized(first.text, troubles), *recognized("\n".join(lines), advising)]
    known = found[0] if found else None
    cause, fix = "", _FIX
    if known:
        cause = known.reason + (f" ({known.link})" if known.link else "")
        fix = known.fix or (
            f"report it, with the log: the known trouble '{known.name}' was not averted here"
        )
    return BuildError(
        f"{what} failed in {first.phase}:\n{_indented(first.text)}", cause=cause, fix=fix, log=log
    )


def first_error(lines: Sequence[str], scratch: Path) -> FirstError | None:
    """The first error in a build's output, if it can be told."""
    for errors in _ERRORS:
        phases = Phases(scratch)
        for number, line in enumerate(lines):
            phases.feed(line)
            if errors.search(line) and not _NONE.search(line):
                return FirstError("\n".join(_context(lines[number:])), phases.phase)
    return None


def _context(lines: Sequence[str]) -> Iterator[str]:
    """A line, and those after it that explain it."""
    yield lines[0].strip()
    for line in lines[1 : 1 + _CONTEXT_LINES]:
        if not line.startswith((" ", "\t")) and line:
            return
        if line.strip():
            yield line.strip()


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
