"""What a serving deployment needs to know, found in an installation's home."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from appliance.cluster import node_file
from appliance.errors import NoModelToServe
from appliance.layout import Home


@dataclass(frozen=True, slots=True)
class Fleet:
    """The replicas of a site: as many as hosts that serve, one on each."""

    replicas: int


@dataclass(frozen=True, slots=True)
class ServingConfig:
    """One model and how much of the machine it gets. ``fleet`` is None embedded.

    ``release`` is the identity of the release that the model is of. ``cpus`` are Ray's scheduling
    slots, ``threads`` the OpenMP threads of the model. Up to ``waiting_requests`` queue beyond
    those being decoded; the next is told to come back.
    """

    home: Home
    model_name: str
    model_dir: Path
    serve_key: Path
    cpus: float
    threads: int
    release: str
    fleet: Fleet | None = None
    waiting_requests: int = 64

    @classmethod
    def of_home(cls, home: Home, environment: Mapping[str, str] = os.environ) -> ServingConfig:
        """The current release's model, sized by the supervisor's environment.

        A release with several models serves the first by name. Raises ``NoModelToServe``
        and ``NodeFileInvalid``.
        """
        node = node_file.read_if_any(home)
        models = home.current / "models"
        folders = sorted(config.parent for config in models.glob("*/config.json"))
        if not folders:
            raise NoModelToServe(folder=models)
        return cls(
            home=home,
            model_name=folders[0].name,
            model_dir=folders[0].resolve(),
            serve_key=home.secrets / "serve.key",
            cpus=float(environment.get("APPLIANCE_REPLICA_CPUS", "1")),
            threads=int(environment.get("APPLIANCE_REPLICA_THREADS", "1")),
            release=home.current.resolve().name,
            fleet=Fleet(node.replicas) if node is not None else None,
        )

    def sized_for(self, slots: Iterable[float]) -> ServingConfig:
        """Sized for the smallest of the hosts whose scheduling slots are given: Serve's replicas
        are all alike. A host without a slot (a head that only heads) does not count."""
        smallest = int(min((each for each in slots if each >= 1), default=1))
        cpus = max(1, smallest // 2)  # the other half is for tuning, as in appliance.cluster.sizing
        return replace(self, cpus=float(cpus), threads=cpus)

    @property
    def loaded_adapters(self) -> Path | None:
        """The adapters to load again when a replica starts anew; on a site the gateway knows."""
        return self.home.run / "loaded-adapters.json" if self.fleet is None else None
