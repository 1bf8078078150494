"""What an adapter must pass before the model server loads it; anything else keeps it out.

The check itself is :func:`appliance.tuning.adapters.verify`. Here it is asked about the model that
is really served, by the digest of its files, and about the very version that is to be loaded.

A host of a site has no registry. There the gateway, which has it, asks the same and then names the
key that signed; the replica verifies every file against that key itself, so that what it loads from
the shared storage is what was signed, whoever else can write there.
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
        return model_digest(self.model_dir)


@dataclass
class SignedGate:
    """Verifies adapters for the model in ``model_dir``, on a host that has no registry."""

    home: Home
    model_dir: Path

    def verify(self, pin: AdapterPin) -> None:
        """Raise ``ApplianceError`` unless it is what the gateway's key signed. Reads all its files.

        What was revoked is not known here; the gateway looks before it asks.
        """
        if pin.signer is None:
            raise AdapterRefused(name=pin.name, reason=_("Nobody said who signed it."))
        claim = adapters.Claim(pin.name, pin.digest, self._model_digest, pin.signer.encode())
        folder = adapters.verify_signed(self.home, claim, _not_asked)
        if folder.resolve() != pin.path.resolve():
            raise AdapterRefused(name=pin.name, reason=_("It is not in the place registered."))

    @cached_property
    def _model_digest(self) -> str:
        return model_digest(self.model_dir)


def model_digest(model_dir: Path) -> str:
    """Hashing the model takes a second per gigabyte, so it waits for the first adapter."""
    return tree_digest(folder_files(model_dir))


def _not_asked(_files: object) -> None:
    """Revocations lie with the gateway."""
