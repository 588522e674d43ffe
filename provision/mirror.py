"""A mirror: everything that a build downloads, each thing where its address says.

``https://HOST/PATH.git`` is the bare repository ``HOST/PATH.git`` in it, and ``https://HOST/FILE``
the file ``HOST/FILE``; so a mirror can be copied from one host to another, and served as it is. Of
a repository it holds the pinned commits alone, without their history, and a ref for each by the
name that a build asks for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from provision.errors import DownloadError
from provision.git import GitError, git

_ADDRESS = re.compile(r"(?:https?|git|ssh)://(?:[^/@]*@)?([^/:]+)(?::\d+)?/(.+)")
_LINK_MODE = "160000"  # of a submodule: https://git-scm.com/docs/gitsubmodules


@dataclass(frozen=True)
class Pin:
    """A commit of a repository, and what of it a build reads.

    Attributes:
        url: The repository.
        ref: The name that builds ask for: a tag, a branch, or the commit itself.
        commit: Its 40 hexadecimal digits; empty where none is locked.
        submodules: The paths of the submodules that are read; None for all.
        without: The folders that nothing reads.
    """

    url: str
    ref: str
    commit: str = ""
    submodules: tuple[str, ...] | None = ()
    without: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.url} {self.ref if self.ref != self.commit else self.commit[:12]}"


@dataclass(frozen=True)
class Submodule:
    """A repository inside a commit."""

    name: str
    path: str
    url: str
    commit: str


@dataclass(frozen=True)
class Mirror:
    """A folder in the form of a mirror."""

    folder: Path

    def path(self, url: str) -> Path:
        """Where an archive is, or would be.

        Raises:
            DownloadError: It is no address that can be mirrored.
        """
        return self.folder / place(url)

    def repository(self, url: str) -> Path:
        """Where a repository is, or would be."""
        return self.path(repository_url(url))

    def commit(self, pin: Pin) -> str:
        """The commit that the mirror has for a pin; empty where it has none, or another one."""
        repository = self.repository(pin.url)
        name = branch(pin.commit) if pin.ref == pin.commit else f"refs/tags/{pin.ref}"
        try:
            found = git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", folder=repository)
        except GitError:
            return ""
        found = found.strip()
        return found if not pin.commit or found == pin.commit else ""

    def submodules(self, url: str, commit: str) -> list[Submodule]:
        """The submodules of a commit that is in the mirror; their addresses are whole ones.

        Raises:
            DownloadError: One has an address that cannot be mirrored.
        """
        repository = self.repository(url)
        links = {}
        for line in git("ls-tree", "-r", "-z", commit, folder=repository).split("\0"):
            about, _, path = line.partition("\t")
            if about.startswith(_LINK_MODE):
                links[path] = about.split()[2]
        if not links:
            return []
        listed = git("config", "--blob", f"{commit}:.gitmodules", "--list", "-z", folder=repository)
        modules: dict[str, dict[str, str]] = {}
        for line in listed.split("\0"):
            key, _, value = line.partition("\n")
            if key.startswith("submodule.") and key.count(".") > 1:
                name, _, what = key.removeprefix("submodule.").rpartition(".")
                modules.setdefault(name, {})[what] = value
        return [
            Submodule(name, facts["path"], _absolute(facts["url"], url), links[facts["path"]])
            for name, facts in modules.items()
            if facts.get("path") in links and facts.get("url")
        ]

    def hosts(self) -> Iterator[str]:
        """The hosts of which it holds something."""
        return (path.name for path in sorted(self.folder.iterdir()) if path.is_dir())

    def settings(self, skipped: Iterable[str] = ()) -> list[tuple[str, str]]:
        """Git's settings for a build that takes everything from here, and nothing from a network.

        Args:
            skipped: The names of the submodules that are not cloned.
        """
        base = self.folder.as_uri()
        found = [
            (f"url.{base}/{host}/.insteadOf", f"{scheme}://{host}/")
            for host in self.hosts()
            for scheme in ("https", "http", "git")
        ]
        found += [("protocol.allow", "never"), ("protocol.file.allow", "always")]
        found += [(f"submodule.{name}.update", "none") for name in skipped]
        # A mirror may have been copied by somebody else; its commits are told by their content.
        found += [("safe.directory", "*"), ("advice.detachedHead", "false")]
        return found


def place(url: str) -> str:
    """The path of an address below a mirror."""
    match = _ADDRESS.fullmatch(url)
    host, path = match.groups() if match else ("", "")
    if not path or any(part in {"", ".", ".."} for part in (host, *path.rstrip("/").split("/"))):
        raise DownloadError(
            f"{url} is no address that can be mirrored",
            fix="give one as https://HOST/PATH in provision/releases.toml",
        )
    return f"{host}/{path.rstrip('/')}"


def repository_url(url: str) -> str:
    """The address of a repository in its one form."""
    return f"{url.rstrip('/').removesuffix('.git')}.git"


def branch(commit: str) -> str:
    """The branch that keeps a commit, so that a clone without depth brings it along."""
    return f"refs/heads/slipway-{commit[:12]}"


@dataclass(frozen=True)
class Entry:
    """A folder or a file of a commit."""

    is_folder: bool
    object: str
    path: str


def tree(repository: Path, commit: str) -> list[Entry]:
    """The folders and files of a commit.

    Raises:
        GitError: The commit or a folder of it is not there.
    """
    rows = []
    for line in git("ls-tree", "-r", "-t", "-z", commit, folder=repository).split("\0"):
        about, _, path = line.partition("\t")
        if about and not about.startswith(_LINK_MODE):
            _, kind, object_ = about.split()
            rows.append(Entry(kind == "tree", object_, path))
    return rows


def missing(repository: Path, commit: str, without: tuple[str, ...]) -> list[str]:
    """The paths of a commit whose content is not there, those aside that nothing reads.

    A repository can have every folder of a commit and lack a file's content, and looks whole until
    it is checked out. https://git-scm.com/docs/partial-clone

    Raises:
        GitError: The commit or a folder of it is not there.
    """
    wanted = {e.object: e.path for e in tree(repository, commit) if is_read(e, without)}
    answers = git(
        *("cat-file", "--batch-check", "--buffer"), folder=repository, stdin="\n".join(wanted)
    )
    absent = (line.split(" ")[0] for line in answers.splitlines() if line.endswith(" missing"))
    return sorted(wanted[object_] for object_ in absent)


def is_read(entry: Entry, without: tuple[str, ...]) -> bool:
    """Whether a build reads it; the folders themselves are always there."""
    return entry.is_folder or not any(entry.path.startswith(f"{folder}/") for folder in without)


def _absolute(url: str, parent: str) -> str:
    """The address of a submodule, which may be relative to that of its parent."""
    if not url.startswith(("./", "../")):
        return url
    base = parent.rstrip("/").split("/")
    parts = url.split("/")
    while parts and parts[0] in {".", ".."}:
        if parts.pop(0) == "..":
            base.pop()
    return "/".join([*base, *parts])
