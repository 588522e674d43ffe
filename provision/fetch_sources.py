"""`fetch_sources`: everything that a build downloads, into ``transit/mirror``, pinned and checked.

Builds take all of it from there, so that they need no network, and the folder can be carried to a
host that has none.
"""

from __future__ import annotations

import argparse
import concurrent.futures
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from provision import interruption
from provision.console import say, step, warn
from provision.doctor import diagnose
from provision.download import download
from provision.errors import DownloadError, SlipwayError, UsageError
from provision.files import lock, sha256
from provision.host import Host
from provision.layout import Layout
from provision.mirror import Mirror, Pin
from provision.options import add_mirror, add_release, add_server, remarks, server, server_features
from provision.releases import Release, Source, catalogue
from provision.sources import Survey, Wanted, survey, wanted
from provision.transfer import bring, source
from provision.troubles import arising, possible

_AT_ONCE = 8


@dataclass(frozen=True)
class _Task:
    """One thing to bring."""

    name: str
    do: Callable[[], object]


def mirror_of(layout: Layout) -> Mirror:
    """The mirror that this host's builds take everything from."""
    return Mirror(layout.transit / "mirror")


def fetch(layout: Layout, takes: Wanted, base: str | None = None, *, what: str) -> Survey:
    """Bring whatever of it is missing into the mirror, several things at once.

    What has come stays, whatever fails; the next attempt goes on from there.

    Args:
        layout: Where.
        takes: What a build takes.
        base: Another mirror to take everything from: a folder or an address.
        what: What it is for, for people.

    Returns:
        What is there, which is all of it.

    Raises:
        DownloadError: Something cannot be had, is not whole, or is not what was pinned.
    """
    mirror = mirror_of(layout)
    mirror.folder.mkdir(parents=True, exist_ok=True)
    check_base(base)
    with (
        step(f"Sources of {what}") as fetching,
        lock(
            layout.run / "mirror.lock",
            holder="fetching sources",
            waiting=lambda other: fetching.progress(f"waiting for {other}"),
        ),
    ):
        brought = 0
        failed: dict[str, SlipwayError] = {}
        while not (found := survey(mirror, takes)).complete:
            tasks = [*_repositories(mirror, found.missing, base)]
            tasks += _archives(mirror, found.archives, base, fetching.progress)
            tasks = [task for task in tasks if task.name not in failed]
            if not tasks:
                raise _together(failed)
            failed |= _do(tasks, fetching.progress)
            brought += len(tasks)
        size = len(found.commits) + len(takes.archives)
        fetching.detail = f"{size} commits and archives, of which {brought or 'none'} came now"
    for pin, commit in found.commits.items():
        if not pin.commit:
            warn(f"{pin} is not locked; it was taken as it is there: {commit}")
    return found


def check_base(base: str | None) -> None:
    """Make sure that a mirror named by the user is one, as far as that can be seen from here.

    Raises:
        UsageError: It is neither an address nor a folder.
    """
    if base and "://" not in base and not Path(base).is_dir():
        raise UsageError(
            f"there is no mirror in {base}",
            fix="give a folder, or an address such as https://HOST/PATH",
        )


def verify_archives(mirror: Mirror, archives: Iterable[Source]) -> None:
    """Make sure that archives in the mirror are still those that were pinned.

    Raises:
        DownloadError: One is not.
    """
    for archive in archives:
        path = mirror.path(archive.url)
        if sha256(path) != archive.sha256:
            raise DownloadError(
                f"{path} has changed since it was fetched",
                cause=f"Its sha256 is not {archive.sha256}",
                fix=f"remove it, and run the same command again: rm {path}",
            )


def _repositories(mirror: Mirror, pins: Iterable[Pin], base: str | None) -> list[_Task]:
    """One task a repository, for git does not write to one from two sides."""
    by_repository: dict[Path, list[Pin]] = {}
    for pin in pins:
        by_repository.setdefault(mirror.repository(pin.url), []).append(pin)

    def all_of(pins: list[Pin]) -> Callable[[], object]:
        return lambda: [bring(mirror, pin, base) for pin in pins]

    return [
        _Task(f"{path.parent.name}/{path.stem}", all_of(pins))
        for path, pins in by_repository.items()
    ]


def _archives(
    mirror: Mirror, archives: Iterable[Source], base: str | None, progress: Callable[[str], None]
) -> list[_Task]:
    def one(archive: Source) -> Callable[[], object]:
        there, target = source(archive.url, base), mirror.path(archive.url)
        return lambda: download(there, archive.sha256, target, progress)

    return [_Task(archive.name, one(archive)) for archive in archives]


def _do(tasks: list[_Task], progress: Callable[[str], None]) -> dict[str, SlipwayError]:
    """Do all tasks, several at once; which failed, and why."""
    failed: dict[str, SlipwayError] = {}
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        running = {pool.submit(task.do): task.name for task in tasks}
        try:
            for done, future in enumerate(concurrent.futures.as_completed(running), start=1):
                progress(f"{done} of {len(tasks)}, {running[future]}")
                error = future.exception()
                if isinstance(error, SlipwayError):
                    failed[running[future]] = error
                else:
                    future.result()
        except BaseException:
            interruption.ask()  # what runs in the other threads ends soon, and is not tried again
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return failed


def _together(failed: dict[str, SlipwayError]) -> DownloadError:
    """One error for all that failed, the first of them in full."""
    first, *others = failed.values()
    more = f", and {len(others)} more cannot be had" if others else ""
    return DownloadError(f"{first.what}{more}", cause=first.cause, fix=first.fix)


def main(arguments: list[str]) -> int:
    """`python -m provision fetch_sources`."""
    options = _parser().parse_args(arguments)
    layout = Layout.from_environment()
    found = diagnose(layout, options.release, gpu=options.gpu)
    release = found.choice.release
    say(f"Triton {release.triton} ({release.name}): {found.choice.reason}", style="bold")
    chosen = server(options)
    for remark in remarks(release, chosen):
        say(f"- {remark}")
    features = server_features(release, chosen) | {"client" if chosen.grpc else "client_http"}
    left_out = set() if options.for_other_hosts else _on_host(found.host, release, features)
    takes = for_any_host(release, features, on_host=left_out)
    fetch(layout, takes, options.mirror, what=release.name)
    if left_out:
        say(
            f"left out, since this host has it: {', '.join(sorted(left_out))}; a host that has not "
            "needs its archive, too: --for-other-hosts"
        )
    say(f"all in {mirror_of(layout).folder}; builds take it from there")
    return 0


def for_any_host(
    release: Release, features: frozenset[str], *, on_host: Iterable[str] = ()
) -> Wanted:
    """What a build takes on one host or another, whatever troubles it has there.

    Args:
        release: What is built.
        features: What is built in.
        on_host: What is taken from the host instead of an archive, such as "boost".
    """
    takes = wanted(release, catalogue(), features, on_host=on_host)
    others = [
        Pin(source.git, source.ref, source.commit)
        for trouble in possible(release.name, features)
        for source in trouble.sources.values()
    ]
    return Wanted((*takes.pins, *others), takes.archives)


def _on_host(host: Host, release: Release, features: frozenset[str]) -> set[str]:
    """What this host has itself of what archives bring."""
    has = {"boost": host.boost} if host.boost else {}
    found = arising(release.name, features, has)
    return {name for trouble in found for name in trouble.when if trouble.includes}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m provision fetch_sources",
        description="Bring everything that a build of the server and of the client downloads into "
        "transit/mirror: pinned, checked, and resumed where an earlier run was interrupted.",
    )
    add_release(parser)
    add_mirror(parser)
    add_server(parser)
    parser.add_argument(
        "--for-other-hosts",
        action="store_true",
        help="also what this host has itself and another may lack: Boost's archive",
    )
    return parser
