"""Which release a host can take: the newest that nothing on it rules out."""

from __future__ import annotations

from dataclasses import dataclass

from provision.errors import HostError
from provision.host import Host
from provision.releases import Catalogue, Release
from provision.requirements import check

AUTO = "auto"


@dataclass(frozen=True)
class Choice:
    """A release, and why this one."""

    release: Release
    reason: str


def choose(host: Host, catalogue: Catalogue, *, gpu: bool = True) -> Choice:
    """The newest release whose facts are whole and which this host does not rule out.

    What the host lacks can be added, and decides nothing; what it has and is wrong decides: its
    driver, CUDA, TensorRT, C library and compiler.

    Raises:
        HostError: There is none.
    """
    passed: list[str] = []
    unknown: list[str] = []
    for release in reversed(tuple(catalogue.releases.values())):
        if release.missing:
            unknown.append(release.name)
            continue
        obstacles = [
            f"{row.name} {row.found} is not {row.needed}"
            for row in check(release, host, catalogue, gpu=gpu)
            if row.state == "wrong"
        ]
        if not obstacles:
            return Choice(release, _reason(host, passed, unknown, gpu=gpu))
        passed.append(f"{release.name}: {' and '.join(obstacles)}")
    raise HostError(
        "no release can be built on this host",
        cause="; ".join(passed),
        fix="change what stands in the way; `nox -s doctor -- --release R` lists it for one",
    )


def _reason(host: Host, passed: list[str], unknown: list[str], *, gpu: bool) -> str:
    compiler = host.tools.get("g++")
    decisive = [f"glibc {host.glibc}", f"g++ {compiler.version}" if compiler else ""]
    if gpu:
        cuda, libraries = host.gpu.cuda, host.gpu.tensorrt_libraries
        decisive.append(f"CUDA {cuda.version}" if cuda else "")
        decisive.append(f"driver {host.gpu.driver}" if host.gpu.driver else "")
        decisive.append(f"TensorRT {libraries.version}" if libraries else "")
    reason = f"the newest that {', '.join(filter(None, decisive))} allow"
    if passed:
        reason += f" ({'; '.join(passed)})"
    if unknown:
        reason += f"; of {', '.join(reversed(unknown))} not all is known"
    return reason
