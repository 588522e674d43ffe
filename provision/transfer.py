"""Bringing a pinned commit into a mirror: from its repository, or from another mirror."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from provision import interruption, update_releases
from provision.errors import DownloadError
from provision.files import write_atomically
from provision.git import GitError, command, environment, git, reason
from provision.mirror import Mirror, Pin, branch, is_read, missing, place, repository_url, tree

_TRIES = 3
_INCOMING = "refs/slipway/incoming"
# What a repository says that will say the same again.
_FINAL = re.compile(
    r"returned error: 4\d\d|not found|does not appear to be a git repository|not our ref|"
    r"unadvertised object|Authentication failed|could not read Username|Permission denied|"
    r"access denied|transport '\w+' not allowed|repository corruption|couldn't find remote ref",
    re.IGNORECASE,
)


def source(url: str, base: str | None) -> str:
    """Where something is taken from: its own address, or its place in another mirror.

    Args:
        url: Its own address.
        base: The other mirror: a folder or an address.
    """
    return f"{base.rstrip('/')}/{place(url)}" if base else url


def bring(mirror: Mirror, pin: Pin, base: str | None = None) -> str:
    """Bring a commit into a mirror, whole and under its names; what was there stays.

    The names are given last, so that an attempt that was interrupted leaves nothing that counts.

    Returns:
        The commit.

    Raises:
        DownloadError: It cannot be had, or is not whole, or its ref has moved.
    """
    interruption.check()
    url = repository_url(pin.url)
    repository = mirror.repository(url)
    _ready(repository)
    there = source(url, base)
    folder = _folder(there)
    commit = pin.commit or _resolve(there, pin)
    if folder:
        _copy(folder, repository, pin, commit)
    else:
        _fetch(there, repository, pin, commit)
    try:
        absent = missing(repository, commit, pin.without)
    except GitError as error:
        raise _not_whole(there, commit, str(error)) from None
    if absent:
        raise _not_whole(there, commit, _listed(absent))
    kept = branch(commit)
    git("update-ref", kept, commit, folder=repository)
    if pin.ref != commit:
        git("update-ref", f"refs/tags/{pin.ref}", commit, folder=repository)
    git("symbolic-ref", "HEAD", kept, folder=repository)
    return commit


def _ready(repository: Path) -> None:
    """Make a repository where there is none, or one that a full disk left in part.

    Of one that is whole, what a git that was killed left is removed: half a pack, and locks that
    would stop the next.
    """
    try:
        git("rev-parse", "--is-bare-repository", folder=repository)
    except GitError:
        shutil.rmtree(repository, ignore_errors=True)
        staged = repository.with_name(f".{repository.name}.new")
        shutil.rmtree(staged, ignore_errors=True)
        git("init", "--quiet", "--bare", staged)
        staged.rename(repository)
    left = [*repository.glob("objects/pack/tmp_*"), *repository.glob("*.lock")]
    for path in (*left, *repository.glob("refs/**/*.lock")):
        path.unlink(missing_ok=True)


def _folder(there: str) -> Path | None:
    """The repository, where it is in a folder of this host."""
    if "://" in there:
        return None
    named = Path(there)
    candidates = (path for at in (named, named.with_suffix("")) for path in (at, at / ".git"))
    return next((path for path in candidates if (path / "HEAD").is_file()), named)


def _resolve(there: str, pin: Pin) -> str:
    found = update_releases.resolve(there, [pin.ref])
    if pin.ref not in found:
        raise DownloadError(
            f"{there} has no {pin.ref}",
            cause="Neither a tag nor a branch has that name there",
            fix="correct it in provision/releases.toml, or take another mirror",
        )
    return found[pin.ref]


def _copy(folder: Path, repository: Path, pin: Pin, commit: str) -> None:
    """Copy a commit's objects, each checked against its name; its history is left behind.

    Not by `git fetch`, for which the other repository has to be whole, history and all.
    """
    if not (folder / "HEAD").is_file():
        raise DownloadError(
            f"there is no repository in {folder}",
            cause="The mirror lacks it",
            fix="add it to the mirror in that place, as `git clone --mirror` makes it",
        )
    try:
        listed = tree(folder, commit)
        root = git("rev-parse", f"{commit}^{{tree}}", folder=folder).strip()
    except GitError as error:
        raise _lacks(str(folder), pin, commit, str(error)) from None
    absent = missing(folder, commit, pin.without)
    if absent:
        raise _not_whole(str(folder), commit, _listed(absent))
    objects = [commit, root, *(entry.object for entry in listed if is_read(entry, pin.without))]
    # Its parents stay away: https://git-scm.com/docs/shallow
    shallow = repository / "shallow"
    known = shallow.read_text().split() if shallow.is_file() else []
    if commit not in known:
        write_atomically(shallow, "".join(f"{line}\n" for line in [*known, commit]))
    _pipe(folder, repository, objects)


def _pipe(folder: Path, repository: Path, objects: Iterable[str]) -> None:
    pack = command("pack-objects", "--quiet", "--stdout", folder=folder)
    index = command("index-pack", "--stdin", folder=repository)
    settings = environment()
    with (
        subprocess.Popen(
            pack,
            env=settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as packing,
        subprocess.Popen(
            index,
            env=settings,
            stdin=packing.stdout,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as indexing,
    ):
        assert packing.stdin  # noqa: S101 - stdin=PIPE
        assert packing.stdout  # noqa: S101 - stdout=PIPE
        packing.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            packing.stdin.write("".join(f"{object_}\n" for object_ in objects).encode())
            packing.stdin.close()
        said = [process.stderr.read() for process in (packing, indexing) if process.stderr]
    if packing.returncode or indexing.returncode:
        raise DownloadError(
            f"{folder} cannot be copied from",
            cause=reason(b"\n".join(said).decode(errors="replace"), repository),
            fix=f"check it with `git -C {folder} fsck`, and make that mirror anew if it complains",
        )


def _fetch(there: str, repository: Path, pin: Pin, commit: str) -> None:
    """Fetch a commit without its history; what is passing is tried again."""
    said = ""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(2**attempt / 2)
        interruption.check()
        target = f"{_INCOMING}/{commit}"
        try:
            git(
                *("fetch", "--quiet", "--depth=1", "--no-tags", "--no-write-fetch-head", "--force"),
                *("--", there, f"{commit}:{target}"),
                folder=repository,
            )
        except GitError as error:
            said = str(error)
            if _FINAL.search(said):
                break
        else:
            return
    raise _lacks(there, pin, commit, said)


def _lacks(there: str, pin: Pin, commit: str, said: str) -> DownloadError:
    """Why a commit cannot be had; that its ref has moved is told apart from all else."""
    with contextlib.suppress(DownloadError):
        now = update_releases.resolve(there, [pin.ref]).get(pin.ref, commit)
        if commit not in {now, pin.ref}:
            return DownloadError(
                f"{there} no longer gives {commit}, which {pin.ref} was when it was locked",
                cause=f"{pin.ref} has moved to {now}",
                fix="take a mirror that has the locked commit, or take the move: "
                "`nox -s update_releases -- --take-moved`",
            )
    named = pin.ref if pin.ref != commit else "a submodule"
    return DownloadError(
        f"{there} does not give {commit[:12]} ({named})",
        cause=said,
        fix="check the network, or take everything from a mirror: --mirror DIR_OR_URL",
    )


def _not_whole(there: str, commit: str, lacks: str) -> DownloadError:
    return DownloadError(
        f"{there} is not whole: of commit {commit[:12]} it lacks {lacks}",
        cause="It was copied or fetched in part; such a repository looks whole until a checkout",
        fix="make that mirror anew, with `git clone --mirror`, or take another",
    )


def _listed(paths: list[str]) -> str:
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0]}{more}"
