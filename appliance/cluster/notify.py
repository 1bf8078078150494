"""Telling systemd how a service is doing: sd_notify(3), the protocol and no more."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(*states: str) -> None:
    """Send states such as ``READY=1`` or ``STATUS=…``; nothing happens where systemd is not.

    A state that cannot be sent is not worth failing for: systemd then notices the silence itself.
    """
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return
    address = "\0" + name[1:] if name.startswith("@") else name
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as plain:
        plain.sendto("\n".join(states).encode(), address)
