"""Try to get out, from inside any process. Sends nothing unless the seal is closed.

Every attempt goes to an address reserved for documentation (RFC 5737 TEST-NET, RFC 3849), so that
even an open seal would reach nobody; and before the first packet ``/proc`` must show what the seal
is made of. Embedded that is loopback and nothing else. On a host of a site (``SOVCTL_SEAL`` is
``firewall``) there are other interfaces and the host's firewall is the seal: then there must be no
default route, unless the site says why there is one (:data:`ROUTE_REASON`). If it is not so, the
one result is ``not-sealed`` and nothing is sent.

What a firewall's refusal looks like to the sender, tried on Linux 6.1 and 6.18 with the reject of
:mod:`appliance.egress.ruleset`: ``EHOSTUNREACH`` for TCP, ``EPERM`` for UDP and ICMP; over IPv6
``EACCES`` for TCP (after a second) and ``EPERM`` for UDP. A peer's refusal is another:
``ECONNREFUSED``. A router's may be the same as ours for TCP, so the proof of a site also reads the
firewall's own counters (:mod:`appliance.egress.host_probe`).

A probe that fails proves nothing alone: it may be the probe that is broken. So the same TCP and UDP
probes are made to a listener inside the namespace (the control) and must succeed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from appliance.egress import live

TEST_IPV4 = "192.0.2.1"
TEST_DNS = "198.51.100.53"
TEST_IPV6 = "2001:db8::1"
ROUTE_REASON = Path("/etc/sovctl/default-route")
"""Written by the role ``egress`` as root: the site's reason, or an empty line."""

_SECONDS = 2.0
_AF_VSOCK = 40
_PAYLOAD = b"appliance egress probe"

Outcome = Literal["blocked", "reached", "unclear", "not-sealed", "control-ok", "control-failed"]


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One attempt. ``detail`` is the kernel's answer, ``probe`` the kind, ``target`` where to."""

    probe: str
    target: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True, slots=True)
class Listener:
    """Where the control answers: a port on loopback, TCP and UDP."""

    host: str
    port: int


def probe_all(listener: Listener) -> list[ProbeResult]:
    """Every probe and both controls, within some ten seconds. Raises nothing."""
    seen = live.observe("self")
    if not _closed(seen):
        detail = f"interfaces {' '.join(seen.interfaces)}; routes {'; '.join(seen.routes)}"
        return [ProbeResult("seal", "/proc/self/net", "not-sealed", detail)]
    return [
        _control("control-tcp", listener, _tcp),
        _control("control-udp", listener, _udp_echo),
        _attempt("tcp", TEST_IPV4, lambda: _tcp(TEST_IPV4, 443)),
        _attempt("udp", TEST_IPV4, lambda: _udp_send(TEST_IPV4, 9, _PAYLOAD)),
        _attempt("dns", TEST_DNS, lambda: _udp_send(TEST_DNS, 53, dns_query("probe.invalid"))),
        _attempt("icmp", TEST_IPV4, _ping),
        _attempt("tcp-ipv6", TEST_IPV6, lambda: _tcp(TEST_IPV6, 443)),
        _attempt("vsock", "the hypervisor", _vsock),
    ]


def _closed(seen: live.Observation) -> bool:
    """Whether ``/proc`` shows the seal that this process is meant to be in."""
    if os.environ.get("SOVCTL_SEAL") != "firewall":
        return seen.no_way_out
    return not seen.default_routes or route_reason() != ""


def route_reason() -> str:
    """Why this host keeps its default route; empty if it is to have none."""
    try:
        return ROUTE_REASON.read_text("utf-8").strip()
    except OSError:
        return ""


@contextmanager
def control_listener() -> Iterator[Listener]:
    """Answer TCP and UDP on a free loopback port for the length of a ``with`` block."""
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        port = int(tcp.getsockname()[1])
        udp.bind(("127.0.0.1", port))
        for each in (tcp, udp):
            each.settimeout(0.2)
        done = threading.Event()
        threads = [
            threading.Thread(target=_answer_tcp, args=(tcp, done)),
            threading.Thread(target=_answer_udp, args=(udp, done)),
        ]
        for thread in threads:
            thread.start()
        try:
            yield Listener("127.0.0.1", port)
        finally:
            done.set()
            for thread in threads:
                thread.join()


def dns_query(name: str) -> bytes:
    """A question for the A record of ``name``, RFC 1035 section 4."""
    labels = b"".join(bytes([len(label)]) + label.encode("ascii") for label in name.split("."))
    return struct.pack(">HHHHHH", 0x5EA1, 0x0100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"


# The kernel's ways to say that a packet was not sent. A timeout is not among them: the packet may
# have left, and a refusal (ECONNREFUSED) came from somebody.
_NOT_SENT = {
    errno.ENETUNREACH,
    errno.ENETDOWN,
    errno.EHOSTUNREACH,
    errno.EADDRNOTAVAIL,
    errno.EACCES,
    errno.EPERM,
    errno.EAFNOSUPPORT,
    errno.EPROTONOSUPPORT,
}


def _attempt(probe: str, target: str, send: Callable[[], str]) -> ProbeResult:
    try:
        detail = send()
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, type(error).__name__)
        if error.errno in _NOT_SENT:
            return ProbeResult(probe, target, "blocked", name)
        answered = error.errno in (errno.ECONNREFUSED, errno.ECONNRESET)
        return ProbeResult(probe, target, "reached" if answered else "unclear", name)
    return ProbeResult(probe, target, "reached", detail)


def _control(probe: str, listener: Listener, send: Callable[[str, int], str]) -> ProbeResult:
    target = f"{listener.host}:{listener.port}"
    try:
        return ProbeResult(probe, target, "control-ok", send(listener.host, listener.port))
    except OSError as error:
        return ProbeResult(probe, target, "control-failed", str(error))


def _tcp(host: str, port: int) -> str:
    with socket.create_connection((host, port), timeout=_SECONDS):
        return "connected"


def _udp_send(host: str, port: int, payload: bytes) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.sendto(payload, (host, port))
        return "sent"


def _udp_echo(host: str, port: int) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(_SECONDS)
        udp.sendto(_PAYLOAD, (host, port))
        if udp.recv(len(_PAYLOAD)) != _PAYLOAD:
            raise OSError("another answer than the question")
        return "answered"


def _ping() -> str:
    """An echo request on an unprivileged ICMP socket; most machines refuse the socket already."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as icmp:
        icmp.sendto(struct.pack(">BBHHH", 8, 0, 0xF7FF, 0, 0), (TEST_IPV4, 0))
        return "sent"


def _vsock() -> str:
    """Only asks for the socket; that it can be had is already the failure."""
    with socket.socket(_AF_VSOCK, socket.SOCK_STREAM):
        return f"socket granted to process {os.getpid()}"


def _answer_tcp(server: socket.socket, done: threading.Event) -> None:
    while not done.is_set():
        with contextlib.suppress(OSError):
            server.accept()[0].close()


def _answer_udp(server: socket.socket, done: threading.Event) -> None:
    while not done.is_set():
        with contextlib.suppress(OSError):
            payload, caller = server.recvfrom(len(_PAYLOAD))
            server.sendto(payload, caller)
