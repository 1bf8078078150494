"""``node.json``: what one host of a site is to know of itself and of its neighbours.

    node = read(home)
    node.head_address

The controller writes it from ``site.yaml`` (:mod:`appliance.install.site_credentials`), root owns
it on the host, and every process there reads it instead of the site: a host knows its own domain's
addresses and no more. An embedded installation has none. It holds no secret.

Read strictly: a field that is missing, unknown or of another type is refused, because a process
that guesses an address binds to the wrong network.
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from appliance.errors import NodeFileInvalid
from appliance.layout import Home
from appliance.manifests.site import Purpose

_LONGEST = 1 << 20
_STRICT = ConfigDict(extra="forbid", strict=True)


def _literal(text: str) -> str:
    """A literal address, in the one form in which it is compared."""
    if str(ipaddress.ip_address(text)) != text:
        raise ValueError(f"{text} is not an address in its usual form")
    return text


Address = Annotated[str, AfterValidator(_literal)]
Port = Annotated[int, Field(ge=1, le=65535)]


@dataclass(frozen=True, slots=True)
class DomainNodes:
    """A trust domain as the gateway reaches it: the head's address, and every Ray host's."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    domain: str
    head: Address
    nodes: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class GatewayNode:
    """The part of the host that callers talk to. ``addresses`` are those it listens on."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    port: Port
    addresses: tuple[Address, ...]
    serving: DomainNodes
    tuning: DomainNodes | None


@dataclass(frozen=True, slots=True)
class NodeFile:
    """One host.

    ``domain``, ``purpose`` and ``head_address`` are None, and ``peers`` is empty, on a host without
    Ray. ``address`` is the one in the cluster network, or the management one on a host that is in
    none. ``peers`` are all Ray hosts of the domain, this one too. ``shared`` is where the site's
    shared storage is mounted. ``replicas`` is how many model servers the serving domain runs.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    version: Literal[1]
    site: str
    host: str
    domain: str | None
    purpose: Annotated[Purpose, Field(strict=False)] | None
    head: bool
    worker: bool
    address: Address
    head_address: Address | None
    peers: tuple[Address, ...]
    seal: Literal["firewall"]
    release: str
    shared: str | None
    replicas: Annotated[int, Field(ge=1)]
    gateway: GatewayNode | None

    @property
    def runs_ray(self) -> bool:
        """Whether a raylet belongs on this host."""
        return self.head or self.worker


_SHAPE = TypeAdapter(NodeFile)


def path(home: Home) -> Path:
    """Where a host keeps it; absent in an embedded installation."""
    return home.root / "node.json"


def parse(data: bytes, name: str = "node.json") -> NodeFile:
    """The file's value. Raises :class:`NodeFileInvalid` naming the first mistake."""
    try:
        node = _SHAPE.validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise NodeFileInvalid(path=name, reason=f"{where}: {first['msg']}") from error
    if node.runs_ray and (
        node.domain is None
        or node.purpose is None
        or node.head_address is None
        or node.address not in node.peers
        or (node.head and node.head_address != node.address)
    ):
        raise NodeFileInvalid(path=name, reason="a Ray host names its domain, its head and itself")
    return node


def read(home: Home) -> NodeFile:
    """This host's file. Raises :class:`NodeFileInvalid`, also where there is none."""
    file = path(home)
    try:
        with file.open("rb") as opened:
            return parse(opened.read(_LONGEST), str(file))
    except OSError as error:
        raise NodeFileInvalid(path=file, reason=error.strerror or str(error)) from error


def read_if_any(home: Home) -> NodeFile | None:
    """This host's file; None in an embedded installation. Raises :class:`NodeFileInvalid`."""
    return read(home) if path(home).exists() else None


def as_bytes(node: NodeFile) -> bytes:
    """The file's content: the same bytes for the same value."""
    return (json.dumps(asdict(node), indent=2) + "\n").encode("ascii")
