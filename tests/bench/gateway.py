"""What the gateway costs: first token and tokens a second through it, and straight to Serve.

``python tests/bench/gateway.py`` prints medians and ratios. Serve is a stand-in that sends small
chunks at a steady rate (an engine's pace), so that what differs is the gateway alone: TLS, keys,
limits, streaming and the durable ledger entry. Stand-in and gateway share one interpreter here,
which is the harder case: on an appliance they are processes.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
from gateway_stand import SERVE_KEY, Stand, stand

STREAMS, TOKENS, ROUNDS = 8, 200, 5
PACE_S = 0.02  # 50 tokens a second and stream, 400 in all: several times the embedded engine's
CHAT = "/v1/chat/completions"
QUESTION = {"model": "base", "messages": [{"role": "user", "content": "hello"}], "stream": True}


async def one(client: httpx.AsyncClient, headers: dict[str, str]) -> tuple[float, float, int]:
    """Seconds to the first chunk, seconds in all, and chunks of one stream."""
    start, first, chunks = time.perf_counter(), 0.0, 0
    async with client.stream("POST", CHAT, json=QUESTION, headers=headers) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data:"):
                first = first or time.perf_counter() - start
                chunks += 1
    return first, time.perf_counter() - start, chunks


async def load(url: str, headers: dict[str, str], verify: Any) -> tuple[float, float, float]:
    """Median first chunk (s), chunks a second, and client CPU seconds, over the rounds."""
    firsts, rates = [], []
    async with httpx.AsyncClient(base_url=url, verify=verify, trust_env=False) as client:
        await one(client, headers)
        cpu = time.process_time()
        for _round in range(ROUNDS):
            start = time.perf_counter()
            done = await asyncio.gather(*(one(client, headers) for _each in range(STREAMS)))
            rates.append(sum(chunks for _f, _s, chunks in done) / (time.perf_counter() - start))
            firsts += [first for first, _seconds, _chunks in done]
    return statistics.median(firsts), statistics.median(rates), time.process_time() - cpu


def client_process(url: str, headers: dict[str, str], ca: str | None, pipe: Any) -> None:
    import ssl

    verify = ssl.create_default_context(cafile=ca) if ca else False
    pipe.send(asyncio.run(load(url, headers, verify)))


def measure(url: str, headers: dict[str, str], ca: str | None) -> tuple[float, float, float]:
    """:func:`load` from a process of its own, so that the client does not slow the server."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=client_process, args=(url, headers, ca, theirs))
    process.start()
    result: tuple[float, float, float] = ours.recv()
    process.join()
    return result


def first_chunk_alone(client: httpx.Client, headers: dict[str, str]) -> float:
    """Median seconds to the first chunk of one stream at a time."""
    firsts = []
    for _turn in range(50):
        start = time.perf_counter()
        with client.stream("POST", CHAT, json=QUESTION, headers=headers) as answer:
            lines = answer.iter_lines()
            next(lines)
            firsts.append(time.perf_counter() - start)
            for _line in lines:
                pass
    return statistics.median(firsts)


def alone(running: Stand) -> None:
    """Print the first chunk of a single stream, both ways."""
    with httpx.Client(base_url=running.beside.serve, trust_env=False) as client:
        direct = first_chunk_alone(client, {"X-Appliance-Gateway": SERVE_KEY})
    with running.client("user") as client:
        through = first_chunk_alone(client, {})
    print(f"direct {direct * 1000:.1f} ms, gateway {through * 1000:.1f} ms to the first chunk")


def compare(running: Stand) -> None:
    """Print both ways, and what lies between."""
    ca = str(running.home.tls / "ca.pem")
    direct = running.beside.serve
    bare = measure(direct, {"X-Appliance-Gateway": SERVE_KEY}, None)
    cpu = time.process_time()
    through = measure(running.url, {"Authorization": f"Bearer {running.keys['user']}"}, ca)
    servers = time.process_time() - cpu
    for name, (first, rate, _cpu) in (("direct", bare), ("gateway", through)):
        print(f"{name:8} first chunk {first * 1000:7.1f} ms   {rate:8.0f} chunks/s")
    print(f"ratio    throughput {through[1] / bare[1]:.3f} of direct")
    print(f"added    first chunk {(through[0] - bare[0]) * 1000:+.1f} ms")
    chunks = ROUNDS * STREAMS * TOKENS
    print(f"CPU      {servers / chunks * 1e6:.0f} µs a chunk in stand-in and gateway together")


def main() -> None:
    """Paced as an engine is, then as fast as it goes."""
    with tempfile.TemporaryDirectory() as folder, stand(Path(folder) / "home") as running:
        print("-- one stream at a time")
        alone(running)
        running.serve.tokens = TOKENS
        for title, pace in (("paced, 8 x 50 tokens/s", PACE_S), ("as fast as it goes", 0.0)):
            running.serve.pause_s = pace
            print(f"-- {title}")
            compare(running)


if __name__ == "__main__":
    main()
