"""How a command line ends: every failure printed for a person, with an exit code of its own."""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from provision.errors import (
    HostError,
    InternalError,
    InterruptedByUser,
    SlipwayError,
    storage_error,
)

_BROKEN_PIPE = 128 + signal.SIGPIPE


def end_in_order() -> None:
    """Have this process end as on Ctrl-C when nox, systemd or a closing terminal asks it to."""
    for asked in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(asked) != signal.SIG_IGN:  # as under nohup
            signal.signal(asked, signal.default_int_handler)


def run(main: Callable[[], int], log_dir: Path | None) -> int:
    """Run a command line's main function and print its failure, if any, to standard error.

    Args:
        main: What to run; it returns the exit code.
        log_dir: Where the traceback of a defect goes, by default the folder for temporary files.

    Returns:
        The exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # it is None where it was closed
            stream.reconfigure(errors="replace")  # a terminal may lack the sign, not the line
    try:
        code = main()
        _flush()
    except KeyboardInterrupt:
        _say("interrupted")
        code = InterruptedByUser.exit_code
    except Exception as error:  # noqa: BLE001 - a user is not shown a traceback, whatever it is
        if isinstance(error, BrokenPipeError) and (_has_no_reader(1) or _has_no_reader(2)):
            code = _BROKEN_PIPE  # as in `… | head`; it could have been another pipe
        else:
            failure = _explain(error, log_dir)
            _show(failure)
            code = failure.exit_code
    try:
        _flush()
    except OSError:
        _discard_output()
    return code


def _flush() -> None:
    """Write out what was printed, while a failure to do so can still be told."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        error.filename = "standard output"
        raise


def _discard_output() -> None:
    """Keep the interpreter from failing once more, at its exit, on what it could not write."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _has_no_reader(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _explain(error: Exception, log_dir: Path | None) -> SlipwayError:
    if isinstance(error, SlipwayError):
        return error
    storage = storage_error(error) if isinstance(error, OSError) else None
    return storage or _wrong_python(error) or _defect(error, log_dir)


def _wrong_python(error: Exception) -> HostError | None:
    """What it means where a library is missing: a job was started outside its environment."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    if error.name.partition(".")[0] in {"pipeline", "provision", *sys.stdlib_module_names}:
        return None
    return HostError(
        f"{sys.executable} lacks {error.name}",
        cause="The job was started with a Python that is not of its environment",
        fix="start it through nox: `python3 -m provision nox -s JOB -- OPTIONS`",
    )


def _show(error: SlipwayError) -> None:
    story = error.what.rstrip(".")
    if error.cause:
        story += f". {error.cause.rstrip('.')}"
    _say(f"error: {story}")
    _say(f"fix: {error.fix}")
    if error.log:
        _say(f"log: {error.log}")


def _say(line: str) -> None:
    """Print to standard error; where nobody can read it, the exit code says enough."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _defect(error: Exception, log_dir: Path | None) -> InternalError:
    log = _write_traceback(error, log_dir)
    return InternalError(
        f"a defect in Slipway: {type(error).__name__}: {error}",
        cause="" if log else "Its traceback could not be written either",
        fix="run it again; if it fails again, report it" + (" with the log" if log else ""),
        log=log,
    )


def _write_traceback(error: Exception, log_dir: Path | None) -> Path | None:
    story = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    for folder in (log_dir, None):
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=folder, prefix="slipway-defect-", suffix=".log")
            with os.fdopen(handle, "w", errors="backslashreplace") as file:
                file.write(f"{sys.version}\n{sys.argv}\n\n{story}")
        except OSError:
            continue
        return Path(name)
    return None
