"""What a host is like, as the probe that was sent there could tell: values, and no more.

    facts.memory.total                      # bytes, or None: the host could not tell
    facts.unknown.get("memory")             # why not, where it said so

They are made of what :mod:`~appliance.provision.host_facts` printed by
:mod:`~appliance.provision.facts_reader`, which reads each field by the type that it has here. What
they *mean* is for :mod:`~appliance.provision.checks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)

Address = IPv4Address | IPv6Address
AddressWithNetwork = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class System:
    """``/etc/os-release`` and uname. ``id`` is "debian", ``version`` "12", ``machine`` "x86_64"."""

    id: str | None = None
    version: str | None = None
    name: str | None = None
    kernel: str | None = None
    machine: str | None = None
    time_zone: str | None = None


@dataclass(frozen=True, slots=True)
class Cpu:
    """``flags`` None: the kernel does not list them."""

    cores: int | None = None
    model: str | None = None
    flags: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. ``limit`` is the control group's, where there is one."""

    total: int | None = None
    swap: int | None = None
    limit: int | None = None
    open_files: int | None = None


@dataclass(frozen=True, slots=True)
class Systemd:
    """``first`` is the name of process 1."""

    first: str | None = None
    version: int | None = None
    state: str | None = None
    failed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Interface:
    """One network interface: MTU in bytes, speed in Mbit/s (None: it does not say)."""

    name: str
    state: str | None = None
    mtu: int | None = None
    speed: int | None = None
    addresses: tuple[AddressWithNetwork, ...] | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """``via`` None: the network is on the wire itself."""

    to: Network
    via: Address | None
    device: str


@dataclass(frozen=True, slots=True)
class Listener:
    """A port that is taken: by which program and systemd service, where root could see it."""

    protocol: str
    address: Address
    port: int
    process: str | None = None
    program: str | None = None
    unit: str | None = None


@dataclass(frozen=True, slots=True)
class Process:
    """A process whose name matters here."""

    name: str
    program: str | None = None
    unit: str | None = None


@dataclass(frozen=True, slots=True)
class Connection:
    """What came of a TCP connection to ``address``.

    ``outcome`` is open, refused, forbidden (by a firewall here), timeout or unreachable;
    ``segment`` is the largest TCP segment that both ends agreed on, in bytes.
    """

    name: str
    address: Address
    port: int
    outcome: str
    segment: int | None = None


@dataclass(frozen=True, slots=True)
class Folder:
    """The file system that ``asked`` lies on, or would lie on. Sizes in bytes."""

    asked: str
    mount: str
    device: int
    free: int
    block: int
    exists: bool = False
    type: str = ""
    source: str = ""
    options: frozenset[str] = frozenset()
    inodes: int | None = None


@dataclass(frozen=True, slots=True)
class DiskWrite:
    """Bytes that were written and fsynced in so many milliseconds."""

    bytes: int
    milliseconds: int


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU as its driver names it; ``memory`` in bytes, ``compute`` "9.0"."""

    name: str
    memory: int | None = None
    compute: str | None = None
    mig: bool = False


@dataclass(frozen=True, slots=True)
class Gpu:
    """``devices`` and ``switches`` are what the PCI bus has, ``cards`` what the driver sees."""

    devices: int = 0
    switches: int = 0
    cards: tuple[Card, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    nouveau: bool = False


@dataclass(frozen=True, slots=True)
class Installed:
    """What is in the site's folder. ``blobs`` are the first 16 digits of their digests, None if
    there are too many to tell; ``runtimes`` the releases whose environment is complete."""

    site: str | None = None
    host: str | None = None
    current: str | None = None
    releases: frozenset[str] = frozenset()
    runtimes: frozenset[str] = frozenset()
    blobs: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Security:
    """``selinux`` is enforcing, permissive or None (not there)."""

    selinux: str | None = None
    apparmor: bool = False
    profiles: int | None = None
    secure_boot: bool | None = None


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Everything that a host said about itself. None: it could not tell, or not in time.

    ``unknown`` is why, by the name that the probe has for it, or by a folder's path.
    """

    uid: int | None = None
    user: str | None = None
    hostname: str | None = None
    machine_id: str | None = None
    boot_id: str | None = None
    system: System = System()
    cpu: Cpu = Cpu()
    memory: Memory = Memory()
    systemd: Systemd = Systemd()
    services: dict[str, str] | None = None
    packages: dict[str, str] | None = None
    processes: tuple[Process, ...] = ()
    security: Security = Security()
    pythons: frozenset[str] | None = None
    python_running: str | None = None
    interfaces: tuple[Interface, ...] | None = None
    routes: tuple[Route, ...] | None = None
    listeners: tuple[Listener, ...] | None = None
    firewall: tuple[str, ...] | None = None
    connections: tuple[Connection, ...] | None = None
    name_servers: tuple[str, ...] = ()
    answers: dict[str, int | None] = field(default_factory=dict)
    own_name_found: bool | None = None
    own_name_ms: int | None = None
    clock_synchronised: bool | None = None
    folders: tuple[Folder, ...] = ()
    disk: DiskWrite | None = None
    gpu: Gpu | None = None
    installed: Installed | None = None
    unknown: Mapping[str, str] = field(default_factory=dict)

    def folder(self, asked: str) -> Folder | None:
        """The file system of a folder that was asked for."""
        return next((each for each in self.folders if each.asked == asked), None)

    def interface_of(self, address: Address) -> Interface | None:
        """The interface that has ``address``."""
        return next(
            (
                each
                for each in self.interfaces or ()
                if any(one.ip == address for one in each.addresses or ())
            ),
            None,
        )

    @property
    def sealed(self) -> bool:
        """Whether its seal is closed, or being closed: a run may have ended before it was confirmed
        and kept by its service."""
        return self.service("sovctl-egress") or "inet sovctl" in (self.firewall or ())

    def service(self, name: str) -> bool:
        """Whether a systemd service is active or about to be."""
        return (self.services or {}).get(name) in {"active", "activating", "reloading"}
