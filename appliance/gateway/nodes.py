"""The hosts of the Ray clusters that the gateway works with, and whether each is alive.

Ray declares a host dead when its own health check has failed for long enough, half a minute by
default. Every host also reports its load every few seconds; on a site a host whose report has not
changed for :data:`SILENT_AFTER_S` is shown as dead. Whether it changed is what counts, and not the
time that it carries: a host's clock may be wrong.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from pydantic import BaseModel

SILENT_AFTER_S = 12.0
_WITHIN = aiohttp.ClientTimeout(total=5)
_LOOK_EVERY_S = 3.0


class Node(BaseModel):
    """A host of a cluster, as Ray's dashboard lists it. Memory in bytes. ``domain`` is empty
    embedded."""

    name: str
    address: str
    alive: bool
    head: bool
    cpus: float
    memory_total: int
    memory_available: int
    domain: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """A host as listed, and a mark that changes with every report that it makes."""

    node: Node
    mark: object


@dataclass
class Heartbeats:
    """What one cluster's hosts were heard to say, by address. Pure: the clock is given."""

    domain: str
    expected: tuple[str, ...]
    _heard: dict[str, tuple[Report, float]] = field(default_factory=dict)

    def hear(self, reports: Iterable[Report], now: float) -> None:
        """Take over a listing. A host that joined again is listed twice: the living one counts."""
        latest: dict[str, Report] = {}
        for report in reports:
            known = latest.get(report.node.address)
            if known is None or not known.node.alive:
                latest[report.node.address] = report
        for address, report in latest.items():
            known_at = self._heard.get(address)
            changed = known_at is None or known_at[0].mark != report.mark
            self._heard[address] = (report, now if changed or known_at is None else known_at[1])

    def nodes(self, now: float, *, head_answers: bool) -> list[Node]:
        """All hosts expected, and who else was heard. Without its head nothing new is known of a
        cluster but that."""
        found = []
        for address in dict.fromkeys((*self.expected, *self._heard)):
            heard = self._heard.get(address)
            if heard is None:
                found.append(_silent(address, self.domain))
                continue
            report, at = heard
            node = report.node
            alive = node.alive and (now - at < SILENT_AFTER_S if head_answers else not node.head)
            found.append(node.model_copy(update={"alive": alive, "domain": self.domain}))
        return found


class NodeWatch:
    """Listens to one cluster's hosts all the time, through the relay of its head. Use as an
    asynchronous context manager."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        base: str,
        token: str,
        heartbeats: Heartbeats,
    ) -> None:
        self._session = session
        self._base = base
        self._token = token
        self._heartbeats = heartbeats
        self._answers = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> NodeWatch:
        self._task = asyncio.create_task(self._watch(), name="nodes")
        return self

    async def __aexit__(self, *_error: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def nodes(self) -> list[Node]:
        """The hosts as they are now."""
        return self._heartbeats.nodes(time.monotonic(), head_answers=self._answers)

    async def _watch(self) -> None:
        while True:
            reports = await listed(self._session, self._base, self._token)
            self._answers = bool(reports)
            self._heartbeats.hear(reports, time.monotonic())
            await asyncio.sleep(_LOOK_EVERY_S)


async def listed(session: aiohttp.ClientSession, base: str, token: str) -> list[Report]:
    """The hosts Ray knows; empty while Ray's dashboard does not answer."""
    headers = {"Authorization": f"Bearer {token}"}
    try:
        async with session.get(
            f"{base}/nodes?view=summary", headers=headers, timeout=_WITHIN
        ) as answer:
            content = await answer.json(content_type=None)
        return [_report(entry) for entry in content["data"]["summary"]]
    except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _report(entry: Mapping[str, Any]) -> Report:
    raylet = entry.get("raylet") or {}
    total, available = (entry.get("mem") or [0, 0])[:2]
    cpus = (raylet.get("resourcesTotal") or {}).get("CPU") or (entry.get("cpus") or [0])[0]
    node = Node(
        name=str(entry.get("hostname", raylet.get("nodeManagerHostname", "?"))),
        address=str(entry.get("ip", raylet.get("nodeManagerAddress", "?"))),
        alive=raylet.get("state") == "ALIVE",
        head=bool(raylet.get("isHeadNode")),
        cpus=float(cpus),
        memory_total=int(total),
        memory_available=int(available),
    )
    return Report(node, entry.get("now"))


def _silent(address: str, domain: str) -> Node:
    """A host that should be there and was never heard of."""
    return Node(
        name=address,
        address=address,
        alive=False,
        head=False,
        cpus=0.0,
        memory_total=0,
        memory_available=0,
        domain=domain,
    )
