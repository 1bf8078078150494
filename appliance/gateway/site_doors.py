"""A site's trust domains as its gateway reaches them: through the relay of each host.

The relay of a host listens on its cluster address with a certificate of the domain's relay
authority, and lets in who shows one of the same authority; only the gateway's host has one
(:mod:`appliance.install.site_credentials`). What the gateway needs of a domain lies in
``Home/domains/<name>``. Nothing is reached in clear, and no name is resolved.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from appliance.cluster.node_file import DomainNodes
from appliance.cluster.ports import at
from appliance.gateway.replicas import Target
from appliance.gateway.secret_files import read_secret
from appliance.layout import Home
from appliance.manifests import site_ports


@dataclass(frozen=True)
class DomainDoor:
    """One trust domain."""

    domain: DomainNodes
    folder: Path

    @classmethod
    def of(cls, home: Home, domain: DomainNodes) -> DomainDoor:
        """The domain as ``home``, the gateway host's, reaches it."""
        return cls(domain, home.root / "domains" / domain.domain)

    @property
    def dashboard(self) -> str:
        """The base URL of Ray's dashboard."""
        return f"https://{at(self.domain.head, site_ports.RELAY_DASHBOARD)}"

    @property
    def serve(self) -> str:
        """The base URL of Serve's proxy."""
        return f"https://{at(self.domain.head, site_ports.RELAY_SERVE)}"

    @property
    def token(self) -> str:
        """Ray's token; empty if it is missing."""
        return read_secret(self.folder / "ray.token")

    @property
    def serve_key(self) -> str:
        """What Serve's ingress demands; empty if it is missing."""
        return read_secret(self.folder / "serve.key")

    @cached_property
    def trust(self) -> ssl.SSLContext:
        """Trust in the domain's relays and in nobody else, and what to show them.

        Raises :class:`OSError` (:class:`ssl.SSLError`) where a file is missing or unfit.
        """
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.minimum_version = ssl.TLSVersion.TLSv1_3
        made.load_verify_locations(self.folder / "relay-ca.pem")
        made.load_cert_chain(self.folder / "client.pem", self.folder / "client.key")
        return made


def relay(target: Target) -> str:
    """The base URL of the relay in front of a replica: its port, moved."""
    port = target.port - site_ports.REPLICAS.start + site_ports.RELAY_REPLICAS.start
    return f"https://{at(target.address, port)}"
