"""What the way through Ray Serve (and the gateway) costs over the bare engine, in one run.

    python tests/bench/serving.py --model DIR [--serve-key FILE] [--gateway URL --api-key FILE
        --ca FILE] [--streams 8] [--tokens 64] [--rounds 5]

Each round sends the same prompts at once to every target in turn: ``bare`` is transformers'
continuous batching in this process with nothing around it; ``engine`` our engine around it;
``serve`` Serve's proxy on 127.0.0.1:8000; ``gateway`` the appliance's door. Prints the median over
rounds of tokens per second (all streams) and of the first token's delay, and their ratio and
difference to ``bare``. Serving must be up; while one target runs, the others are idle. The last
column is processor time per token of the processes that serve (this one, or Serve's replica and
proxy): it says what the way costs also on a machine that is busy with something else.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch

from appliance.cluster import ports
from appliance.engines.engine import GenerationRequest, Message, Sampling
from appliance.engines.transformers_engine import EngineSize, TransformersEngine

Stream = Callable[[int], AsyncIterator[int]]


@dataclass(frozen=True)
class Round:
    """One round of one target: tokens per second in all, seconds to each stream's first token."""

    rate: float
    first: list[float]
    cpu: float  # processor seconds per token


def prompt(index: int) -> str:
    """Distinct prompts of like length."""
    return f"Write a long story about a lighthouse, a storm and the number {index + 10}."


def cpu_of_this() -> float:
    """Processor seconds this process has used."""
    return time.process_time()


def cpu_of_serve() -> float:
    """Processor seconds Serve's replica and proxy have used, as far as they can be seen."""
    total = 0.0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes()
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if name.startswith((b"ray::ServeReplica", b"ray::ProxyActor")):
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


async def measure(stream: Stream, streams: int, cpu: Callable[[], float]) -> Round:
    """Run all streams at once."""
    start, cpu_start = time.perf_counter(), cpu()

    async def one(index: int) -> tuple[int, float]:
        tokens, first = 0, 0.0
        async for count in stream(index):
            first = first or time.perf_counter() - start
            tokens += count
        return tokens, first

    done = await asyncio.gather(*(one(i) for i in range(streams)))
    total = sum(tokens for tokens, _ in done)
    return Round(
        rate=total / (time.perf_counter() - start),
        cpu=(cpu() - cpu_start) / total,
        first=[first for _, first in done],
    )


def bare(engine: TransformersEngine, tokens: int) -> Stream:
    """transformers' own manager, no text, no sampling of ours."""

    async def stream(index: int) -> AsyncIterator[int]:
        outputs: asyncio.Queue = asyncio.Queue()
        manager = engine._manager
        name = f"bare-{time.monotonic_ns()}-{index}"
        manager.register_result_handler(name, outputs.put_nowait)
        ids = engine.encode_chat([Message("user", prompt(index))])
        manager.add_request(list(ids), request_id=name, max_new_tokens=tokens, streaming=True)
        seen, finished = 0, False
        while not finished:
            output = await outputs.get()
            finished = output.is_finished()
            yield len(output.generated_tokens) - seen
            seen = len(output.generated_tokens)

    return stream


def through_engine(engine: TransformersEngine, tokens: int) -> Stream:
    """Our engine in this process."""

    async def stream(index: int) -> AsyncIterator[int]:
        request = GenerationRequest(
            f"engine-{time.monotonic_ns()}-{index}",
            engine.encode_chat([Message("user", prompt(index))]),
            Sampling(max_tokens=tokens, temperature=0),
        )
        async for delta in engine.generate(request):
            yield delta.tokens

    return stream


def over_http(client: httpx.AsyncClient, model: str, tokens: int) -> Stream:
    """An OpenAI endpoint, streaming; tokens are counted from the usage event at the end."""

    async def stream(index: int) -> AsyncIterator[int]:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt(index)}],
            "temperature": 0,
            "max_tokens": tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    usage = json.loads(line[6:]).get("usage") if '"usage":{' in line else None
                    yield usage["completion_tokens"] if usage else 0

    return stream


async def run(arguments: argparse.Namespace) -> None:
    """Measure every target and print the table."""
    size = EngineSize(threads=torch.get_num_threads())
    engine = TransformersEngine.open(arguments.model, size)
    targets: dict[str, Stream] = {
        "bare": bare(engine, arguments.tokens),
        "engine": through_engine(engine, arguments.tokens),
    }
    clients = []
    if arguments.serve_key:
        key = arguments.serve_key.read_text().strip()
        headers = {"X-Appliance-Gateway": key}
        clients.append(httpx.AsyncClient(base_url=ports.SERVE_URL, headers=headers, timeout=300))
        targets["serve"] = over_http(clients[-1], arguments.name, arguments.tokens)
    if arguments.gateway:
        headers = {"Authorization": f"Bearer {arguments.api_key.read_text().strip()}"}
        clients.append(
            httpx.AsyncClient(
                base_url=arguments.gateway, headers=headers, verify=str(arguments.ca), timeout=300
            )
        )
        targets["gateway"] = over_http(clients[-1], arguments.name, arguments.tokens)

    rounds: dict[str, list[Round]] = {name: [] for name in targets}
    for turn in range(arguments.rounds + 1):
        for name, stream in targets.items():
            cpu = cpu_of_this if name in ("bare", "engine") else cpu_of_serve
            result = await measure(stream, arguments.streams, cpu)
            if turn:  # the first round warms up
                rounds[name].append(result)
    _print(rounds, arguments)
    for close in (engine.close, *(client.aclose for client in clients)):
        await _finish(close)


async def _finish(close: Callable[[], Awaitable[None]]) -> None:
    await close()


def _print(rounds: dict[str, list[Round]], arguments: argparse.Namespace) -> None:
    rates = {n: statistics.median(r.rate for r in rs) for n, rs in rounds.items()}
    firsts = {n: statistics.median(f for r in rs for f in r.first) for n, rs in rounds.items()}
    ratios = {
        n: statistics.median(r.rate / b.rate for r, b in zip(rs, rounds["bare"], strict=True))
        for n, rs in rounds.items()
    }
    print(
        f"{arguments.streams} streams x {arguments.tokens} tokens, {arguments.rounds} rounds, "
        f"{torch.get_num_threads()} thread(s), load {os.getloadavg()[0]:.1f}"
    )
    columns = f"{'tokens/s':>9} {'of bare':>8} {'first ms':>9} {'over bare':>10}"
    print(f"{'target':10} {columns} {'cpu ms/token':>13}")
    for name, measured in rounds.items():
        over = (firsts[name] - firsts["bare"]) * 1000
        print(
            f"{name:10} {rates[name]:9.1f} {ratios[name]:8.2f} "
            f"{firsts[name] * 1000:9.0f} {over:+10.0f} "
            f"{statistics.median(r.cpu for r in measured) * 1000:13.2f}"
        )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--name", default=None, help="the model's name at the endpoints")
    parser.add_argument("--serve-key", type=Path)
    parser.add_argument("--gateway")
    parser.add_argument("--api-key", type=Path)
    parser.add_argument("--ca", type=Path)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    arguments.name = arguments.name or arguments.model.name
    asyncio.run(run(arguments))


if __name__ == "__main__":
    main()
