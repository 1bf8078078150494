"""The embedded appliance's own certificate authority and the certificates it issues. Idempotent.

``tls/ca.pem`` is what a client is given. Its key, ``secrets/ca.key``, is needed only here, outside
the seal, where it reads as empty. Leaves: ``gateway`` for callers, ``ray`` for Ray's gRPC (both a
server's and a client's certificate, as Ray presents it as both).
"""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from pathlib import Path

from appliance.cluster.files import write_whole
from appliance.layout import Home
from appliance.trust import site_ca
from appliance.trust.site_ca import Leaf, Pair


def leaves(hostname: str) -> tuple[Leaf, ...]:
    """The certificates an embedded appliance has."""
    named = dict.fromkeys(("localhost", hostname))
    return (
        Leaf("gateway", tuple(name for name in named if name), ("127.0.0.1", "::1")),
        Leaf("ray", ("localhost",), ("127.0.0.1", "::1")),
    )


def ca_key(home: Home) -> Path:
    """Where the authority's private key is; hidden inside the seal."""
    return home.secrets / "ca.key"


def ensure(home: Home) -> None:
    """Make what is missing, renew what expires within 30 days, leave the rest as it is."""
    home.secrets.mkdir(parents=True, exist_ok=True, mode=0o700)
    home.secrets.chmod(0o700)
    hostname, now = socket.gethostname(), datetime.now(UTC)
    authority = ensure_authority(home.tls / "ca.pem", ca_key(home), f"Site CA {hostname}", now)
    for leaf in leaves(hostname):
        pem, key = home.tls / f"{leaf.name}.pem", home.secrets / f"{leaf.name}.key"
        ensure_leaf(pem, key, leaf, authority, now)


def ensure_authority(pem: Path, key: Path, common_name: str, now: datetime) -> Pair:
    """The authority in two files, made if it is missing, damaged or near its end."""
    found = load(pem, key)
    if found is not None and site_ca.fresh(found[0], now):
        return found
    made = site_ca.make_authority(common_name, now)
    store(pem, key, made)
    return made


def ensure_leaf(pem: Path, key: Path, leaf: Leaf, authority: Pair, now: datetime) -> None:
    """The leaf in two files, issued anew unless what is there still serves."""
    found = load(pem, key)
    if found is None or not site_ca.serves(found[0], leaf, authority[0], now):
        store(pem, key, site_ca.issue(leaf, authority, now))


def load(pem: Path, key: Path) -> Pair | None:
    """A certificate and the key that belongs to it; None if either is absent or they differ."""
    try:
        return site_ca.load(pem.read_bytes(), key.read_bytes())
    except OSError:
        return None


def store(pem: Path, key: Path, pair: Pair) -> None:
    """Key first: a certificate without its key would be renewed, a key alone is harmless."""
    write_whole(key, site_ca.key_pem(pair[1]), mode=0o600)
    write_whole(pem, site_ca.certificate_pem(pair[0]))
