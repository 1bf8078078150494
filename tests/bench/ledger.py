"""Appends, verification and proofs of the ledger, as medians of several rounds.

    python tests/bench/ledger.py [FOLDER]

FOLDER is where the ledger is written (default: a temporary folder); fsync speed is its disk's.
"""

import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from appliance.layout import Home
from appliance.ledger.event import Event
from appliance.ledger.files import LedgerFiles
from appliance.ledger.log import Ledger
from appliance.ledger.note import Verifier
from appliance.ledger.proof import prove
from appliance.ledger.verify import verify
from appliance.progress import Silent

ROUNDS = 5
DIGEST = "sha256:" + "ab" * 32


def event(n: int) -> Event:
    subject = {"model": "SmolLM2-135M", "request": DIGEST, "response": DIGEST, "id": f"req-{n:012}"}
    return Event("key:3f9a0c11d2e4f5a6", "inference", subject)


def rate(count: int, work) -> float:
    """Median of ``count`` things per second over the rounds."""
    rates = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        rates.append(count / (time.perf_counter() - start))
    return statistics.median(rates)


def bare_fsync(folder: Path) -> float:
    """Small files made durable with their folder, a second: the disk's own limit."""

    def once() -> None:
        for n in range(50):
            path = folder / f"probe-{n}"
            with path.open("wb") as file:
                file.write(b"x" * 300)
                file.flush()
                os.fsync(file.fileno())
            descriptor = os.open(folder, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
            path.unlink()

    return rate(50, once)


def threads_appending(ledger: Ledger, threads: int, each: int) -> None:
    def work() -> None:
        for n in range(each):
            ledger.append([event(n)])

    running = [threading.Thread(target=work) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if sys.argv[1:] else None) as folder:
        home = Home(Path(folder) / "home")
        ledger = Ledger.create(home, "bench.example/ledger")
        key, files = Verifier.parse(ledger.verifier), LedgerFiles(home.ledger)
        fsync = bare_fsync(Path(folder))
        print(f"entry size                         {len(event(0).encode())} B")
        print(f"file + folder made durable         {fsync:,.0f}/s   (the disk)")
        single = rate(100, lambda: [ledger.append([event(n)]) for n in range(100)])
        print(f"append, one at a time              {single:,.0f}/s   {1e3 / single:.2f} ms each")
        print(f"  of the disk's limit (3 files)    {single / (fsync / 3):.2f}")
        grouped = rate(320, lambda: threads_appending(ledger, 8, 40))
        print(f"append, 8 threads one at a time    {grouped:,.0f}/s   x{grouped / single:.1f}")
        batch = [event(n) for n in range(64)]
        batched = 64 * rate(20, lambda: [ledger.append(batch) for _ in range(20)])
        print(f"append, batches of 64              {batched:,.0f}/s   x{batched / single:.1f}")
        for _ in range(20):
            ledger.append([event(n) for n in range(2500)])
        size = int(ledger.checkpoint().split(b"\n")[1])
        checked = rate(size, lambda: verify(home.ledger, key, Silent()))
        print(f"verify, {size:,} entries            {checked:,.0f}/s")
        opened = rate(1, lambda: Ledger.open(home))
        print(f"open                               {1e3 / opened:.2f} ms")
        proofs = rate(20, lambda: [prove(files, size // 20 * n, key) for n in range(20)])
        print(f"prove                              {1e3 / proofs:.2f} ms each")


if __name__ == "__main__":
    main()
