"""Which Triton serves: the embedded one, or the one that was built from source here."""

from __future__ import annotations

from typing import Literal

from provision import built_server, embedded_server
from provision.console import say
from provision.installation import ServerInstallation
from provision.layout import Layout

Which = Literal["embedded", "built"]


def server_installation(layout: Layout, which: Which | None = None) -> ServerInstallation:
    """The server that is asked for, ready to be started; which it is, and why, is said.

    Args:
        layout: Where.
        which: The one that was asked for; None for the default, the embedded one.

    Raises:
        HostError: It is not there, or does not run on this host.
        DownloadError: Something of it cannot be had.
    """
    if which == "built":
        chosen, reason = built_server.installed_server(layout), "asked for with --server built"
    else:
        asked = "asked for with --server embedded" if which else "the default"
        chosen, reason = embedded_server.embedded_server(layout), asked
    say(f"{chosen.name}: {reason}")
    return chosen
