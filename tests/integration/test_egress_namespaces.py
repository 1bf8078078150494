"""The ruleset in the kernel: two network namespaces of our own, one host sealed, one the world.

A network namespace belongs to a thread, and a socket to the namespace it was made in: so a thread
enters, makes a socket, and ends. Needs root, ``ip`` and ``nft``. Nothing leaves the namespaces.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from egress_sites import hospital

from appliance.egress.host_probe import program
from appliance.egress.ruleset import render
from appliance.provision.proof import order_for, results_of

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("nft") or not shutil.which("ip"),
    reason="needs root, nft and ip",
)

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
OUTSIDE = "192.0.2.1"
OPERATOR, PEER, OTHER_DOMAIN = "10.0.0.77", "10.1.0.3", "10.1.0.4"


@dataclass(frozen=True)
class Namespace:
    name: str

    def run(self, *argv: str, text: str | None = None) -> str:
        command = ["ip", "netns", "exec", self.name, *argv]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
        return done.stdout

    def inside(self, make: Callable[[], T]) -> T:
        """What ``make`` returns (a socket, say) when called in this namespace."""
        result: list[T] = []
        failed: list[BaseException] = []

        def enter() -> None:
            try:
                with Path(f"/run/netns/{self.name}").open("rb") as handle:
                    if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                result.append(make())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return result[0]

    def counted(self, name: str) -> int:
        found = json.loads(self.run("nft", "-j", "list", "counter", "inet", "sovctl", name))
        return next(item["counter"]["packets"] for item in found["nftables"] if "counter" in item)


@dataclass(frozen=True)
class World:
    """n2 of the hospital (the serving head) and everybody else."""

    n2: Namespace
    others: Namespace

    def seal(self, change: Callable[[str], str] = lambda text: text) -> None:
        site = hospital()
        self.n2.run("nft", "-f", "-", text=change(render(site, site.host("n2"))))


@pytest.fixture
def world() -> Iterator[World]:
    n2, others = Namespace(f"seal-n2-{os.getpid()}"), Namespace(f"seal-world-{os.getpid()}")
    try:
        for each in (n2, others):
            subprocess.run(["ip", "netns", "add", each.name], check=True)
        link = ("link", "add", "eth0", "netns", n2.name, "type", "veth")
        subprocess.run(["ip", *link, "peer", "eth0", "netns", others.name], check=True)
        addresses = {
            n2: ["10.0.0.2/24", "10.1.0.2/24", "fd00:1::2/64"],
            others: [f"{OPERATOR}/24", f"{PEER}/24", f"{OTHER_DOMAIN}/24", f"{OUTSIDE}/24",
                     "fd00:1::77/64", "2001:db8::1/64"],
        }  # fmt: skip
        for each, own in addresses.items():
            each.run("ip", "link", "set", "lo", "up")
            each.run("ip", "link", "set", "eth0", "up")
            for address in own:
                flags = ["nodad"] if ":" in address else []
                each.run("ip", "addr", "add", address, "dev", "eth0", *flags)
        n2.run("ip", "route", "add", "default", "via", OPERATOR)
        n2.run("ip", "-6", "route", "add", "default", "via", "fd00:1::77")
        yield World(n2, others)
    finally:
        for each in (n2, others):
            subprocess.run(["ip", "netns", "delete", each.name], check=False)


def listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family)


def call(address: str, port: int, source: str = "") -> int:
    """0 if it connects, else the errno; a timeout is ETIMEDOUT."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as caller:
        caller.settimeout(3)
        if source:
            caller.bind((source, 0))
        answer = caller.connect_ex((address, port))
        return errno.ETIMEDOUT if answer == errno.EAGAIN else answer


def send(address: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        try:
            sender.sendto(b"x", (address, port))
        except OSError as error:
            return error.errno or 0
    return 0


def echo() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        try:
            raw.sendto(b"\x08\0\xf7\xff\0\0\0\0", (OUTSIDE, 0))
        except OSError as error:
            return error.errno or 0
    return 0


def test_the_sender_is_told_by_its_own_kernel_and_it_is_counted(world: World) -> None:
    attempts: list[tuple[str, Callable[[], int], int]] = [
        ("refused_tcp", lambda: call(OUTSIDE, 443), errno.EHOSTUNREACH),
        ("refused_udp", lambda: send(OUTSIDE, 9), errno.EPERM),
        ("refused_dns", lambda: send(OUTSIDE, 53), errno.EPERM),
        ("refused_icmp", echo, errno.EPERM),
        ("refused_ipv6", lambda: call("2001:db8::1", 443), errno.EACCES),
        ("refused_ipv6", lambda: send("2001:db8::1", 443), errno.EPERM),
    ]
    with (
        world.others.inside(lambda: listen(OUTSIDE, 443)),
        world.others.inside(lambda: listen("2001:db8::1", 443)),
    ):
        for name, attempt, _refusal in attempts:
            assert world.n2.inside(attempt) == 0, f"the control for {name}"
        world.seal()
        for name, attempt, refusal in attempts:
            before = world.n2.counted(name)
            assert world.n2.inside(attempt) == refusal, name
            assert world.n2.counted(name) > before


def test_the_matrix_lets_through_what_it_says(world: World) -> None:
    world.seal()
    n2, others = world.n2, world.others
    for port, source, answer in (
        (22, OPERATOR, 0),
        (22, PEER, errno.ETIMEDOUT),
        (6379, PEER, 0),
        (32768, PEER, 0),
        (6379, OTHER_DOMAIN, errno.ETIMEDOUT),
        (8265, PEER, errno.ETIMEDOUT),
    ):
        with n2.inside(lambda port=port: listen("0.0.0.0", port)):
            target = "10.0.0.2" if source == OPERATOR else "10.1.0.2"
            got = others.inside(lambda t=target, p=port, s=source: call(t, p, s))
            assert got == answer, (port, source)
    with n2.inside(lambda: listen("::", 22)):
        assert others.inside(lambda: call("fd00:1::2", 22)) == 0
    with others.inside(lambda: listen("0.0.0.0", 10500)):
        assert n2.inside(lambda: call(PEER, 10500)) == 0
        assert n2.inside(lambda: call(OTHER_DOMAIN, 10500)) == errno.EHOSTUNREACH
    # a port of the matrix as source opens nothing
    assert n2.inside(lambda: _from_port(22)) == errno.EHOSTUNREACH


def _from_port(port: int) -> int:
    with socket.socket() as caller:
        caller.settimeout(3)
        caller.bind(("10.0.0.2", port))
        return caller.connect_ex((OPERATOR, 4444))


def test_a_connection_older_than_the_seal_does_not_outlive_it(world: World) -> None:
    """Outward, and inward (the answers of an inward one carry as much)."""
    with (
        world.others.inside(lambda: listen(OUTSIDE, 443)) as far,
        world.n2.inside(lambda: listen("0.0.0.0", 31337)) as near,
    ):
        outward = world.n2.inside(lambda: socket.create_connection((OUTSIDE, 443)))
        far_end = far.accept()[0]
        inward = world.others.inside(
            lambda: socket.create_connection(("10.0.0.2", 31337), source_address=(OUTSIDE, 0))
        )
        near_end = near.accept()[0]
        for sender, receiver in ((outward, far_end), (near_end, inward)):
            sender.sendall(b"before")
            assert receiver.recv(64) == b"before"
        # so that connection tracking knows both before the seal is there
        world.n2.run(
            "nft",
            "add table inet t; add chain inet t c "
            "{ type filter hook output priority 0; }; add rule inet t c ct state new",
        )
        outward.sendall(b"tracked")
        near_end.sendall(b"tracked")
        assert (far_end.recv(64), inward.recv(64)) == (b"tracked", b"tracked")
        world.seal()
        for sender, receiver in ((outward, far_end), (near_end, inward)):
            before = world.n2.counted("refused_tcp")
            sender.sendall(b"after")
            while world.n2.counted("refused_tcp") == before:
                time.sleep(0.05)
            receiver.setblocking(False)
            with pytest.raises(BlockingIOError):
                receiver.recv(64)
        for each in (outward, far_end, inward, near_end):
            each.close()


def test_a_broken_candidate_leaves_the_old_rules(world: World) -> None:
    world.seal()
    before = world.n2.run("nft", "-s", "list", "table", "inet", "sovctl")
    with pytest.raises(subprocess.CalledProcessError):
        world.seal(lambda text: text.replace("tcp dport 6379", "tcp dport sixthousand"))
    assert world.n2.run("nft", "-s", "list", "table", "inet", "sovctl") == before
    world.seal()  # and the same once more is the same
    assert world.n2.run("nft", "-s", "list", "table", "inet", "sovctl") == before


def test_the_emergency_rules_let_operators_in_and_nothing_out(world: World) -> None:
    """What a host has when its own rules cannot be loaded at boot."""
    program = Path(__file__).parents[2] / "playbooks/roles/egress/files/sovctl-seal"
    rules = program.read_text("utf-8").split('EMERGENCY = """')[1].split('"""')[0]
    world.n2.run("nft", "-f", "-", text=rules)
    with world.n2.inside(lambda: listen("0.0.0.0", 22)):
        assert world.others.inside(lambda: call("10.0.0.2", 22)) == 0
    with world.others.inside(lambda: listen(OUTSIDE, 443)):
        assert world.n2.inside(lambda: call(OUTSIDE, 443)) != 0
    assert world.n2.inside(lambda: send(OUTSIDE, 9)) == errno.EPERM
    assert world.n2.inside(echo) == errno.EPERM
    assert world.n2.inside(lambda: send("2001:db8::1", 9)) == errno.EPERM


def test_the_probe_of_a_host_tells_sealed_from_tampered(world: World) -> None:
    site = hospital()

    def outcomes(*, control: bool = False) -> dict[str, str]:
        order = order_for(site, site.host("n2"), attempts=True, control=control)
        said = world.n2.run("/usr/bin/python3", "-", text=program(order).decode())
        return {f"{r.probe} {r.target}": r.outcome for r in results_of(said.encode())}

    with world.others.inside(lambda: listen(OUTSIDE, 443)):
        before = outcomes(control=True)
    assert before["rules kernel"] == "not-sealed"
    for probe in ("tcp", "udp", "icmp"):
        assert before[f"{probe} as root {OUTSIDE}"] == "reached"

    world.seal()
    shy = outcomes()  # the default routes are still there
    assert shy["routes default"] == "not-sealed"
    assert not any(" as " in name for name in shy), "nothing is sent from a host that is not sealed"

    for family in ("-4", "-6"):
        world.n2.run("ip", family, "route", "del", "default")
    sealed = outcomes()
    assert sealed["rules kernel"] == sealed["routes default"] == "control-ok"
    attempts = {n: o for n, o in sealed.items() if " as " in n and "control" not in n}
    assert {name.split(" as ")[1].split(" ")[0] for name in attempts} == {"root", "nobody"}
    assert set(attempts.values()) == {"blocked"}
    assert {o for n, o in sealed.items() if n.startswith("counter")} == {"control-ok"}

    world.n2.run("nft", "insert", "rule", "inet", "sovctl", "output", "udp", "dport", "9", "accept")
    tampered = outcomes()
    assert tampered["rules kernel"] == "not-sealed"
    assert tampered[f"udp over eth0 as root {OUTSIDE}"] == "reached"
    assert tampered["dns over eth0 as root 198.51.100.53"] == "blocked"
