"""The live model repository (recipe step 4): versions come in whole or not at all.

https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_repository.md
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pipeline.manifest import Manifest
from provision.errors import RepositoryError, StorageError, UsageError
from provision.files import fresh_folder, fsync_tree, lock, put_folder
from provision.layout import Layout

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]*")  # what Triton takes for one


class Repository:
    """The folder ``models/``: one folder a model, in it one folder a version.

    Args:
        layout: The host.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.path = layout.models

    def models(self) -> list[str]:
        """The models that have a version, by name."""
        if not self.path.is_dir():
            return []
        return sorted(p.name for p in self.path.iterdir() if p.is_dir() and self.versions(p.name))

    def versions(self, model: str) -> list[int]:
        """A model's versions, in order."""
        folder = self.path / model
        if not folder.is_dir():
            return []
        return sorted(
            int(p.name) for p in folder.iterdir() if p.is_dir() and _VERSION.fullmatch(p.name)
        )

    def manifest_path(self, model: str, version: int) -> Path:
        """Where a version's manifest is: beside its folder."""
        return self.path / model / f"manifest-{version}.json"

    def latest(self, model: str) -> Manifest | None:
        """The manifest of the version that is served, or None where nothing is deployed.

        Raises:
            RepositoryError: The version is there and its manifest is not.
        """
        versions = self.versions(model)
        return Manifest.read(self.manifest_path(model, versions[-1])) if versions else None

    def plans(self) -> dict[str, bool]:
        """The models that are TensorRT plans, and whether later TensorRTs may load each."""
        found = {}
        for model in self.models():
            with contextlib.suppress(RepositoryError):  # which whoever serves it will show
                manifest = self.latest(model)
                if manifest and manifest.engine.get("name") == "tensorrt":
                    found[model] = bool(manifest.engine["version_compatible"])
        return found

    @contextlib.contextmanager
    def exclusive(self, model: str, waiting: Callable[[str], None] | None) -> Iterator[None]:
        """Keep other deploys of this model out.

        Raises:
            BusyError: One is at work, and `waiting` is None.
        """
        with lock(
            self.layout.run / f"deploy-{model}.lock", holder=f"deploy {model}", waiting=waiting
        ):
            yield

    def stage(self, model: str) -> Path:
        """A folder with what the model has now, to add a version to; hard links, no copies.

        It lies beside the repository, not in it: Triton takes every folder in it for a model,
        also one whose name starts with a dot.

        Raises:
            StorageError: The repository is on another file system than the folder beside it.
        """
        staged = self.path.resolve().parent / ".staging" / model
        fresh_folder(staged)
        live = (self.path / model).resolve()
        try:
            if live.is_dir():
                with self._in_one_step():
                    _link_tree(live, staged)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        return staged

    def install(self, model: str, staged: Path) -> None:
        """Put a staged model in the place of the live one, in one step, durably.

        Raises:
            StorageError: The repository is on another file system than the folder beside it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        fsync_tree(staged)
        try:
            with self._in_one_step():
                put_folder(staged, (self.path / model).resolve())
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    @contextlib.contextmanager
    def _in_one_step(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS):
                raise
            raise StorageError(
                f"{self.path} cannot be changed in one step: {os.strerror(error.errno)}",
                cause="it is a file system of its own, or one that cannot exchange two folders",
                fix=f"make {self.path} a link to a folder inside that file system",
            ) from None


def check_name(model: str) -> None:
    """Make sure that a name can be a model's: a folder here, a part of URLs there.

    Raises:
        UsageError: It cannot.
    """
    if not _NAME.fullmatch(model):
        raise UsageError(
            f"'{model}' cannot be a model's name",
            fix="use up to 128 letters, digits, '_', '.' and '-', the first a letter or digit",
        )


def add_file(folder: Path, name: str, content: Path | str) -> Path:
    """Write or replace one file of a staged folder, never through a hard link to a live one."""
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if isinstance(content, Path):
        shutil.copyfile(content, target)
    else:
        target.write_text(content)
    return target


def add_files(folder: Path, files: Mapping[str, Path | str]) -> list[Path]:
    """:func:`add_file` for each."""
    return [add_file(folder, name, content) for name, content in files.items()]


def _link_tree(source: Path, target: Path) -> None:
    """Fill a folder with hard links to what another holds; shutil's copytree hides the errno."""
    with os.scandir(source) as entries:
        for entry in entries:
            copy = target / entry.name
            if entry.is_dir(follow_symlinks=False):
                copy.mkdir()
                _link_tree(Path(entry.path), copy)
            else:
                os.link(entry.path, copy, follow_symlinks=False)
