"""Try to get out of one host of a site, as root and as the appliance's user. Standard library only.

This file is a program: the controller sends its text over SSH to ``python3 -``, followed by
``print(main(ORDER))`` (:func:`program`). It needs root, reads the firewall and its counters, makes
the attempts, reads the counters again, and prints one JSON object (:class:`Report`). It writes
nothing on the host.

Attempts go to addresses reserved for documentation (RFC 5737, RFC 3849), as in
:mod:`appliance.egress.probe`. A host without a default route refuses them before the firewall sees
them. But a route is not needed to send: a socket bound to an interface (``SO_BINDTODEVICE``, any
user may since Linux 5.7) takes every IPv4 address for a neighbour. So each attempt is made a second
time like that, over every interface that carries one of the site's addresses; there the firewall is
the only wall, and it must count. For IPv6 the address is link-local, where a route always is.

Nothing is sent unless the seal's table is loaded and there is no default route (or a reason for
one), except with ``control``: before a host is sealed, that shows what the attempts would reach, by
the routes there are.

Whether the loaded rules are the rendered ones is found by loading the rendered ones into a network
namespace that ends with the question: the same nft and kernel print both.
"""

from __future__ import annotations

import errno
import json
import os
import pwd
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

TEST_IPV4 = "192.0.2.1"
TEST_DNS = "198.51.100.53"
TEST_IPV6 = "2001:db8::1"
_LINK_LOCAL = "fe80::5ea1"
_TABLE = ("inet", "sovctl")
_SECONDS = 2.0
_CONFIRMED = Path("/etc/sovctl/egress.nft")
_REASON = Path("/etc/sovctl/default-route")
_NOT_SENT = {
    errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EACCES,
    errno.EPERM, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT,
}  # fmt: skip


class Order(TypedDict):
    """What is asked: ``ruleset`` is the rendered text, ``addresses`` the host's in the site."""

    ruleset: str
    addresses: list[str]
    user: str
    attempts: bool
    control: bool


class Attempt(TypedDict):
    """One attempt, in the words of :class:`appliance.egress.probe.ProbeResult`."""

    probe: str
    target: str
    outcome: str
    detail: str


class Report(TypedDict):
    """What the host says.

    ``ruleset`` is ``same``, ``differs``, ``missing`` or ``unknown``; ``difference`` the first lines
    that differ; ``boots`` whether the next boot loads the rendered ruleset; ``guard`` whether the
    guard is running; ``before`` and ``after`` are the named counters.
    """

    ruleset: str
    difference: list[str]
    boots: bool
    guard: bool
    pending: bool
    default_routes: list[str]
    route_reason: str
    foreign_tables: list[str]
    ipv6: bool
    before: dict[str, int]
    after: dict[str, int]
    attempts: list[Attempt]


def program(order: Order) -> bytes:
    """This file's text with ``order``: what ``python3 -`` is to run."""
    return f"{Path(__file__).read_text('utf-8')}\nprint(main({order!r}))\n".encode()


def main(order: Order) -> str:
    """The report as JSON."""
    live = _output("nft", "-s", "list", "table", *_TABLE)
    links = _links(order["addresses"])
    report: Report = {
        **_compared(live, order["ruleset"]),  # type: ignore[typeddict-item]
        "boots": _read(_CONFIRMED) == order["ruleset"],
        "guard": _output("systemctl", "is-active", "sovctl-egress-guard.service") == "active\n",
        "pending": Path("/run/sovctl-seal/pending.json").exists(),
        "default_routes": _default_routes(),
        "route_reason": _read(_REASON).strip(),
        "foreign_tables": _foreign_tables(),
        "ipv6": any(name in links for name in _ipv6_links()),
        "before": _counters(),
        "after": {},
        "attempts": [],
    }
    shut = live != "" and (not report["default_routes"] or report["route_reason"] != "")
    if order["control"] or (order["attempts"] and shut):
        for user in ("root", _user(order["user"])):
            report["attempts"] += _as_user(user, lambda: _attempts(links, order["control"]))
    report["after"] = _counters()
    return json.dumps(report)


# --- the firewall ---------------------------------------------------------------------------------


def _compared(live: str, ruleset: str) -> dict[str, object]:
    if not live:
        return {"ruleset": "missing", "difference": []}
    script = "nft -f - && exec nft -s list table inet sovctl"
    made = _output("unshare", "--net", "sh", "-c", script, text=ruleset)
    if not made:
        return {"ruleset": "unknown", "difference": []}
    ours, theirs = made.splitlines(), live.splitlines()
    missing = [f"- {line.strip()}" for line in ours if line not in theirs]
    added = [f"+ {line.strip()}" for line in theirs if line not in ours]
    same = ours == theirs
    return {"ruleset": "same" if same else "differs", "difference": [*missing, *added][:20]}


def _counters() -> dict[str, int]:
    listed = _output("nft", "-j", "list", "table", *_TABLE)
    items = json.loads(listed)["nftables"] if listed else []
    named = [item["counter"] for item in items if "counter" in item]
    return {counter["name"]: int(counter["packets"]) for counter in named}


def _foreign_tables() -> list[str]:
    listed = _output("nft", "list", "tables").splitlines()
    return [line.removeprefix("table ") for line in listed if line != "table inet sovctl"]


def _default_routes() -> list[str]:
    """Of all routing tables. A route to more than 1/256 of all addresses counts as one."""
    found = []
    for family in ("-4", "-6"):
        for line in _output("ip", family, "route", "show", "table", "all").splitlines():
            destination = line.split(" ", 1)[0]
            length = destination.partition("/")[2]
            wide = destination == "default" or (length.isdigit() and int(length) < 8)
            if wide and not destination.startswith(("224.", "ff00:")):
                found.append(line.strip())
    return found


# --- the attempts ---------------------------------------------------------------------------------


def _attempts(links: list[str], control: bool) -> list[tuple[str, str, str, str]]:
    """Every attempt, as the user that this process is."""
    wait = _SECONDS if control else 0.0
    tries: list[tuple[str, str, Callable[[], str]]] = []
    for link in [""] if control else ["", *links]:
        over = f" over {link}" if link else ""
        tries += [
            (f"tcp{over}", TEST_IPV4, partial(_tcp, TEST_IPV4, 443, link)),
            (f"udp{over}", TEST_IPV4, partial(_udp, TEST_IPV4, 9, link, wait)),
            (f"dns{over}", TEST_DNS, partial(_udp, TEST_DNS, 53, link, wait)),
            (f"icmp{over}", TEST_IPV4, partial(_ping, link, wait)),
        ]
        if link:
            near = f"{_LINK_LOCAL}%{link}"
            tries.append((f"ipv6{over}", near, partial(_udp, near, 9, "", 0.0)))
        else:
            tries += [
                ("tcp-ipv6", TEST_IPV6, partial(_tcp, TEST_IPV6, 443, "")),
                ("udp-ipv6", TEST_IPV6, partial(_udp, TEST_IPV6, 9, "", wait)),
            ]
    results = [_controlled()]
    for name, target, attempt in tries:
        results.append((name, target, *_outcome(attempt)))
    return results


def _outcome(attempt: Callable[[], str]) -> tuple[str, str]:
    try:
        return "reached", attempt()
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, type(error).__name__)
        if error.errno in _NOT_SENT:
            return "blocked", name
        answered = error.errno in (errno.ECONNREFUSED, errno.ECONNRESET)
        return ("reached" if answered else "unclear"), name


def _controlled() -> tuple[str, str, str, str]:
    """That this process can send at all: to itself."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = server.getsockname()
            with socket.create_connection(address, timeout=_SECONDS):
                return "control-tcp", "loopback", "control-ok", "connected"
    except OSError as error:
        return "control-tcp", "loopback", "control-failed", str(error)


def _socket(address: str, kind: int, link: str, protocol: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, kind, protocol)
    made.settimeout(_SECONDS)
    if link:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode() + b"\0")
    return made


def _tcp(address: str, port: int, link: str) -> str:
    with _socket(address, socket.SOCK_STREAM, link) as caller:
        caller.connect((address, port))
        return "connected"


def _udp(address: str, port: int, link: str, wait: float) -> str:
    with _socket(address, socket.SOCK_DGRAM, link) as sender:
        where = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0][4]
        sender.sendto(b"appliance egress probe", where)
        return _answer(sender, wait)


def _ping(link: str, wait: float) -> str:
    kind = socket.SOCK_RAW if os.geteuid() == 0 else socket.SOCK_DGRAM
    with _socket(TEST_IPV4, kind, link, socket.IPPROTO_ICMP) as sender:
        sender.sendto(struct.pack(">BBHHH", 8, 0, 0xF7FF, 0, 0), (TEST_IPV4, 0))
        return _answer(sender, wait)


def _answer(sender: socket.socket, wait: float) -> str:
    if wait:
        sender.settimeout(wait)
        try:
            sender.recv(2048)
        except TimeoutError:
            return "sent"
        return "answered"
    return "sent"


# --- the host -------------------------------------------------------------------------------------


def _as_user(user: str, attempts: Callable[[], list[tuple[str, str, str, str]]]) -> list[Attempt]:
    """Make the attempts in a child that is ``user``."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _become(user)
            with os.fdopen(writing, "w") as pipe:
                json.dump(attempts(), pipe)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    rows: list[list[str]] = json.loads(text) if text else [["probe", user, "unclear", "no answer"]]
    return [
        {"probe": f"{name} as {user}", "target": target, "outcome": outcome, "detail": detail}
        for name, target, outcome, detail in rows
    ]


def _become(user: str) -> None:
    if user != "root":
        entry = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)


def _user(wanted: str) -> str:
    """``wanted``, or nobody on a host where it does not exist yet."""
    try:
        return pwd.getpwnam(wanted).pw_name
    except KeyError:
        return "nobody"


def _links(addresses: list[str]) -> list[str]:
    """Names of the interfaces that carry one of ``addresses``."""
    shown: list[dict[str, Any]] = json.loads(_output("ip", "-j", "addr") or "[]")
    return [
        str(link["ifname"])
        for link in shown
        if any(each.get("local") in addresses for each in link.get("addr_info", []))
    ]


def _ipv6_links() -> list[str]:
    return [line.split()[-1] for line in _read(Path("/proc/net/if_inet6")).splitlines()]


def _output(*argv: str, text: str | None = None) -> str:
    """What a program prints; empty if it fails or is not there."""
    path = {**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            argv, input=text, capture_output=True, text=True, check=False, env=path
        )
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""


if __name__ == "__main__" and len(sys.argv) > 1:
    sys.stdout.write(main(json.loads(sys.argv[1])) + "\n")
