"""What a site makes for itself at installation: ledger, keys, certificates, registry. Idempotent.

Private keys and tokens are files of mode 0600 in a folder of mode 0700. The operator's API key is
kept there in clear because ``sovctl`` is its user; the registry keeps only its digest.
"""

from __future__ import annotations

import os
import pwd
import re
import socket
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING

from appliance.cluster import environment, pki
from appliance.cluster.files import write_whole
from appliance.ledger.event import Event, Outcome
from appliance.ledger.log import Ledger

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.layout import Home

_OPERATOR_KEY_NAME = "sovctl"


def operator() -> str:
    """The ledger's name for whoever runs this command."""
    name = os.environ.get("SUDO_USER")
    if not name:
        try:
            name = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            name = f"uid-{os.getuid()}"
    return f"operator:{name}"


def record(home: Home, action: str, subject: Mapping[str, str], outcome: Outcome = "ok") -> None:
    """Put an act of the operator on the ledger, making the ledger if this site is new.

    A ledger that is missing where a release is installed was taken away: that is not mended
    silently, :class:`~appliance.errors.LedgerMissing` is raised.
    """
    if not (home.ledger / "checkpoint").exists() and not home.current.is_symlink():
        name = re.sub(r"[^a-z0-9.-]", "-", socket.gethostname().lower()) or "localhost"
        Ledger.create(home, origin=f"{name}/sovctl-{uuid.uuid4().hex[:8]}")
    Ledger.open(home).append([Event(operator(), action, subject, outcome)])


def operator_key(home: Home) -> Path:
    """Where the operator's API key is."""
    return home.secrets / "operator.key"


def has_secrets(home: Home) -> bool:
    """Whether everything :func:`ensure_secrets` makes is there."""
    made = (
        home.tls / "ca.pem",
        home.tls / "gateway.pem",
        pki.ca_key(home),
        home.registry,
        operator_key(home),
        environment.serve_key(home),
        environment.ray_token(home),
        home.secrets / "adapter-signing.key",
        home.trust / "adapter-signing.pem",
    )
    return all(path.is_file() for path in made)


def ensure_secrets(home: Home) -> None:
    """Make what is missing; leave what is there. Raises what the rooms below raise."""
    home.secrets.mkdir(parents=True, exist_ok=True, mode=0o700)
    home.secrets.chmod(0o700)
    pki.ensure(home)
    for path in (environment.serve_key(home), environment.ray_token(home)):
        if not path.exists():
            write_whole(path, os.urandom(32).hex().encode("ascii"), mode=0o600)
    from appliance.tuning.adapters import ensure_signing_key

    ensure_signing_key(home)
    _ensure_operator_key(home)


def _ensure_operator_key(home: Home) -> None:
    from appliance.registry.roles import Role  # half a second: only where a key may be made
    from appliance.registry.store import Registry

    path = operator_key(home)
    with Registry.open(home) as registry:
        known = path.read_text(encoding="ascii").strip() if path.exists() else ""
        if registry.api_keys.authenticate(known) is not None:
            return
        # A kill between making a key and writing it down leaves one nobody can use.
        for key in registry.api_keys.list():
            if key.name == _OPERATOR_KEY_NAME and key.role is Role.OPERATOR and not key.revoked:
                registry.api_keys.revoke(key.id)
        key, plaintext = registry.api_keys.create(_OPERATOR_KEY_NAME, Role.OPERATOR)
        write_whole(path, plaintext.encode("ascii"), mode=0o600)
    record(home, "key.create", {"key": key.id, "role": str(key.role.value)})
