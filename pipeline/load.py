"""Putting a server under load with NVIDIA's perf_analyzer.

https://github.com/triton-inference-server/perf_analyzer/tree/main/docs
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path

from provision import environments, processes
from provision.errors import HostError, InternalError, ServerUnreachableError
from provision.layout import Layout

# What its binary links against and its wheel does not bring; the server's wheel has both, under
# names with a hash.
_LIBRARIES = {"libcudart.so.12": "libcudart-*.so.12*", "libb64.so.0d": "libb64-*.so.0d"}

PASSES = 3
"""How often a load is measured in one go: the fewest that perf_analyzer calls stable."""
# It repeats itself until three passes agree, which on a busy host they never do; so that any three
# do, they may differ as they like. Not --request-count: it rounds the time up to whole seconds.
_PASS_OPTIONS = (f"--max-trials={PASSES}", "--stability-percentage=999")
_PASS = re.compile(r"Pass \[\d+\] throughput: (\S+) infer/sec\. p50 latency: (\d+) usec")
# A pass takes this many times the measurement interval.
_WINDOW = 1.2


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
    def parse(cls, output: str) -> Load:
        """Read what perf_analyzer prints of its passes; the first, in which all warms up, is left.

        Its summary, on screen and in its CSV, takes in the first pass too.

        Raises:
            InternalError: There are not as many passes as there should be.
        """
        passes = [(float(rate), float(p50)) for rate, p50 in _PASS.findall(output)]
        if len(passes) != PASSES:
            raise InternalError(
                f"perf_analyzer printed {len(passes)} passes, not {PASSES}", fix="read the log"
            )
        rates, latencies = zip(*passes[1:], strict=True)
        return cls(statistics.mean(rates), statistics.mean(latencies) / 1000)


@dataclass(frozen=True)
class LoadGenerator:
    """A perf_analyzer that was seen to run.

    Attributes:
        program: The executable.
        variables: The process environment it has to run in.
        log: Where its output goes.
    """

    program: Path
    variables: dict[str, str]
    log: Path

    def measure(self, url: str, model: str, *, concurrency: int, seconds: float) -> Load:
        """Send requests of one image each, over HTTP with binary tensors, and time the answers.

        Args:
            url: ``HOST:PORT`` of the server.
            model: The model to ask.
            concurrency: How many requests are under way at once.
            seconds: How long each of its passes takes.

        Raises:
            ServerUnreachableError: An answer was missing or an error.
        """
        command = [
            str(self.program),
            *("-m", model, "-u", url, "-i", "http", "-b", "1", "-v"),
            *("--input-data", "random", "--percentile", "50"),
            f"--concurrency-range={concurrency}",
            f"--measurement-interval={max(1, round(1000 * seconds / _WINDOW))}",
            *_PASS_OPTIONS,
        ]
        lines: list[str] = []
        code = processes.run_logged(command, log=self.log, env=self.variables, on_line=lines.append)
        if code != 0:
            raise ServerUnreachableError(
                f"perf_analyzer could not measure {model} at {url} (exit {code}):\n"
                f"{processes.last_lines(self.log)}",
                fix="read the log, and the server's beside it",
                log=self.log,
            )
        return Load.parse("\n".join(lines))


def load_generator(layout: Layout, libraries: Path, log: Path) -> LoadGenerator:
    """The perf_analyzer of the environment `load`, installed first where it is missing, and tried.

    Args:
        layout: The host.
        libraries: A folder to make, with links to the libraries that it lacks.
        log: Where its output goes.

    Raises:
        HostError: It does not run on this host.
        EnvironmentBuildError: Its wheel cannot be had.
    """
    environment = environments.ensure(layout, "load")
    variables = environment.variables()
    _link_libraries(environments.ensure(layout, "serving"), libraries)
    folders = [str(libraries), variables.get("LD_LIBRARY_PATH", "")]
    variables["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, folders))
    generator = LoadGenerator(environment.prefix / "bin" / "perf_analyzer", variables, log)
    check(generator)
    return generator


def check(generator: LoadGenerator) -> None:
    """Run perf_analyzer once.

    Raises:
        HostError: It does not run; the message has the loader's words.
    """
    try:
        tried = subprocess.run(
            processes.bound_to_us([str(generator.program), "--version"]),
            env=generator.variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        code, output = str(tried.returncode), tried.stdout + tried.stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        code, output = type(error).__name__, str(error)
    if code != "0":
        raise HostError(
            f"NVIDIA's perf_analyzer does not run on this host ({code})",
            cause=(output.strip().splitlines() or ["no output"])[-1],
            fix="install the library that is named above, for example: apt-get install libssl3; "
            "the program needs glibc 2.34 or newer and an x86-64 processor. If it is missing or "
            f"damaged, delete {generator.program.parent.parent} and run the same command again",
        )


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
