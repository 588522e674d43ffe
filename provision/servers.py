"""Which Triton serves: the embedded one, or the one that was built from source here."""

from __future__ import annotations

from typing import Literal, get_args

from provision import built_server, embedded_server
from provision.console import say
from provision.installation import ServerInstallation
from provision.layout import Layout

Which = Literal["embedded", "built"]
CHOICES: tuple[Which, ...] = get_args(Which)


def server_installation(layout: Layout, which: Which) -> ServerInstallation:
    """The server that is asked for, ready to be started; which it is, and why, is said.

    Raises:
        HostError: It is not there, or does not run on this host.
        DownloadError: Something of it cannot be had.
    """
    if which == "built":
        chosen, reason = built_server.installed_server(layout), "asked for with --server built"
    else:
        chosen, reason = embedded_server.embedded_server(layout), "the default"
    say(f"{chosen.name}: {reason}")
    return chosen
