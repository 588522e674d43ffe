"""A Triton server on this host, whoever made it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from provision.files import write_atomically

# The stub of the Python backend reads none of Python's environment variables, but this.
# https://docs.python.org/3/library/site.html
_STARTUP = "import sys; sys.pycache_prefix = sys.prefix + '/pycache'\n"


@dataclass(frozen=True)
class ServerInstallation:
    """A Triton server on this host that can be started.

    Attributes:
        name: What it is, for people.
        program: The `tritonserver` executable.
        backends: What to give as ``--backend-directory``.
        variables: The process environment it has to run in.
        agents: What to give as ``--repoagent-directory``; None where it has no repository agents.
        addresses: Whether it can be told the address to listen on; if not, it listens on all.
        grpc: Whether it has the gRPC endpoint.
        backend_config: What to give as ``--backend-config``, beside what every server is given.
    """

    name: str
    program: Path
    backends: Path
    variables: dict[str, str]
    agents: Path | None = None
    addresses: bool = True
    grpc: bool = True
    backend_config: tuple[str, ...] = ()


def keep_bytecode_out(site_packages: Path) -> None:
    """Keep __pycache__ out of the live model repository.

    A polling server takes it for a change there, and loads the model again.

    Args:
        site_packages: Of the environment that the Python backend's models run in.
    """
    startup = site_packages / "slipway.pth"
    if not startup.is_file():
        write_atomically(startup, _STARTUP)
