"""Our own small programs on a host: sent over SSH as text, run by the host's Python, not installed.

The source goes through standard input ahead of what it reads there, so that it shows in no process
list and no sudo log, and a host needs nothing but Python 3.
"""

from __future__ import annotations

from pathlib import Path

_BOOTSTRAP = """\
import os
def take(n):
    data = b""
    while len(data) < n:
        more = os.read(0, n - len(data))
        if not more:
            raise SystemExit(3)
        data += more
    return data
exec(compile(take(int(take(8))), "sovctl", "exec"))
"""

COMMAND = ("python3", "-I", "-c", _BOOTSTRAP)
"""What is started on the host; its standard input begins with :func:`program`."""


def program(name: str) -> bytes:
    """The module ``name`` of this room, as :data:`COMMAND` expects it."""
    source = Path(__file__).with_name(f"{name}.py").read_bytes()
    return b"%08d" % len(source) + source
