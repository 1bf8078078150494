"""Which replicas of the model server there are, and which one takes the next request. Pure.

>>> replicas = Replicas(at_once=True)
>>> replicas.update([Target("SERVE_REPLICA::a", "127.0.0.1", 8100)])
>>> replicas.take().target.port
8100

A request goes to the replica with the fewest answers under way; among equals to the one that has
waited longest. An answer may take a minute, so what counts is what is under way, not how many were
given out; and a handful of replicas is looked through faster than two are drawn at random.

One that nobody reaches is forgotten by the caller. Serve goes on naming it until it has noticed
itself, so on a site (``at_once=False``) a replica, new or forgotten, takes no request before
somebody has spoken to it (:meth:`Replicas.admit`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from appliance.cluster.ports import at

_NAMED = "SERVE_REPLICA::"


@dataclass(frozen=True, slots=True)
class Target:
    """A replica as Serve names it: a new one has a new name, on whatever port. ``address`` is its
    node's."""

    name: str
    address: str
    port: int


Reach = Callable[[Target], str]
"""The base URL under which the gateway reaches a replica."""


def beside(target: Target) -> str:
    """The base URL of a replica on this machine."""
    return f"http://{at(target.address, target.port)}"


@dataclass(slots=True, eq=False)
class Replica:
    """A known replica, and what of ours it has in hand."""

    target: Target
    ready: bool
    under_way: int = 0
    turn: int = 0


@dataclass
class Replicas:
    """Those known, by name."""

    at_once: bool
    known: dict[str, Replica] = field(default_factory=dict)
    _turns: int = 0

    def update(self, named: Iterable[Target]) -> None:
        """Take over what Serve names: keep those known, add new ones, drop the rest."""
        fresh = {}
        for target in named:
            known = self.known.get(target.name)
            if known is None or known.target != target:
                known = Replica(target, self.at_once)
            fresh[target.name] = known
        self.known = fresh

    def take(self) -> Replica | None:
        """The one for the next request, which :meth:`give_back` ends; None if none is ready."""
        ready = [replica for replica in self.known.values() if replica.ready]
        if not ready:
            return None
        chosen = min(ready, key=lambda replica: (replica.under_way, replica.turn))
        self._turns += 1
        chosen.turn = self._turns
        chosen.under_way += 1
        return chosen

    @staticmethod
    def give_back(replica: Replica) -> None:
        """Its answer has ended."""
        replica.under_way -= 1

    def forget(self, replica: Replica) -> None:
        """Nobody listens there: it takes no request any more."""
        replica.ready = False
        if self.at_once and self.known.get(replica.target.name) is replica:
            del self.known[replica.target.name]

    def admit(self, replica: Replica) -> bool:
        """Let it take requests from now on; whether it did not before."""
        was, replica.ready = replica.ready, True
        return not was


def replicas_of(instance: Any) -> tuple[Target, ...] | None:
    """The replicas that Serve's details name; its proxies, which stand there while there is no
    replica, do not count. None: these are no details.

    ``instance`` is ``ray.serve.schema.ServeInstanceDetails`` as JSON.
    """
    try:
        return tuple(
            Target(str(target["name"]), str(target["ip"]), int(target["port"]))
            for group in instance["target_groups"]
            if group["protocol"] == "HTTP"
            for target in group["targets"]
            if target["name"].startswith(_NAMED)
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
