"""A job that runs in another environment: a request file in, a result file out.

:func:`pipeline.delegate.call` starts ``python -m MODULE REQUEST RESULT`` there; the worker prints
progress lines, and whatever else its libraries print goes to the log.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from provision.errors import InternalError, SlipwayError, storage_error

MARK = "slipway: "
"""What a progress line begins with."""

Progress = Callable[[str], None]


def main(job: Callable[[dict[str, Any], Progress], dict[str, Any]]) -> None:
    """The worker's side: read the request, do the job, write the result or the error."""
    request_file, result_file = map(Path, sys.argv[1:3])
    try:
        result = job(json.loads(request_file.read_text()), lambda text: print(MARK + text))
    except SlipwayError as error:
        traceback.print_exc()  # what is behind it, for the log
        result = error.to_json()
    except Exception as error:  # noqa: BLE001 - the parent shows it
        traceback.print_exc()
        known = storage_error(error) if isinstance(error, OSError) else None
        fallback = InternalError(f"{type(error).__name__}: {error}", fix="read the log")
        result = (known or fallback).to_json()
    try:
        result_file.write_text(json.dumps(result))
    except OSError as error:
        # Where the disk is full there is no room for saying so either; the exit code says it.
        known = storage_error(error, result_file)
        if known is None:
            raise
        sys.exit(known.exit_code)
