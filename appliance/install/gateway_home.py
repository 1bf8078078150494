"""What only the host of a site's gateway has: ledger, registry, the key that signs adapters.

``python -m appliance.install.gateway_home --home HOME`` makes them, once, as root, before anything
runs there as ``sovctl``: the keys lie in a folder that ``sovctl`` reads and cannot write. When it
is whole it leaves ``registry/made``. What was made and is gone is not made again: a ledger that is
missing then was taken away, and the gateway says so.

The operator's API key is the controller's (``secrets/operator.key``); the gateway enters it when it
starts (:func:`adopt_operator`), so that another key there replaces the one before.
"""

from __future__ import annotations

import argparse
import os
import pwd
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from appliance.cluster import node_file
from appliance.layout import Home
from appliance.ledger.event import Event
from appliance.ledger.log import KEY, Ledger
from appliance.registry import Registry, Role

_OWNER = "sovctl"
_OPERATOR_KEY_NAME = "sovctl"
_ACTOR = "system:gateway"


def marker(home: Home) -> Path:
    """There once everything is made."""
    return home.registry.parent / "made"


def make(home: Home, site: str) -> None:
    """Make what is missing; an interrupted making is completed by the next."""
    from appliance.tuning.adapters import ensure_signing_key

    for folder in (home.ledger, home.registry.parent):
        folder.mkdir(parents=True, exist_ok=True, mode=0o750)
    if not (home.ledger / "checkpoint").exists():
        Ledger.create(home, origin=f"{site}/sovctl-{uuid.uuid4().hex[:8]}")
    ensure_signing_key(home)
    with Registry.open(home):
        pass
    if os.geteuid() == 0:
        _give(home)
    marker(home).touch()


def adopt_operator(home: Home, registry: Registry) -> None:
    """Enter the operator's key if it is not known, and revoke the one it replaces."""
    path = home.secrets / "operator.key"
    plaintext = path.read_text(encoding="ascii").strip() if path.exists() else ""
    if not plaintext or registry.api_keys.authenticate(plaintext) is not None:
        return
    ledger = Ledger.open(home)
    for key in registry.api_keys.list():
        if key.name == _OPERATOR_KEY_NAME and key.role is Role.OPERATOR and not key.revoked:
            registry.api_keys.revoke(key.id)
            ledger.append([Event(_ACTOR, "key.revoke", {"key": key.id})])
    made = registry.api_keys.adopt(_OPERATOR_KEY_NAME, Role.OPERATOR, plaintext)
    ledger.append([Event(_ACTOR, "key.create", {"key": made.id, "role": made.role.value})])


def _give(home: Home) -> None:
    """Make ``sovctl`` the owner of what it works with, and of nothing else."""
    owner = pwd.getpwnam(_OWNER)
    for path in _made(home):
        os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)


def _made(home: Home) -> Iterator[Path]:
    yield home.secrets / KEY
    yield home.secrets / "adapter-signing.key"
    for folder in (home.ledger, home.registry.parent):
        yield folder
        yield from folder.rglob("*")


def main(arguments: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    home = Home(parser.parse_args(arguments).home)
    make(home, node_file.read(home).site)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
