"""Resolving the releases' branches and tags to commits, into ``locks/sources.toml``.

A commit that is locked stays. Where its branch or tag has moved since, that is shown, and taken
only when asked to: what builds the same every time is the commit.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from provision import release_file, releases
from provision.console import say, step, warn
from provision.errors import DownloadError, UsageError
from provision.files import write_atomically
from provision.git import GitError, git

BASE = "https://github.com/triton-inference-server"
_SECONDS = 60
_AT_ONCE = 8
_NAME = re.compile(r"\d\d\.\d\d")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TABLES = ("releases", "repositories")
_BARE_KEY = re.compile(r"[A-Za-z_-]+")
_HEADER = "# Written by `nox -s update_releases`: what each branch and tag was when it was taken.\n"

Locked: TypeAlias = "dict[str, dict[str, dict[str, str]]]"


@dataclass(frozen=True)
class Wanted:
    """A ref to resolve, and its place in the lock.

    Attributes:
        url: The repository.
        ref: The branch, tag or commit in it.
        place: The table, its entry and the key in the lock.
    """

    url: str
    ref: str
    place: tuple[str, str, str]


@dataclass(frozen=True)
class Change:
    """What became of a ref: its commit in the lock and now; empty where there is none."""

    wanted: Wanted
    locked: str
    now: str

    @property
    def moved(self) -> bool:
        """Whether it is another commit than the locked one."""
        return bool(self.locked and self.now) and self.locked != self.now


def wanted(names: Iterable[str], base: str) -> Iterator[Wanted]:
    """The refs of some releases, and of the third-party repositories that they take."""
    catalogue = releases.catalogue()
    seen = set()
    for name in names:
        for component in catalogue.components:
            url = f"{base.rstrip('/')}/{component}.git"
            yield Wanted(url, f"r{name}", ("releases", name, component))
        known = catalogue.releases.get(name)
        for source in known.sources if known else ():
            place = ("repositories", source.git, source.ref)
            if source.git and not _COMMIT.fullmatch(source.ref) and place not in seen:
                seen.add(place)
                yield Wanted(source.git, source.ref, place)


def resolve(url: str, refs: Iterable[str]) -> dict[str, str]:
    """What the refs of a repository are there; one that it does not have is left out.

    A tag goes before a branch of the same name, and an annotated tag gives what it points to.

    Raises:
        DownloadError: The repository does not answer.
    """
    refs = tuple(refs)
    patterns = [p for ref in refs for p in (f"refs/heads/{ref}", f"refs/tags/{ref}*")]
    try:
        answer = git("ls-remote", "--", url, *patterns, timeout=_SECONDS)
    except GitError as error:
        raise _unreachable(url, str(error)) from None
    rows = (line.split("\t", 1) for line in answer.splitlines())
    listed = {name: commit for commit, name in rows}
    found = {}
    for ref in refs:
        candidates = (f"refs/tags/{ref}^{{}}", f"refs/tags/{ref}", f"refs/heads/{ref}")
        commit = next((listed[name] for name in candidates if name in listed), None)
        if commit:
            found[ref] = commit
    return found


def compare(locked: Locked, names: Iterable[str], base: str) -> tuple[list[Change], list[str]]:
    """What became of the refs, and which repositories did not answer."""
    by_url: dict[str, list[Wanted]] = {}
    for one in wanted(names, base):
        by_url.setdefault(one.url, []).append(one)
    changes, silent = [], []
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        asked = {
            url: pool.submit(resolve, url, tuple(dict.fromkeys(one.ref for one in refs)))
            for url, refs in by_url.items()
        }
        for url, refs in by_url.items():
            try:
                found = asked[url].result()
            except DownloadError as error:
                silent.append(f"{error.what} ({error.cause})")
                continue
            for one in refs:
                table, entry, key = one.place
                before = locked.get(table, {}).get(entry, {}).get(key, "")
                changes.append(Change(one, before, found.get(one.ref, "")))
    return changes, silent


def merged(locked: Locked, changes: Iterable[Change], *, take_moved: bool) -> Locked:
    """The lock with what is new and, when asked, with what has moved."""
    result = {
        table: {entry: dict(keys) for entry, keys in entries.items()}
        for table, entries in locked.items()
    }
    for change in changes:
        if change.now and (not change.locked or (change.moved and take_moved)):
            table, entry, key = change.wanted.place
            result.setdefault(table, {}).setdefault(entry, {})[key] = change.now
    return result


def to_toml(locked: Locked) -> str:
    """The lock as TOML; whatever order things were found in, the text is the same."""
    order = {name: n for n, name in enumerate(releases.catalogue().components)}
    lines = [_HEADER]
    for table, entries in sorted(locked.items()):
        for entry, keys in sorted(entries.items()):
            lines.append(f"[{table}.{_key(entry)}]")
            in_order = sorted(keys, key=lambda key: (order.get(key, len(order)), key))
            lines += [f'{_key(key)} = "{keys[key]}"' for key in in_order]
            lines.append("")
    return "\n".join(lines)


def update(names: Iterable[str], *, base: str, take_moved: bool, lock: Path) -> list[str]:
    """Resolve, show what has changed, and write the lock.

    Returns:
        Which repositories did not answer.
    """
    before: Locked = dict(zip(_TABLES, release_file.locked(lock), strict=True))
    with step("Ask the repositories") as asking:
        changes, silent = compare(before, names, base)
        asking.detail = f"{len(changes)} branches and tags"
    for change in changes:
        _show(change, take_moved=take_moved)
    after = merged(before, changes, take_moved=take_moved)
    if after != before:
        write_atomically(lock, to_toml(after))
        releases.catalogue.cache_clear()
    say(f"{lock}: {'written' if after != before else 'nothing new'}")
    return silent


def main(arguments: list[str]) -> int:
    """`python -m provision update_releases`."""
    options = _parser().parse_args(arguments)
    names = options.release or [known.name for known in releases.releases()]
    for name in names:
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name} is not the NGC tag of a release",
                fix="give year and month, such as 26.08",
            )
    silent = update(names, base=options.base, take_moved=options.take_moved, lock=releases.LOCK)
    for name in names:
        if name not in releases.catalogue().releases:
            say(f"{name} has no entry in {releases.FACTS.name} yet: its facts go there")
    if silent:
        raise DownloadError(
            "; ".join(silent),
            cause="What the others said is kept",
            fix="check the network, or give --base or git's url.BASE.insteadOf the address of a "
            "mirror, then run the same command again",
        )
    return 0


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else json.dumps(name)


def _show(change: Change, *, take_moved: bool) -> None:
    one = change.wanted
    what = f"{one.url} {one.ref}"
    if change.moved:
        done = "taken" if take_moved else "not taken; --take-moved does"
        warn(f"{what} moved from {change.locked} to {change.now} ({done})")
    elif not change.now:
        kept = f"the lock keeps {change.locked}" if change.locked else "it stays unknown"
        warn(f"{what} is not there; {kept}")
    elif not change.locked:
        say(f"+ {what} is {change.now}", style="green")


def _unreachable(url: str, cause: str) -> DownloadError:
    return DownloadError(
        f"{url} cannot be read", cause=cause, fix="check the network, or name a mirror"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m provision update_releases",
        description="Resolve the branches and tags of releases to commits by `git ls-remote`, and "
        "lock what is new. What has moved since it was locked is shown, and not taken.",
    )
    parser.add_argument(
        "release", nargs="*", metavar="RELEASE", help="such as 26.08 (default: all that are known)"
    )
    parser.add_argument(
        "--base",
        default=BASE,
        metavar="URL",
        help="where Triton's repositories are, as URL/NAME.git (default: %(default)s); git's own "
        "url.BASE.insteadOf redirects the others",
    )
    parser.add_argument("--take-moved", action="store_true", help="lock what has moved, too")
    return parser
