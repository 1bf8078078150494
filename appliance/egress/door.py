"""The one way in: a listener that stays outside and hands bytes to a Unix socket in the seal.

Why not simply inherit the listening socket: see :mod:`appliance.egress.seal`. The door holds the
TCP listener and the child it started (``unshare`` and, in there, the supervisor), and copies bytes;
TLS ends at the gateway inside, so the door sees cipher text only and decides nothing.

``python -m appliance.egress.door --listen-fd N --run FOLDER -- ARGV…``

The child's standard input is a pipe whose other end is held here. The end of it is the order to
stop, so the supervisor stops in order even if the door is killed. Standard library only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys

SOCKET_NAME = "gateway.sock"
STOP_SECONDS = 45.0
_CHUNK = 1 << 16
_CONNECT_SECONDS = 10.0


async def keep(listener: socket.socket, run_folder: int, argv: list[str]) -> int:
    """Run ``argv``, pass callers in until it ends, and return its exit status.

    ``run_folder`` is an open descriptor of the folder that holds the socket: the folder could be
    replaced from inside by a link to somewhere else, a descriptor cannot.
    """
    child = await asyncio.create_subprocess_exec(*argv, stdin=subprocess.PIPE)
    assert child.stdin is not None
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)

    callers: set[asyncio.Task[None]] = set()

    def admit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = loop.create_task(_pass_through(reader, writer, run_folder))
        callers.add(task)
        task.add_done_callback(callers.discard)

    server = await asyncio.start_server(admit, sock=listener)
    ended = loop.create_task(child.wait())
    told = loop.create_task(stopping.wait())
    await asyncio.wait({ended, told}, return_when=asyncio.FIRST_COMPLETED)
    server.close()
    child.stdin.close()
    try:
        status = await asyncio.wait_for(ended, STOP_SECONDS)
    except TimeoutError:
        child.kill()  # unshare --kill-child takes everything inside with it
        status = await child.wait()
    told.cancel()
    for task in callers:
        task.cancel()
    return status


async def _pass_through(
    outer_reader: asyncio.StreamReader, outer_writer: asyncio.StreamWriter, run_folder: int
) -> None:
    """Join one caller to the gateway until both sides are done."""
    inner_writer: asyncio.StreamWriter | None = None
    try:
        reaching = asyncio.wait_for(_reach_gateway(run_folder), _CONNECT_SECONDS)
        inner_reader, inner_writer = joined = await reaching
        async with asyncio.TaskGroup() as both:
            both.create_task(_copy(outer_reader, joined[1]))
            both.create_task(_copy(inner_reader, outer_writer))
    except* (OSError, TimeoutError):
        pass  # the caller sees its connection closed; the gateway logs what it knows
    finally:
        for writer in (outer_writer, inner_writer):
            if writer is not None:
                writer.close()


async def _reach_gateway(
    run_folder: int,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the socket itself, never through a link, and whatever its path's length."""
    held = os.open(SOCKET_NAME, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=run_folder)
    try:
        if not stat.S_ISSOCK(os.fstat(held).st_mode):
            raise ConnectionRefusedError(f"{SOCKET_NAME} is not a socket")
        return await asyncio.open_unix_connection(f"/proc/self/fd/{held}", limit=_CHUNK)
    finally:
        os.close(held)


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while chunk := await source.read(_CHUNK):
        sink.write(chunk)
        await sink.drain()
    with contextlib.suppress(OSError):
        sink.write_eof()


def main(arguments: list[str]) -> int:
    """Command line of the door; returns the child's exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("argv", nargs="+")
    options = parser.parse_args(arguments)
    listener = socket.socket(fileno=options.listen_fd)
    listener.setblocking(False)
    os.set_inheritable(options.listen_fd, False)
    folder = os.open(options.run, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    return asyncio.run(keep(listener, folder, options.argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
