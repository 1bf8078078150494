"""What an adapter must pass before the model server loads it; anything else keeps it out.

The check itself is :func:`appliance.tuning.adapters.verify`. Here it is asked about the model that
is really served, by the digest of its files, and about the very version that is to be loaded.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from appliance.errors import AdapterRefused
from appliance.i18n import _
from appliance.layout import Home
from appliance.registry import Registry
from appliance.serving.adapters import AdapterPin
from appliance.tuning import adapters
from appliance.tuning.files import folder_files, tree_digest


@dataclass
class AdapterGate:
    """Verifies adapters for the model in ``model_dir``."""

    home: Home
    model_dir: Path

    def verify(self, pin: AdapterPin) -> None:
        """Raise ``ApplianceError`` unless the pinned adapter may be served. Reads all its files."""
        with Registry.open(self.home) as registry:
            record = registry.adapters.get(pin.name)
            if not hmac.compare_digest(record.digest.encode(), pin.digest.encode()):
                raise AdapterRefused(
                    name=pin.name, reason=_("Another version of it is registered by now.")
                )
            folder = adapters.verify(self.home, registry, pin.name, self._model_digest)
        if folder.resolve() != pin.path.resolve():
            raise AdapterRefused(name=pin.name, reason=_("It is not in the place registered."))

    @cached_property
    def _model_digest(self) -> str:
        """Hashing the model takes a second per gigabyte, so it waits for the first adapter."""
        return tree_digest(folder_files(self.model_dir))
