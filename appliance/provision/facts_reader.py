"""What the probe (:mod:`~appliance.provision.host_facts`) printed on a host, as values.

    facts = read_facts(completed.stdout)

The host may be anybody's by now, so nothing it says is believed to have a shape. Each field is read
by its type in :mod:`~appliance.provision.facts`: what is of another type is None or left out, texts
lose control characters and end at 200 characters, lists at some thousand entries. Only an answer
that is no answer at all is an error (:class:`FactsUnreadable`).
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, replace
from ipaddress import IPv6Address, ip_address, ip_interface, ip_network
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from appliance.provision import host_facts
from appliance.provision.facts import (
    Address,
    AddressWithNetwork,
    Card,
    Connection,
    Cpu,
    DiskWrite,
    Folder,
    Gpu,
    HostFacts,
    Installed,
    Interface,
    Listener,
    Memory,
    Network,
    Process,
    Route,
    Security,
    System,
    Systemd,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    D = TypeVar("D", bound=DataclassInstance)

T = TypeVar("T")

MAX_ANSWER = 8 << 20  # bytes; 50,000 blobs are 1 MB
_MAX_TEXT = 200
_MAX_LIST = 5000
_MAX_NUMBER = 2**63
_OUTCOMES = frozenset({"open", "refused", "forbidden", "timeout"})


class FactsUnreadable(ValueError):
    """The host printed something that is no answer of the probe."""


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
    return _host(_Part(value))


# --- the types that fields have -------------------------------------------------------------------


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


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _each(value: object, read: Callable[[object], T | None]) -> tuple[T, ...] | None:
    """A list, without what cannot be read."""
    if not isinstance(value, list):
        return None
    return tuple(each for each in map(read, value[:_MAX_LIST]) if each is not None)


def _by_text(value: object, read: Callable[[object], T]) -> dict[str, T] | None:
    """An object whose values are all of one type."""
    if not isinstance(value, dict):
        return None
    pairs = ((_text(key), read(each)) for key, each in list(value.items())[:_MAX_LIST])
    return {key: each for key, each in pairs if key is not None}


def _texts_by_text(value: object) -> dict[str, str] | None:
    read = _by_text(value, _text)
    if read is None:
        return None
    return {key: each for key, each in read.items() if each is not None}


def _texts(value: object) -> frozenset[str] | None:
    texts = _each(value, _text)
    return None if texts is None else frozenset(texts)


def _parsed(parse: Callable[[str], T]) -> Callable[[object], T | None]:
    """``parse`` for texts of a host; addresses with a scope (``%eth0``) lose it."""

    def read(value: object) -> T | None:
        text = _text(value)
        try:
            return None if text is None else parse(text.partition("%")[0])
        except ValueError:
            return None

    return read


_READERS: Mapping[object, Callable[[object], object]] = {
    str: lambda value: _text(value) or None,  # a name, which is never empty
    str | None: _text,
    int: _number,
    int | None: _number,
    bool: _flag,
    bool | None: _flag,
    frozenset[str]: _texts,
    frozenset[str] | None: _texts,
    tuple[str, ...]: lambda value: _each(value, _text),
    tuple[Card, ...]: lambda value: _each(value, lambda each: _Part(each).made(Card)),
    Address: _parsed(ip_address),
    Address | None: _parsed(ip_address),
    Network: _parsed(ip_network),
    tuple[AddressWithNetwork, ...] | None: lambda value: _each(value, _parsed(ip_interface)),
}


class _Part:
    """An object of unknown content, read as a value of known fields."""

    def __init__(self, value: object) -> None:
        self._value = value if isinstance(value, dict) else {}

    def raw(self, name: str) -> object:
        """What the field says; None if it says nothing."""
        return self._value.get(name)

    def part(self, name: str) -> _Part:
        """An object in a field; one that says nothing where there is none."""
        return _Part(self.raw(name))

    def parts(self, name: str, read: Callable[[_Part], T | None]) -> tuple[T, ...] | None:
        """Each object of a list through ``read``; those it cannot read are left out."""
        return _each(self.raw(name), lambda each: read(_Part(each)))

    def made(self, kind: type[D], **known: object) -> D | None:
        """A ``kind``, its fields read by their names and types unless they are ``known``.

        What cannot be read has the field's default; None where a field that has none, and may not
        be None, cannot be read.
        """
        types = get_type_hints(kind)
        values: dict[str, Any] = dict(known)
        for each in fields(kind):
            if each.name in values:
                continue
            value = _READERS[types[each.name]](self.raw(each.name))
            if value is not None or NoneType in get_args(types[each.name]):
                values[each.name] = value
            elif each.default is MISSING:
                return None
        return kind(**values)


# --- a host ---------------------------------------------------------------------------------------


def _host(said: _Part) -> HostFacts:
    user, identity, dns = said.part("user"), said.part("identity"), said.part("dns")
    python, name = said.part("python"), said.part("own_name")
    return HostFacts(
        uid=_number(user.raw("uid")),
        user=_text(user.raw("name")),
        hostname=_text(identity.raw("hostname")),
        machine_id=_text(identity.raw("machine_id")),
        boot_id=_text(identity.raw("boot_id")),
        system=said.part("system").made(System) or System(),
        cpu=said.part("cpu").made(Cpu) or Cpu(),
        memory=said.part("memory").made(Memory) or Memory(),
        systemd=said.part("systemd").made(Systemd) or Systemd(),
        services=_texts_by_text(said.raw("services")),
        packages=_texts_by_text(said.raw("packages")),
        processes=said.parts("processes", lambda each: each.made(Process)) or (),
        security=said.part("security").made(Security) or Security(),
        pythons=_texts(python.raw("versions")),
        python_running=_text(python.raw("running")),
        interfaces=said.parts("interfaces", lambda each: each.made(Interface)),
        routes=said.parts("routes", lambda each: each.made(Route)),
        listeners=said.parts("ports", _listener),
        firewall=_each(said.raw("firewall"), _text),
        connections=said.parts("connections", _connection),
        name_servers=_each(dns.raw("servers"), _text) or (),
        answers=_by_text(dns.raw("answers"), _number) or {},
        own_name_found=_flag(name.raw("found")),
        own_name_ms=_number(name.raw("milliseconds")),
        clock_synchronised=_flag(said.part("clock").raw("synchronised")),
        folders=said.parts("folders", _folder) or (),
        disk=_disk(said.part("disk")),
        gpu=said.part("gpu").made(Gpu) if said.raw("gpu") is not None else None,
        installed=_installed(said.part("installed")) if said.raw("installed") is not None else None,
        unknown={
            **(_texts_by_text(said.raw("unknown")) or {}),
            **dict(said.parts("folders", _why_not) or ()),
        },
    )


def _listener(part: _Part) -> Listener | None:
    found = part.made(Listener)
    if found is None or found.protocol not in {"tcp", "udp"} or found.port > 65535:
        return None
    mapped = found.address.ipv4_mapped if isinstance(found.address, IPv6Address) else None
    return found if mapped is None else replace(found, address=mapped)


def _connection(part: _Part) -> Connection | None:
    outcome = part.raw("outcome")
    known = isinstance(outcome, str) and outcome in _OUTCOMES
    return part.made(Connection, outcome=outcome if known else "unreachable")


def _folder(part: _Part) -> Folder | None:
    found = part.made(Folder)
    return found if found is not None and found.block else None


def _why_not(part: _Part) -> tuple[str, str] | None:
    asked, reason = _text(part.raw("asked")), _text(part.raw("unknown"))
    return (asked, reason) if asked and reason else None


def _disk(part: _Part) -> DiskWrite | None:
    found = part.made(DiskWrite)
    if found is None or not found.bytes:
        return None
    return replace(found, milliseconds=max(found.milliseconds, 1))


def _installed(part: _Part) -> Installed | None:
    def release(each: _Part) -> tuple[str, bool] | None:
        name = _text(each.raw("name"))
        return (name, _flag(each.raw("runtime")) or False) if name else None

    releases = part.parts("releases", release) or ()
    return part.made(
        Installed,
        releases=frozenset(name for name, _runtime in releases),
        runtimes=frozenset(name for name, runtime in releases if runtime),
        blobs=_blobs(part.raw("blobs")),
    )


def _blobs(value: object) -> frozenset[str] | None:
    """All of them: the one list that may be longer than others."""
    if not isinstance(value, list):
        return None
    return frozenset(each for each in value if isinstance(each, str) and len(each) == 16)
