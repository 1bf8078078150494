"""What a serving deployment needs to know, found in an installation's home."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import NoModelToServe
from appliance.layout import Home


@dataclass(frozen=True, slots=True)
class ServingConfig:
    """One model and how much of the machine it gets.

    ``cpus`` are Ray's scheduling slots, ``threads`` the OpenMP threads of the model. Up to
    ``waiting_requests`` queue beyond those being decoded; the next is told to come back.
    """

    home: Home
    model_name: str
    model_dir: Path
    serve_key: Path
    cpus: float
    threads: int
    waiting_requests: int = 64

    @classmethod
    def of_home(cls, home: Home, environment: Mapping[str, str] = os.environ) -> ServingConfig:
        """The current release's model, sized by the supervisor's environment.

        A release with several models serves the first by name. Raises ``NoModelToServe``.
        """
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
        )

    @property
    def loaded_adapters(self) -> Path:
        """The adapters to load again when a replica starts anew."""
        return self.home.run / "loaded-adapters.json"
