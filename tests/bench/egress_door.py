"""What the door costs: round trips and throughput through it, against the Unix socket directly.

``python tests/bench/egress_door.py`` prints medians and ratios. No seal is made: the door is the
only thing measured.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from appliance.egress import live

ROUNDS, MEGABYTES = 2000, 256
CHUNK = b"x" * (1 << 20)

SERVER = """
import os, socket, sys, threading
os.chdir(sys.argv[1])
def answer(caller):
    while text := caller.recv(1 << 16):
        if text.startswith(b"flood"):
            for _ in range(int(text.split()[1])):
                caller.sendall(b"x" * (1 << 20))
            caller.close()
            return
        caller.sendall(text)
server = socket.socket(socket.AF_UNIX)
server.bind("gateway.sock")
server.listen()
while True:
    threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()
"""


def round_trip_us(connect: Callable[[], socket.socket]) -> float:
    with connect() as caller:
        times = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            caller.sendall(b"ping")
            caller.recv(100)
            times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


def megabytes_per_second(connect: Callable[[], socket.socket]) -> float:
    rates = []
    for _ in range(5):
        with connect() as caller:
            started = time.perf_counter()
            caller.sendall(f"flood {MEGABYTES}".encode())
            while caller.recv(1 << 20):
                pass
            rates.append(MEGABYTES / (time.perf_counter() - started))
    return statistics.median(rates)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as tcp:
        door = [sys.executable, "-P", "-m", "appliance.egress.door", f"--listen-fd={tcp.fileno()}"]
        argv = [*door, f"--run={folder}", "--", sys.executable, "-c", SERVER, folder]
        process = subprocess.Popen(argv, pass_fds=(tcp.fileno(),), stdin=subprocess.DEVNULL)
        path = Path(folder, "gateway.sock")

        def direct() -> socket.socket:
            made = socket.socket(socket.AF_UNIX)
            made.connect(str(path))
            return made

        def through() -> socket.socket:
            return socket.create_connection(tcp.getsockname())

        try:
            while not path.exists():
                time.sleep(0.05)
            time.sleep(0.2)
            bare, doored = round_trip_us(direct), round_trip_us(through)
            print(f"round trip, median of {ROUNDS}: direct {bare:.0f} us, door {doored:.0f} us")
            print(f"  the door adds {doored - bare:.0f} us")
            bare, doored = megabytes_per_second(direct), megabytes_per_second(through)
            print(f"throughput, median of 5 x {MEGABYTES} MiB: {bare:.0f} and {doored:.0f} MiB/s")
            print(f"  ratio {doored / bare:.2f}")
        finally:
            for child in live.children(process.pid):
                os.kill(child, 15)
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
