"""Which Triton serves: the embedded one, or the one that was built from source here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from provision import built_server, embedded_server
from provision.console import say
from provision.errors import HostError
from provision.installation import ServerInstallation
from provision.layout import Layout

Which = Literal["embedded", "built"]


def server_installation(
    layout: Layout, which: Which | None = None, *, plans: Mapping[str, bool] | None = None
) -> ServerInstallation:
    """The server that is asked for, ready to be started; which it is, and why, is said.

    Args:
        layout: Where.
        which: The one that was asked for; None for the default, the embedded one, or where there
            are plans the one that was built.
        plans: The models that are TensorRT plans, which the embedded server has no backend for;
            and whether each may be loaded by later versions, which the server has to allow.

    Raises:
        HostError: It is not there, or does not run on this host.
        DownloadError: Something of it cannot be had.
    """
    named = ", ".join(plans or ())
    if which == "embedded" and plans:
        raise HostError(
            f"the embedded server has no backend for TensorRT plans, such as {named}",
            fix="leave out --server embedded, or deploy with `--engine onnxruntime`",
        )
    if which == "built" or plans:
        chosen = built_server.installed_server(layout, python=not plans)
        if plans and any(plans.values()):
            # Such plans bring code of their own, which the backend runs only if it is told so.
            config = ("tensorrt,version-compatible=true",)
            chosen = replace(chosen, backend_config=config)
        reason = "asked for with --server built" if which else f"for the TensorRT plan {named}"
    else:
        asked = "asked for with --server embedded" if which else "the default"
        chosen, reason = embedded_server.embedded_server(layout), asked
    say(f"{chosen.name}: {reason}")
    return chosen
