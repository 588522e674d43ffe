"""Putting a server under load with NVIDIA's perf_analyzer.

https://github.com/triton-inference-server/perf_analyzer/tree/main/docs
"""

from __future__ import annotations

import csv
import io
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from provision import environments, processes
from provision.errors import HostError, InternalError, ServerUnreachableError
from provision.layout import Layout

_PROGRAM = "perf_analyzer"
# What its binary links against and its wheel does not bring; the server's wheel has both, under
# names with a hash.
_LIBRARIES = {"libcudart.so.12": "libcudart-*.so.12*", "libb64.so.0d": "libb64-*.so.0d"}


@dataclass(frozen=True)
class Load:
    """What a server did under load.

    Attributes:
        throughput: Answers a second.
        p50_ms: The median latency that a client saw, in milliseconds.
    """

    throughput: float
    p50_ms: float

    @classmethod
    def parse(cls, report: str) -> Load:
        """Read perf_analyzer's CSV of one concurrency.

        Raises:
            InternalError: It is something else.
        """
        rows = list(csv.DictReader(io.StringIO(report)))
        try:
            (row,) = rows
            load = cls(float(row["Inferences/Second"]), float(row["p50 latency"]) / 1000)
        except (KeyError, TypeError, ValueError):
            load = None
        if load is None or not (load.throughput > 0 and load.p50_ms > 0):
            raise InternalError(
                f"perf_analyzer's report is not understood: {report.strip()[:300]!r}",
                fix="report this, with the log",
            )
        return load


@dataclass(frozen=True)
class LoadGenerator:
    """A perf_analyzer that was seen to run.

    Attributes:
        program: The executable.
        variables: The process environment it has to run in.
        folder: Where its reports go.
        log: Where its output goes.
    """

    program: Path
    variables: dict[str, str]
    folder: Path
    log: Path

    def measure(self, url: str, model: str, *, concurrency: int, requests: int) -> Load:
        """Send requests of one image each, over HTTP with binary tensors, and time the answers.

        Args:
            url: ``HOST:PORT`` of the server.
            model: The model to ask.
            concurrency: How many requests are under way at once.
            requests: How many in all. With a given number perf_analyzer neither repeats itself
                until its figures are stable, which on a busy host they never are, nor cuts off
                what is under way when the time is over.

        Raises:
            ServerUnreachableError: There were no answers, or a wrong one.
        """
        report = self.folder / "perf_analyzer.csv"
        report.unlink(missing_ok=True)
        command = [
            str(self.program),
            *("-m", model, "-u", url, "-i", "http", "-b", "1", "-f", str(report)),
            *("--input-data", "random", "--percentile", "50"),
            f"--concurrency-range={concurrency}",
            f"--request-count={requests}",
        ]
        code = processes.run_logged(command, log=self.log, env=self.variables)
        if code != 0 or not report.is_file():
            raise ServerUnreachableError(
                f"perf_analyzer could not measure {model} at {url} (exit {code}):\n"
                f"{processes.last_lines(self.log)}",
                fix="read the log, and the server's beside it",
                log=self.log,
            )
        return Load.parse(report.read_text())


def load_generator(layout: Layout, folder: Path, log: Path) -> LoadGenerator:
    """The perf_analyzer of the environment `load`, installed first where it is missing, and tried.

    Args:
        layout: The host.
        folder: Where its libraries and reports go.
        log: Where its output goes.

    Raises:
        HostError: It does not run on this host.
        EnvironmentBuildError: Its wheel cannot be had.
    """
    environment = environments.ensure(layout, "load")
    variables = environment.variables()
    libraries = folder / "libraries"
    _link_libraries(environments.ensure(layout, "serving"), libraries)
    folders = [str(libraries), variables.get("LD_LIBRARY_PATH", "")]
    variables["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, folders))
    program = environment.prefix / "bin" / _PROGRAM
    _try(program, variables)
    return LoadGenerator(program, variables, folder, log)


def _link_libraries(serving: environments.Environment, libraries: Path) -> None:
    libraries.mkdir(parents=True)
    for name, pattern in _LIBRARIES.items():
        found = sorted((serving.site_packages / "nvidia_pytriton.libs").glob(pattern))
        if not found:
            raise HostError(
                f"perf_analyzer needs {name}, and the serving environment has no {pattern}",
                cause="the environment is damaged",
                fix=f"delete {serving.prefix} and run the same command again",
            )
        (libraries / name).symlink_to(found[0])


def _try(program: Path, variables: dict[str, str]) -> None:
    try:
        tried = subprocess.run(
            processes.bound_to_us([str(program), "--version"]),
            env=variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        code, output = tried.returncode, tried.stdout + tried.stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        code, output = None, str(error)
    if code != 0:
        raise HostError(
            f"NVIDIA's perf_analyzer does not run on this host (exit {code})",
            cause=(output.strip().splitlines() or ["no output"])[-1],
            fix="install the library that is named above, for example: apt-get install libssl3; "
            "the program needs glibc 2.34 or newer and an x86-64 processor. If it is missing or "
            f"damaged, delete {program.parent.parent} and run the same command again",
        )
