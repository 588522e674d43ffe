"""Having a job done in another environment; :mod:`pipeline.worker` is the other side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.worker import MARK, Progress
from provision import processes
from provision.environments import Environment
from provision.errors import InternalError, SlipwayError, StorageError
from provision.layout import REPOSITORY


def call(
    environment: Environment,
    module: str,
    request: dict[str, Any],
    *,
    folder: Path,
    log: Path,
    progress: Progress,
    variables: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run a worker to its end and return its result.

    Args:
        environment: Where it runs.
        module: What runs, with ``-m``.
        request: What it is told.
        folder: For the files of request and result.
        log: What it prints.
        progress: Told what it is doing.
        variables: Its process environment, where that is not the environment's own.

    Raises:
        SlipwayError: Whatever the worker raised, as the class it raised.
        StorageError: It had no room for its result.
        InternalError: The worker ended without a word; the log has its output.
    """
    request_file, result_file = folder / "request.json", folder / "result.json"
    request_file.write_text(json.dumps(request))
    base = environment.variables() if variables is None else variables
    variables = {**base, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    code = processes.run_logged(
        [str(environment.python), "-m", module, str(request_file), str(result_file)],
        log=log,
        env=variables,
        on_line=lambda line: progress(line.removeprefix(MARK)) if line.startswith(MARK) else None,
    )
    try:
        result: dict[str, Any] = json.loads(result_file.read_text())
    except (OSError, ValueError):
        if code == StorageError.exit_code:
            raise StorageError(
                f"cannot write into {folder}: no space left on device",
                fix="free some space there, or point SLIPWAY_ROOT at a larger disk",
                log=log,
            ) from None
        killed = "; was it killed, for want of memory perhaps?" if code < 0 else ""
        raise InternalError(
            f"{module} ended with {code} and no result{killed}:\n{processes.last_lines(log)}",
            fix="read the log; with `free -h` see whether there is memory enough",
            log=log,
        ) from None
    if "error" in result:
        error = SlipwayError.from_json(result)
        error.log = error.log or log
        raise error
    return result
