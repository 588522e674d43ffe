"""How long a build of the server takes, against Triton's own build.py in the same run.

Both take everything from the same mirror, and both have the known troubles averted without which
they would fail. What build.py is left with is what it does by itself: every test of third parties,
twice as many compilers as cores, every backend cloned anew, no compiler cache.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.benchmark_result import SCHEMA, Figure, show
from provision import options as choices
from provision import releases
from provision.build_checks import check_root, examine
from provision.build_job import Build, prepare
from provision.build_server import ServerBuild, build_server
from provision.console import say
from provision.cores import available_cores
from provision.errors import UsageError
from provision.files import write_atomically
from provision.layout import REPOSITORY, Layout

_REPORT = Path("report") / "benchmark-build.json"
_TESTS = REPOSITORY / "tests"
_COLD, _CACHED, _UNCHANGED_SECONDS = 1.3, 8.0, 5.0


class PlainBuild(ServerBuild):
    """What build.py does where it is started by hand."""

    def arguments(self) -> list[str]:
        """Without the one that keeps clones."""
        return [a for a in super().arguments() if a != "--no-force-clone"]

    def fill(self) -> None:
        """Nothing is cloned beforehand."""

    def compile(self) -> None:
        """Run build.py with its own default of compilers."""
        python = self.tools.python.environment.python
        self.jobs = 2 * available_cores()
        parallel = f"--build-parallel={self.jobs}"
        self.execute([python, "build.py", *self.arguments(), parallel], "build.py by itself")


def main(arguments: list[str]) -> int:
    """`nox -s benchmark -- build`."""
    options = _parser().parse_args(arguments)
    layout = Layout.from_environment()
    check_root(layout)
    work = layout.transit / "benchmark-build"
    shutil.rmtree(work, ignore_errors=True)
    # A root of its own, so that nothing that is installed or built is touched.
    apart = Layout(work)
    work.mkdir(parents=True)
    layout.vendor.mkdir(parents=True, exist_ok=True)
    (work / "vendor").symlink_to(layout.vendor)
    kept = os.environ.get("CCACHE_DIR")
    os.environ["CCACHE_DIR"] = str(work / "ccache")
    try:
        with _subject(options, work) as (release, chosen, mirror):
            figures = measure(apart, release, chosen, choices.How(mirror))
    finally:
        if kept is None:
            del os.environ["CCACHE_DIR"]
        else:
            os.environ["CCACHE_DIR"] = kept
        shutil.rmtree(work, ignore_errors=True)
    show(figures)
    report = {
        "schema": SCHEMA,
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "release": release,
        "cores": available_cores(),
        "figures": [figure.to_json() for figure in figures],
    }
    write_atomically(_REPORT.absolute(), json.dumps(report, indent=2) + "\n")
    say(f"report: {_REPORT.absolute()}")
    return 0


def measure(
    layout: Layout, release: str, chosen: choices.ServerOptions, how: choices.How
) -> tuple[Figure, ...]:
    """Build by build.py alone, then cold, then from the cache, then with nothing changed."""
    # What both need is there before the clock runs: tools, Python environments, sources.
    plain = _prepared(PlainBuild, layout, release, chosen, how)
    by_itself = _seconds(lambda: plain.make(clean=True))
    shutil.rmtree(plain.tree.folder)
    cold = _seconds(lambda: build_server(layout, release, chosen, how))
    again = dataclasses.replace(how, clean=True)
    cached = _seconds(lambda: build_server(layout, release, chosen, again))
    unchanged = _seconds(lambda: build_server(layout, release, chosen, how))
    seconds = f"build.py {by_itself:.1f} s, cold {cold:.1f} s, from ccache {cached:.1f} s"
    return (
        Figure("build.py ÷ cold build", "", _COLD, True, (by_itself / cold,), note=seconds),  # noqa: FBT003
        Figure("build.py ÷ build from ccache", "", _CACHED, True, (by_itself / cached,)),  # noqa: FBT003
        Figure("nothing changed", "s", _UNCHANGED_SECONDS, False, (unchanged,)),  # noqa: FBT003
    )


def _prepared(
    kind: type[Build],
    layout: Layout,
    release: str,
    chosen: choices.ServerOptions,
    how: choices.How,
) -> Build:
    found = examine(layout, release, gpu=chosen.gpu, needs=("server", "tensorrt"))
    features = choices.server_features(found.choice.release, chosen)
    whole = prepare(kind, layout, found, features, dataclasses.replace(how, ccache=False))
    needed = tuple(trouble for trouble in whole.plan.troubles if not trouble.slow)
    plan = dataclasses.replace(whole.plan, troubles=needed)
    return kind(layout, found.host, plan, whole.tools, whole.survey, whole.jobs)


def _seconds(do: Callable[[], object]) -> float:
    begun = time.monotonic()
    do()
    return time.monotonic() - begun


@contextmanager
def _subject(
    options: argparse.Namespace, work: Path
) -> Iterator[tuple[str, choices.ServerOptions, str | None]]:
    """What is built: a real release where one is named, otherwise the miniature of the tests."""
    if options.release:
        yield options.release, choices.server(options), options.mirror
        return
    if not (_TESTS / "upstream.py").is_file():
        raise UsageError("there are no tests beside Slipway", fix="name a release: --release R")
    sys.path.insert(0, str(_TESTS))
    import upstream

    say("Triton in small, as in the tests; --release R measures a real one")
    made = upstream.Upstream.create(work / "upstream")
    facts = releases.FACTS, releases.LOCK
    releases.FACTS, releases.LOCK = made.facts(work / "facts")
    releases.catalogue.cache_clear()
    try:
        small = choices.ServerOptions(gpu=False, grpc=False, tracing=False)
        yield upstream.RELEASE, small, str(made.folder)
    finally:
        releases.FACTS, releases.LOCK = facts
        releases.catalogue.cache_clear()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline benchmark build",
        description="Measure how long the server takes to build, against build.py by itself: cold, "
        "from ccache, and with nothing changed. Without a release it is the miniature of the "
        "tests, in about a minute. Nothing that is installed is touched.",
    )
    parser.add_argument("--release", metavar="R", help="such as 25.08; takes half an hour and more")
    choices.add_mirror(parser)
    choices.add_server(parser)
    return parser
