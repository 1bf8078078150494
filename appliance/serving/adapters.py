"""Which adapters a replica serves, pinned by digest; embedded, surviving the replica's death.

Every load verifies first, also those a new replica does by itself from what the old one left in
``run/loaded-adapters.json``: meanwhile an adapter may have been retired or its files changed. On a
site a replica remembers nothing: the gateway tells each one, new or old, what to load.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from appliance.engines.engine import AdapterUnusable, Engine, UnknownAdapter
from appliance.errors import ApplianceError

_log = logging.getLogger(__name__)


class AdapterPin(BaseModel):
    """An adapter to serve: its name, its folder and the digest it was registered under.

    ``signer`` is the public key, PEM, that it must be signed with: the gateway says so to hosts of
    a site, which do not have the registry. Embedded there is none, and the registry is asked.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    path: Path
    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    signer: str | None = Field(default=None, max_length=4096)


class _Pins(BaseModel):
    adapters: list[AdapterPin]


Verify = Callable[[AdapterPin], None]
"""Raises ``ApplianceError`` unless signature, base, status and files are all as they must be."""


@dataclass
class ServedAdapters:
    """The adapters loaded in one engine. ``file`` is where they are remembered, if they are."""

    engine: Engine
    verify: Verify
    file: Path | None
    pins: dict[str, AdapterPin] = field(default_factory=dict)

    async def restore(self) -> None:
        """Load what was loaded before; an adapter that no longer passes is left out, and logged."""
        if self.file is None:
            return
        try:
            remembered = _Pins.model_validate_json(self.file.read_bytes()).adapters
        except FileNotFoundError:
            return
        except ValidationError:
            _log.warning("%s is not readable; no adapter is loaded", self.file)
            return
        for pin in remembered:
            try:
                await self._load(pin)
            except (ApplianceError, AdapterUnusable, OSError) as error:
                _log.warning("adapter %s is not loaded again: %s", pin.name, error)
        self._remember()

    async def load(self, pin: AdapterPin) -> None:
        """Verify and load. Raises ``ApplianceError`` or ``AdapterUnusable``."""
        await self._load(pin)
        self._remember()

    async def unload(self, name: str) -> None:
        """Stop serving an adapter. Raises ``UnknownAdapter``."""
        if name not in self.pins:
            raise UnknownAdapter(name)
        await self.engine.unload_adapter(name)
        del self.pins[name]
        self._remember()

    async def _load(self, pin: AdapterPin) -> None:
        await asyncio.to_thread(self.verify, pin)
        await self.engine.load_adapter(pin.name, pin.path)
        self.pins[pin.name] = pin

    def _remember(self) -> None:
        if self.file is None:
            return
        content = _Pins(adapters=list(self.pins.values())).model_dump_json(indent=1)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=self.file.parent, prefix=".adapters-")
        with os.fdopen(descriptor, "w") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        Path(temporary).replace(self.file)
        folder = os.open(self.file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
