"""A build tree: stamped with what it was made from, so that it is gone on with, or made anew."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provision import processes
from provision.errors import DownloadError
from provision.files import fresh_folder, write_atomically
from provision.git import GitError, command, environment, git, reason
from provision.mirror import Mirror, Pin
from provision.shared_libraries import is_elf

MARK = "SLIPWAY_BUILD"
"""The environment variable that a build's processes carry, with the tree's folder."""

_STATE = "slipway.json"
# What was being written when a build was killed was written last. A compiler or a linker writes its
# output in less than this.
_TORN_SECONDS = 20
_IN_A_CLONE = ("build", "install")
# The stamps of ExternalProject's steps after the download and its patch, which are not repeated.
_MARKS = re.compile(r"[^/]*-stamp/.*-(configure|build|install|done)|CMakeFiles/.*-complete")
_OUTPUTS = re.compile(r".*\.(o|obj|a|d|gch|cubin|ptx|fatbin|whl|pb\.cc|pb\.h|so(\.\d+)*)")


@dataclass(frozen=True)
class BuildTree:
    """The folder of a build, source and all (recipe step 2: ``factory/server-VERSION``)."""

    folder: Path

    @property
    def scratch(self) -> Path:
        """What build.py gets as its build folder, as in the recipe."""
        return self.folder / "scratch"

    @property
    def staging(self) -> Path:
        """Where it installs to, before that is put in its place."""
        return self.folder / "staging"

    @property
    def overrides(self) -> Path:
        """The folders that stand for downloads."""
        return self.folder / "overrides"

    @property
    def toolchain_file(self) -> Path:
        """What every CMake project of the build is told."""
        return self.folder / "slipway.cmake"

    def begin(self, ingredients: Mapping[str, Any]) -> str:
        """Make it ready for a build from these ingredients: go on with it, or start clean.

        What an earlier run of ours left running here is ended first, and what that was writing when
        it was killed is removed.

        Args:
            ingredients: Everything that decides what comes out, as plain data.

        From here on something is at work in it, until :meth:`ended`.

        Returns:
            What was done, in words.
        """
        processes.kill_marked(MARK, str(self.folder))
        state = self._state()
        before = state.get("ingredients")
        wanted = json.loads(json.dumps(ingredients))
        if before == wanted:
            if state.get("ended"):
                self._write(wanted, ended=False)
                return "as it was left"
            removed = discard_torn(self.scratch)
            torn = f", without {removed} files that it was writing" if removed else ""
            return f"going on with the one that was interrupted{torn}"
        was = before or {}
        changed = sorted(name for name in {*was, *wanted} if was.get(name) != wanted.get(name))
        there = self.folder.exists()
        fresh_folder(self.folder)
        self._write(wanted, ended=False)
        if before:
            return f"clean, since it was made from other {', '.join(changed)}"
        return "clean, since it is not known what it was made from" if there else "clean"

    def forget(self) -> None:
        """Remove it, its state first, so that half of it is never taken for the whole."""
        processes.kill_marked(MARK, str(self.folder))
        (self.folder / _STATE).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def ended(self) -> None:
        """Note that what was at work ended in order: nothing in it is torn."""
        self._write(self._state()["ingredients"], ended=True)

    def _state(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads((self.folder / _STATE).read_text())
        except (OSError, ValueError):
            return {}
        return state

    def _write(self, ingredients: Mapping[str, Any], *, ended: bool) -> None:
        state = {"ingredients": ingredients, "ended": ended}
        write_atomically(self.folder / _STATE, json.dumps(state, indent=2))


def stamp(ingredients: Mapping[str, Any]) -> str:
    """The SHA-256 of ingredients."""
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()


def check_out(mirror: Mirror, pin: Pin, commit: str, folder: Path) -> None:
    """Put a commit's files into a folder, as a whole; nothing is done where they are there.

    Raises:
        DownloadError: The mirror cannot give them.
    """
    mark = folder / ".slipway-commit"
    if mark.is_file() and mark.read_text() == commit:
        return
    staged = folder.with_name(f".{folder.name}.new")
    fresh_folder(staged)
    _extract(mirror.repository(pin.url), commit, pin.without, staged)
    (staged / mark.name).write_text(commit)
    shutil.rmtree(folder, ignore_errors=True)
    staged.rename(folder)


def fill(mirror: Mirror, pin: Pin, commit: str, folder: Path) -> None:
    """Put a commit's files into a folder that has other things too; those stay."""
    mark = folder / ".slipway-commit"
    if not mark.is_file() or mark.read_text() != commit:
        _extract(mirror.repository(pin.url), commit, pin.without, folder)
        mark.write_text(commit)


def clone(pin: Pin, folder: Path, variables: Mapping[str, str]) -> None:
    """Clone a repository as build.py does, but as a whole or not at all.

    build.py takes a folder that is there for a clone that is complete, once it is told not to clone
    anew at every run.

    Raises:
        DownloadError: It cannot be cloned.
    """
    if folder.exists():
        return
    staged = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(staged, ignore_errors=True)
    staged.parent.mkdir(parents=True, exist_ok=True)
    line = ["git", "clone", "--quiet", "--recursive", "--depth=1", "--branch", pin.ref, pin.url]
    done = subprocess.run(
        [*line, str(staged)],
        env=dict(variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise DownloadError(
            f"{pin} cannot be cloned from the mirror",
            cause=reason(done.stderr, staged),
            fix="remove its repository from transit/mirror, and run the same command again",
        )
    staged.rename(folder)


def discard_torn(scratch: Path) -> int:
    """Remove the outputs that were written last before a build was killed; how many there were.

    `make` takes a file for good that is newer than what it is made from, and a compiler that is
    killed by SIGKILL leaves half of one. With them go the marks of CMake's external projects that
    say that a project is configured, built or installed: without its mark its files are made again.
    """
    found = [(path, path.stat().st_mtime) for path in _written(scratch)]
    last = max((time for _, time in found), default=0.0)
    recent = [path for path, time in found if time > last - _TORN_SECONDS]
    for path in recent:
        path.unlink(missing_ok=True)
    return sum(not _is_mark(path) for path in recent)


def _is_mark(path: Path) -> bool:
    return bool(_MARKS.fullmatch(f"{path.parent.name}/{path.name}"))


def _written(scratch: Path) -> Iterator[Path]:
    """What compilers, linkers and generators have written, by its name or being a program; marks.

    A clone holds files of such names that nobody would write again; in one, only what build.py puts
    there is looked at.
    """
    for parent, folders, names in os.walk(scratch):
        if ".git" in (*folders, *names):
            folders[:] = [name for name in folders if name in _IN_A_CLONE]
            continue
        for name in names:
            path = Path(parent, name)
            if path.is_symlink():
                continue
            output = _OUTPUTS.fullmatch(name) or ("." not in name and _is_program(path))
            if output or _is_mark(path):
                yield path


def _is_program(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return is_elf(path)
    return False


def _extract(repository: Path, commit: str, without: tuple[str, ...], folder: Path) -> None:
    paths = [".", *(f":(exclude){name}" for name in without)]
    archive = command("archive", "--format=tar", commit, "--", *paths, folder=repository)
    try:
        git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}", folder=repository)
    except GitError as error:
        raise _cannot_give(repository, commit, str(error)) from None
    with (
        subprocess.Popen(
            archive, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as packing,
        subprocess.Popen(
            ["tar", "--extract", "--directory", str(folder)],
            stdin=packing.stdout,
            stderr=subprocess.PIPE,
            text=True,
        ) as unpacking,
    ):
        assert packing.stdout  # noqa: S101 - stdout=PIPE
        packing.stdout.close()
        _, said = unpacking.communicate()
    if packing.returncode or unpacking.returncode:
        raise _cannot_give(repository, commit, reason(said, folder))


def _cannot_give(repository: Path, commit: str, cause: str) -> DownloadError:
    return DownloadError(
        f"{repository} does not give the files of {commit[:12]}",
        cause=cause,
        fix=f"remove it, and run the same command again: rm -r {repository}",
    )
