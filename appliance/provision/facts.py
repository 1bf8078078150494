"""What :mod:`~appliance.provision.host_facts` printed on a host, as values that are what their
types say.

    facts = read_facts(completed.stdout)
    facts.memory.total                      # bytes, or None: the host could not tell

The host may be anybody's by now, so nothing it says is believed to have a shape: whatever is not
what was asked for is None or left out, texts lose control characters and end at 200 characters,
lists at some thousand entries. Only an answer that is no answer at all is an error
(:class:`FactsUnreadable`). What the facts *mean* is for :mod:`~appliance.provision.checks`.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import TypeVar

from appliance.provision import host_facts

Address = IPv4Address | IPv6Address
AddressWithNetwork = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

MAX_ANSWER = 8 << 20  # bytes; 50,000 blobs are 1 MB
_MAX_TEXT = 200
_MAX_LIST = 5000
_MAX_NUMBER = 2**63

T = TypeVar("T")


class FactsUnreadable(ValueError):
    """The host printed something that is no answer of the probe."""


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
    exists: bool
    mount: str
    type: str
    source: str
    options: frozenset[str]
    device: int
    free: int
    block: int
    inodes: int | None


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
    """Everything that a host said about itself. None: it could not tell, or not in time."""

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


def read_facts(answer: bytes) -> HostFacts:
    """The facts in what the probe printed. Raises :class:`FactsUnreadable`."""
    if len(answer) > MAX_ANSWER:
        raise FactsUnreadable(f"the answer has {len(answer)} bytes")
    mark = host_facts.MARK.encode()
    lines = [line for line in answer.splitlines() if line.startswith(mark)]
    if not lines:
        raise FactsUnreadable("there is no answer in what was printed")
    try:
        value = json.loads(lines[-1][len(mark) :])
    except (ValueError, RecursionError) as error:
        raise FactsUnreadable("the answer is not JSON") from error
    if not isinstance(value, dict):
        raise FactsUnreadable("the answer is not an object")
    return _host(_Fields(value))


class _Fields:
    """An object of unknown content, asked for fields of known types."""

    def __init__(self, value: object) -> None:
        self._value = value if isinstance(value, dict) else {}

    def has(self, name: str) -> bool:
        """Whether the field says anything."""
        return self._value.get(name) is not None

    def part(self, name: str) -> _Fields:
        return _Fields(self._value.get(name))

    def text(self, name: str) -> str | None:
        return _text(self._value.get(name))

    def number(self, name: str) -> int | None:
        return _number(self._value.get(name))

    def flag(self, name: str) -> bool | None:
        value = self._value.get(name)
        return value if isinstance(value, bool) else None

    def raw(self, name: str) -> list[object] | None:
        value = self._value.get(name)
        return value[:_MAX_LIST] if isinstance(value, list) else None

    def texts(self, name: str) -> tuple[str, ...] | None:
        values = self.raw(name)
        return None if values is None else _those(map(_text, values))

    def parts(self, name: str, make: Callable[[_Fields], T | None]) -> tuple[T, ...] | None:
        """Each object of a list through ``make``; those it cannot make are left out."""
        values = self.raw(name)
        return None if values is None else _those(make(_Fields(value)) for value in values)

    def texts_by_text(self, name: str) -> dict[str, str] | None:
        value = self._value.get(name)
        if not isinstance(value, dict):
            return None
        pairs = ((_text(key), _text(each)) for key, each in list(value.items())[:_MAX_LIST])
        return {key: each for key, each in pairs if key is not None and each is not None}

    def numbers_by_text(self, name: str) -> dict[str, int | None]:
        value = self._value.get(name)
        if not isinstance(value, dict):
            return {}
        pairs = ((_text(key), _number(each)) for key, each in list(value.items())[:_MAX_LIST])
        return {key: each for key, each in pairs if key is not None}


def _those(values: Iterable[T | None]) -> tuple[T, ...]:
    return tuple(value for value in values if value is not None)


def _text(value: object) -> str | None:
    if not isinstance(value, str):
        return None
    kept = value[:_MAX_TEXT]
    if kept.isascii() and kept.isprintable():
        return kept
    return "".join(c for c in kept if unicodedata.category(c)[0] != "C")


def _number(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value < _MAX_NUMBER else None


def _parsed(parse: Callable[[str], T], text: str | None) -> T | None:
    """``parse`` for texts of a host; addresses with a scope (``%eth0``) lose it."""
    if text is None:
        return None
    try:
        return parse(text.partition("%")[0])
    except ValueError:
        return None


def _host(facts: _Fields) -> HostFacts:
    user, identity, dns = facts.part("user"), facts.part("identity"), facts.part("dns")
    python, name = facts.part("python"), facts.part("own_name")
    pythons = python.texts("versions")
    return HostFacts(
        uid=user.number("uid"),
        user=user.text("name"),
        hostname=identity.text("hostname"),
        machine_id=identity.text("machine_id"),
        boot_id=identity.text("boot_id"),
        system=_system(facts.part("system")),
        cpu=_cpu(facts.part("cpu")),
        memory=_memory(facts.part("memory")),
        systemd=_systemd(facts.part("systemd")),
        services=facts.texts_by_text("services"),
        packages=facts.texts_by_text("packages"),
        processes=facts.parts("processes", _process) or (),
        security=_security(facts.part("security")),
        pythons=None if pythons is None else frozenset(pythons),
        python_running=python.text("running"),
        interfaces=facts.parts("interfaces", _interface),
        routes=facts.parts("routes", _route),
        listeners=facts.parts("ports", _listener),
        firewall=facts.texts("firewall"),
        connections=facts.parts("connections", _connection),
        name_servers=dns.texts("servers") or (),
        answers=dns.numbers_by_text("answers"),
        own_name_found=name.flag("found"),
        own_name_ms=name.number("milliseconds"),
        clock_synchronised=facts.part("clock").flag("synchronised"),
        folders=facts.parts("folders", _folder) or (),
        disk=_disk(facts.part("disk")),
        gpu=_gpu(facts.part("gpu")) if facts.has("gpu") else None,
        installed=_installed(facts.part("installed")) if facts.has("installed") else None,
    )


def _system(part: _Fields) -> System:
    return System(
        id=part.text("id"),
        version=part.text("version"),
        name=part.text("name"),
        kernel=part.text("kernel"),
        machine=part.text("machine"),
        time_zone=part.text("time_zone"),
    )


def _cpu(part: _Fields) -> Cpu:
    flags = part.texts("flags")
    return Cpu(
        part.number("cores"), part.text("model"), None if flags is None else frozenset(flags)
    )


def _memory(part: _Fields) -> Memory:
    return Memory(
        total=part.number("total"),
        swap=part.number("swap"),
        limit=part.number("limit"),
        open_files=part.number("open_files"),
    )


def _systemd(part: _Fields) -> Systemd:
    return Systemd(
        first=part.text("first"),
        version=part.number("version"),
        state=part.text("state"),
        failed=part.texts("failed") or (),
    )


def _security(part: _Fields) -> Security:
    return Security(
        selinux=part.text("selinux"),
        apparmor=part.flag("apparmor") or False,
        profiles=part.number("profiles"),
        secure_boot=part.flag("secure_boot"),
    )


def _process(part: _Fields) -> Process | None:
    name = part.text("name")
    return Process(name, part.text("program"), part.text("unit")) if name else None


def _interface(part: _Fields) -> Interface | None:
    name = part.text("name")
    if not name:
        return None
    addresses = part.texts("addresses")
    return Interface(
        name=name,
        state=part.text("state"),
        mtu=part.number("mtu"),
        speed=part.number("speed"),
        addresses=None
        if addresses is None
        else _those(_parsed(ip_interface, each) for each in addresses),
    )


def _route(part: _Fields) -> Route | None:
    to, device = _parsed(ip_network, part.text("to")), part.text("device")
    if to is None or not device:
        return None
    return Route(to, _parsed(ip_address, part.text("via")), device)


def _listener(part: _Fields) -> Listener | None:
    protocol, port = part.text("protocol"), part.number("port")
    address = _parsed(ip_address, part.text("address"))
    if protocol not in {"tcp", "udp"} or address is None or port is None or port > 65535:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return Listener(
        protocol=protocol,
        address=mapped or address,
        port=port,
        process=part.text("process"),
        program=part.text("program"),
        unit=part.text("unit"),
    )


def _connection(part: _Fields) -> Connection | None:
    name, outcome = part.text("name"), part.text("outcome")
    address, port = _parsed(ip_address, part.text("address")), part.number("port")
    if not name or address is None or port is None:
        return None
    known = outcome if outcome in {"open", "refused", "forbidden", "timeout"} else "unreachable"
    return Connection(name, address, port, known, part.number("segment"))


def _folder(part: _Fields) -> Folder | None:
    asked, mount, free = part.text("asked"), part.text("mount"), part.number("free")
    device, block = part.number("device"), part.number("block")
    if not asked or not mount or free is None or device is None or not block:
        return None
    return Folder(
        asked=asked,
        exists=part.flag("exists") or False,
        mount=mount,
        type=part.text("type") or "",
        source=part.text("source") or "",
        options=frozenset(part.texts("options") or ()),
        device=device,
        free=free,
        block=block,
        inodes=part.number("inodes"),
    )


def _disk(part: _Fields) -> DiskWrite | None:
    written, took = part.number("bytes"), part.number("milliseconds")
    return DiskWrite(written, max(took, 1)) if written and took is not None else None


def _gpu(part: _Fields) -> Gpu:
    return Gpu(
        devices=part.number("devices") or 0,
        switches=part.number("switches") or 0,
        cards=part.parts("cards", _card) or (),
        driver=part.text("driver"),
        cuda=part.text("cuda"),
        nouveau=part.flag("nouveau") or False,
    )


def _card(part: _Fields) -> Card | None:
    name = part.text("name")
    if not name:
        return None
    return Card(name, part.number("memory"), part.text("compute"), part.flag("mig") or False)


def _installed(part: _Fields) -> Installed:
    def release(each: _Fields) -> tuple[str, bool] | None:
        name = each.text("name")
        return (name, each.flag("runtime") or False) if name else None

    releases = part.parts("releases", release) or ()
    blobs = part._value.get("blobs")
    return Installed(
        site=part.text("site"),
        host=part.text("host"),
        current=part.text("current"),
        releases=frozenset(name for name, _runtime in releases),
        runtimes=frozenset(name for name, runtime in releases if runtime),
        blobs=frozenset(each for each in blobs if isinstance(each, str) and len(each) == 16)
        if isinstance(blobs, list)
        else None,
    )
