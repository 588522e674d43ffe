"""Every way in which Slipway fails on purpose, each with an exit code of its own.

A message answers three questions: what failed, what the likely cause is, and what to do next.
The command line prints them and nothing else; a traceback goes to a log file, and only for a
defect in Slipway itself.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, ClassVar


class SlipwayError(Exception):
    """A failure with its cause and its remedy.

    Args:
        what: One sentence: what failed.
        fix: What to do next, usually a command.
        cause: The likely cause, when it is known and `what` does not say it.
        log: The file that holds the whole story.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, fix: str, cause: str = "", log: Path | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.cause = cause
        self.fix = fix
        self.log = log

    def to_json(self) -> dict[str, Any]:
        """The failure as plain data, to carry it from one process to another."""
        return {
            "error": type(self).__name__,
            "what": self.what,
            "cause": self.cause,
            "fix": self.fix,
            "log": str(self.log) if self.log else None,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SlipwayError:
        """The inverse of :meth:`to_json`, as the class that was written."""
        kind = {c.__name__: c for c in all_errors()}.get(data["error"], SlipwayError)
        log = Path(data["log"]) if data["log"] else None
        return kind(data["what"], fix=data["fix"], cause=data["cause"], log=log)


class UsageError(SlipwayError):
    """The command line asks for something that does not exist or does not go together."""

    exit_code = 2


class NotRunningError(SlipwayError):
    """No server of ours is running (the exit code is the one of `systemctl status`)."""

    exit_code = 3


class HostError(SlipwayError):
    """The host lacks something that cannot be installed without asking."""

    exit_code = 10


class EnvironmentBuildError(SlipwayError):
    """A Python environment under the root could not be made."""

    exit_code = 11


class DownloadError(SlipwayError):
    """Something that has to be downloaded cannot be had, or is not what was pinned."""

    exit_code = 12


class StorageError(SlipwayError):
    """The disk is full, read-only, or not ours to write."""

    exit_code = 13


class BusyError(SlipwayError):
    """Another Slipway process is doing the same thing."""

    exit_code = 14


class BuildError(SlipwayError):
    """A build of Triton failed, or what it built is not right."""

    exit_code = 15


class WeightsError(SlipwayError):
    """The weights are missing, damaged, or do not fit the model."""

    exit_code = 20


class ExportError(SlipwayError):
    """The model could not be exported to ONNX."""

    exit_code = 21


class VerificationError(SlipwayError):
    """The exported model does not compute what the original computes."""

    exit_code = 22


class ConfigError(SlipwayError):
    """A model configuration or a label file is wrong."""

    exit_code = 23


class RepositoryError(SlipwayError):
    """The live model repository is not what its manifests say."""

    exit_code = 24


class ConversionError(SlipwayError):
    """The ONNX graph could not be converted to a TensorRT plan."""

    exit_code = 25


class PlanError(SlipwayError):
    """A TensorRT plan does not fit the server, the GPU or the model."""

    exit_code = 26


class ServerStartError(SlipwayError):
    """The Triton server did not start, or died."""

    exit_code = 30


class PortInUseError(SlipwayError):
    """A port that the server should listen on is taken."""

    exit_code = 31


class ServerUnreachableError(SlipwayError):
    """No Triton server answers at the given address."""

    exit_code = 32


class ModelLoadError(SlipwayError):
    """The server runs, and the model does not."""

    exit_code = 33


class RefusedError(SlipwayError):
    """The server refuses a request."""

    exit_code = 34


class ImageError(SlipwayError):
    """A file is not an image that can be classified."""

    exit_code = 40


class SmokeError(SlipwayError):
    """The server answers, and an answer is wrong."""

    exit_code = 50


class InternalError(SlipwayError):
    """A defect in Slipway; the traceback is in the log."""

    exit_code = 70


class InterruptedByUser(SlipwayError):  # noqa: N818 - it is not an error
    """Ctrl-C."""

    exit_code = 130


def all_errors() -> list[type[SlipwayError]]:
    """Every error class, in the order of this file."""
    return [SlipwayError, *SlipwayError.__subclasses__()]


_STORAGE_FIXES = {
    errno.ENOSPC: "free some space there, or point SLIPWAY_ROOT at a larger disk",
    errno.EDQUOT: "free some space in your quota, or point SLIPWAY_ROOT at another disk",
    errno.EROFS: "mount it writable, or point SLIPWAY_ROOT at a folder that is",
    errno.EACCES: "make it yours, or point SLIPWAY_ROOT at a folder that is",
    errno.EPERM: "make it yours, or point SLIPWAY_ROOT at a folder that is",
}


def storage_error(error: OSError, path: Path | None = None) -> StorageError | None:
    """The storage error behind an :class:`OSError`, or None where it has another reason."""
    fix = _STORAGE_FIXES.get(error.errno or 0)
    if fix is None:
        return None
    where = error.filename2 or error.filename or path or "a file under the root"
    reason = (error.strerror or "input/output error").lower()
    return StorageError(f"cannot write {where}: {reason}", fix=fix)
