"""What the builds of the server and of the client have in common, from the stamp to the install."""

from __future__ import annotations

import dataclasses
import datetime
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from provision import build_log, build_python, build_tree, cmake, processes, toolchain
from provision.build_manifest import BuildManifest, digests, write_bill
from provision.build_tree import BuildTree
from provision.console import say, step, warn
from provision.doctor import Diagnosis
from provision.errors import BuildError, BusyError
from provision.fetch_sources import fetch, mirror_of, verify_archives
from provision.files import fsync_tree, put_folder, sha256, write_atomically
from provision.host import Host
from provision.layout import Layout
from provision.mirror import Pin
from provision.options import How
from provision.plan import Plan, make_plan
from provision.reading import output, text
from provision.releases import catalogue
from provision.requirements import jobs
from provision.sources import Survey
from provision.troubles import INCLUDES, arising

# What may differ from one run to the next and decides nothing: who builds where, where git finds
# the mirror, and whether a compiler's result is kept.
_PASSING = frozenset({"HOME", "LOGNAME", "PATH", "TERM", "TMPDIR", "USER"})
_PASSING_KINDS = ("CCACHE_", "GIT_CONFIG_")
_LAUNCHER = "_COMPILER_LAUNCHER"


class Build:
    """A build, all of whose ingredients are known; each kind says how it compiles and is tried."""

    what = ""
    """What is built: "server" or "client"."""

    def __init__(
        self,
        layout: Layout,
        host: Host,
        plan: Plan,
        tools: toolchain.Tools,
        survey: Survey,
        jobs: int,
    ) -> None:
        self.layout = layout
        self.host = host
        self.plan = plan
        self.tools = tools
        self.survey = survey
        self.jobs = jobs
        self.mirror = mirror_of(layout)
        self.tree = BuildTree(layout.factory / f"{self.what}-{plan.release.triton}")
        self.log = layout.logs / f"build-{self.what}-{plan.release.name}.log"
        self.target = layout.triton / self.what
        self.versions = _versions(host, plan)
        self.troubles = arising(plan.release.name, plan.features, plan.tools)
        self.toolchain = toolchain.toolchain(
            plan.troubles, tools, {**self._overrides(), **self.cmake_variables()}
        )
        self.variables = toolchain.variables(
            self.mirror,
            survey.skipped,
            plan.troubles,
            tools,
            toolchain_file=self.tree.toolchain_file,
            mark=(build_tree.MARK, str(self.tree.folder)),
        )

    def arguments(self) -> Sequence[str]:
        """What the build is given, whatever does not decide what comes out left aside."""
        raise NotImplementedError

    def cmake_variables(self) -> Mapping[str, str | Path]:
        """More variables for the toolchain file."""
        return {}

    def libraries(self) -> Sequence[Path]:
        """Where the loader finds what is neither the system's nor built here."""
        return ()

    def fill(self) -> None:
        """Put into the tree what is special to the kind."""

    def compile(self) -> None:
        """Build, and install into the staging folder."""
        raise NotImplementedError

    def prove(self, manifest: BuildManifest) -> Mapping[str, Any]:
        """Try what is in the staging folder, and say how that went."""
        raise NotImplementedError

    def ingredients(self) -> dict[str, Any]:
        """Everything that decides what comes out, as plain data."""
        return {
            "release": self.plan.release.name,
            "commits": self._commits(),
            "arguments": list(self.arguments()),
            "toolchain": self.toolchain,
            "tools": dict(self.versions),
            "environment": {n: v for n, v in sorted(self.variables.items()) if not _passes(n)},
            "skipped submodules": list(self.survey.skipped),
            "antidotes": {
                file: sha256(INCLUDES / file)
                for trouble in self.plan.troubles
                for file in trouble.includes.values()
            },
        }

    def run(self, *, clean: bool) -> BuildManifest:
        """Build, try and install, unless the very same is installed and as it was installed."""
        stamp = build_tree.stamp(self.ingredients())
        installed = BuildManifest.read(self.target)
        if installed and installed.stamp == stamp and not clean:
            altered = installed.altered(self.target)
            if not altered:
                say(f"nothing to do: it is in {self.target}, built {installed.created}")
                return installed
            warn(f"{len(altered)} installed files were altered, such as {altered[0]}")
        self._refuse_running()
        begun = time.monotonic()
        self.make(clean=clean)
        return self._install(stamp, begun)

    def make(self, *, clean: bool) -> None:
        """Ready the tree and build in it, up to the staging folder."""
        if clean:
            self.tree.forget()
        with step(f"Ready the build tree {self.tree.folder}") as readying:
            readying.detail = self.tree.begin(self.ingredients())
            self._fill()
        self.log.unlink(missing_ok=True)
        shutil.rmtree(self.tree.staging, ignore_errors=True)  # build.py copies into what is there
        try:
            self.compile()
        except BuildError:
            self.tree.ended()  # by itself: whatever was being written is whole, or removed
            raise
        self.tree.ended()

    def execute(self, command: Sequence[str | Path], doing: str) -> None:
        """Run a part of the build, shown as a step."""
        how = f"{self.jobs} at once, {'with' if self.tools.ccache else 'without'} ccache"
        with step(f"{doing} ({how}; log: {self.log})") as running:
            build_log.run(
                [str(word) for word in command],
                what=f"{self.what} {self.plan.release.name}",
                folder=self.tree.folder,
                scratch=self.tree.scratch,
                variables=self.variables,
                log=self.log,
                troubles=self.troubles,
                progress=running.progress,
            )

    def component(self, name: str) -> Pin:
        """One of Triton's own repositories."""
        return next(pin for pin in self.plan.wanted.pins if pin.url.endswith(f"/{name}.git"))

    def _fill(self) -> None:
        """Put the sources into the tree, as far as they are not there."""
        commits = self.survey.commits
        own = self.component(self.what)
        build_tree.fill(self.mirror, own, commits[own], self.tree.folder)
        self.tree.overrides.mkdir(exist_ok=True)
        for source in self.plan.sources():
            if source.override:
                pin = next(p for p in commits if (p.url, p.ref) == (source.git, source.ref))
                folder = self.tree.overrides / source.name
                build_tree.check_out(self.mirror, pin, commits[pin], folder)
        archives = self.plan.wanted.archives
        verify_archives(self.mirror, archives)
        for archive in archives:
            there = self.mirror.path(archive.url)
            seeded = self.tree.scratch / archive.seed / there.name
            seeded.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(there, seeded)
        self.tree.scratch.mkdir(exist_ok=True)
        if text(self.tree.toolchain_file) != self.toolchain:  # a newer one has all configured anew
            write_atomically(self.tree.toolchain_file, self.toolchain)
        self.fill()

    def _install(self, stamp: str, begun: float) -> BuildManifest:
        staging, plan = self.tree.staging, self.plan
        manifest = BuildManifest(
            what=self.what,
            release=plan.release.name,
            triton=plan.release.triton,
            features=tuple(sorted(plan.features)),
            stamp=stamp,
            commits=self._commits(),
            arguments=tuple(self.arguments()),
            tools=self.versions,
            troubles={trouble.name: trouble.reason for trouble in plan.troubles},
            python={
                "executable": str(plan.python.executable),
                "version": plan.python.version,
                "libpython": str(plan.python.libpython or ""),
            },
            libraries=tuple(str(folder) for folder in self.libraries() if folder.is_dir()),
        )
        proof = self.prove(manifest)
        write_bill(staging, manifest, self.survey.commits, plan.wanted.archives)
        manifest = dataclasses.replace(
            manifest,
            proof=proof,
            files=digests(staging),
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - begun, 1),
        )
        manifest.write(staging)
        self._refuse_running()
        self.target.parent.mkdir(parents=True, exist_ok=True)
        fsync_tree(staging)
        put_folder(staging, self.target, exchange=False)
        shutil.rmtree(staging, ignore_errors=True)
        say(f"✓ Triton's {self.what} {manifest.triton} is in {self.target}", style="bold green")
        return manifest

    def _refuse_running(self) -> None:
        """Make sure that nothing runs from where this is installed: it would find other files."""
        running = processes.running_from(self.target)
        if running:
            raise BusyError(
                f"process {running[0].pid} runs from {self.target}, which is to be replaced",
                fix="end it (`nox -s stop`), then run the same again; what is built is kept",
            )

    def _commits(self) -> dict[str, str]:
        """The commits in an order that is always the same."""
        in_order = sorted(self.survey.commits.items(), key=lambda item: (item[0].url, item[0].ref))
        return {str(pin): commit for pin, commit in in_order}

    def _overrides(self) -> dict[str, Path]:
        return {s.override: self.tree.overrides / s.name for s in self.plan.sources() if s.override}


def prepare(
    kind: type[Build],
    layout: Layout,
    found: Diagnosis,
    features: frozenset[str],
    how: How,
) -> Build:
    """Bring everything that a build needs: a plan, the tools, the sources.

    Raises:
        HostError: No Python on this host can build it.
        DownloadError: A tool or a source cannot be had.
    """
    release = found.choice.release
    plan = make_plan(found.host, release, features)
    for trouble in plan.troubles:
        say(f"- averted: {trouble.reason}")
    program = cmake.install(layout, release.cmake_pin, catalogue().cmake[release.cmake_pin])
    tools = toolchain.Tools(
        cmake=program.parent.parent,
        python=build_python.ensure(layout, plan.python),
        cuda=found.host.gpu.cuda if "gpu" in features else None,
        ccache=toolchain.find_ccache(wanted=how.ccache),
    )
    survey = fetch(layout, plan.wanted, how.mirror, what=f"the {kind.what} of {release.name}")
    count = how.jobs or jobs(found.host, catalogue())
    return kind(layout, found.host, plan, tools, survey, count)


def _passes(variable: str) -> bool:
    kind = variable.startswith(_PASSING_KINDS) or variable.endswith(_LAUNCHER)
    return kind or variable in _PASSING


def _versions(host: Host, plan: Plan) -> dict[str, str]:
    """The versions of the tools, whole, for the stamp and the manifest."""
    found = dict(plan.tools)
    git, compiler = host.tools.get("git"), host.tools.get("g++")
    if git:
        found["git"] = git.version
    if compiler:
        found["gcc"] = output(compiler.path, "-dumpfullversion").strip() or compiler.version
    libraries = host.gpu.tensorrt_libraries
    if "tensorrt" in plan.features and libraries:
        found["tensorrt"] = libraries.version
    return found
