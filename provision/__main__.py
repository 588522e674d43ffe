"""`python3 -m provision`."""

import sys

_HOST_ERROR = 10
_INTERRUPTED = 130


def _run() -> int:
    # What an older Python says of code that it cannot parse would help nobody.
    if sys.version_info < (3, 10):  # noqa: UP036
        return _refuse(
            "Slipway needs Python 3.10 to 3.13, and this is " + sys.version.split()[0],
            fix="run it with one of those, for example: python3.11 -m provision",
        )
    try:
        from provision import cli, failures, layout
    except ModuleNotFoundError as error:
        if error.name not in sys.stdlib_module_names:
            raise
        return _refuse(
            f"{sys.executable} lacks the module {error.name} of Python's standard library",
            fix="have the whole library installed, for example: apt-get install python3",
        )
    return failures.run(cli.main, layout.log_folder())


def _refuse(what: str, *, fix: str) -> int:
    sys.stderr.write(f"error: {what}\nfix: {fix}\n")
    return _HOST_ERROR


try:
    _code = _run()
except KeyboardInterrupt:
    _code = _INTERRUPTED
sys.exit(_code)
