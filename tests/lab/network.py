"""The lab's network: one namespace with a bridge for each network, and a namespace for everyone.

Nothing leads out of it. ``internet`` is one more namespace, with addresses that RFC 5737 and
RFC 3849 reserve for documentation; until a host is sealed its default route leads there.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

NETWORKS = ("admin", "cluster", "storage")
CONTROLLER, ROUTER, FIRST_HOST = 2, 1, 11
INTERNET_V4 = ("192.0.2.1", "198.51.100.53", "203.0.113.80")
INTERNET_V6 = "2001:db8::1"

# What an ordinary machine answers with; the counters are what `seen` reads.
_COUNTERS = """
table inet seen {
  counter seen_tcp {}
  counter seen_udp {}
  counter seen_icmp {}
  chain input {
    type filter hook input priority 0; policy accept;
    ip daddr { 192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24 } jump tally
    ip6 daddr 2001:db8::/32 jump tally
  }
  chain tally {
    meta l4proto tcp counter name "seen_tcp"
    meta l4proto udp counter name "seen_udp"
    meta l4proto { icmp, ipv6-icmp } counter name "seen_icmp"
  }
}
"""


def ip(*words: str) -> None:
    """Run iproute2's ``ip``. Raises ``RuntimeError`` with what it said."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def address(network: str, number: int) -> str:
    """IPv4 address of a machine in a network; 198.18.0.0/15 is set aside for labs (RFC 2544)."""
    return f"198.18.{NETWORKS.index(network)}.{number}"


def address_v6(network: str, number: int) -> str:
    """Its IPv6 address there (RFC 4193)."""
    return f"fd5a:198:18:{NETWORKS.index(network)}::{number:x}"


@dataclass(frozen=True)
class Fabric:
    """The bridges of one lab. ``lab`` starts the names of all its namespaces."""

    lab: str

    @property
    def middle(self) -> str:
        return f"{self.lab}-net"

    def namespace(self, who: str) -> str:
        return f"{self.lab}-{who}"

    def entry(self, who: str) -> list[str]:
        """What to start a command with for it to run in there. Unlike ``ip netns exec`` it makes
        no mount namespace, whose copies of other labs' mounts would keep those in use."""
        return ["nsenter", f"--net=/run/netns/{self.namespace(who)}"]

    def make(self) -> None:
        """A bridge for each network."""
        self._add(self.middle)
        for network in NETWORKS:
            ip("-n", self.middle, "link", "add", f"br-{network}", "type", "bridge")
            ip("-n", self.middle, "link", "set", f"br-{network}", "up")

    def join(self, who: str, number: int, networks: tuple[str, ...] = NETWORKS) -> None:
        """A namespace for ``who``, with one interface in each network: eth0, eth1, …"""
        inside = self.namespace(who)
        self._add(inside)
        for index, network in enumerate(networks):
            port = f"{who}-{network}"[:15]
            ip("link", "add", port, "netns", self.middle, "type", "veth",
               "peer", "name", f"eth{index}", "netns", inside)  # fmt: skip
            ip("-n", self.middle, "link", "set", port, "master", f"br-{network}", "up")
            ip("-n", inside, "address", "add", f"{address(network, number)}/24",
               "dev", f"eth{index}")  # fmt: skip
            # no duplicate detection: the address would be unusable for the first seconds
            ip("-n", inside, "address", "add", f"{address_v6(network, number)}/64",
               "dev", f"eth{index}", "nodad")  # fmt: skip
            ip("-n", inside, "link", "set", f"eth{index}", "up")

    def lead_out(self, who: str) -> None:
        """Give ``who`` the default route that an installer leaves on a machine."""
        inside = self.namespace(who)
        ip("-n", inside, "route", "replace", "default", "via", address("admin", ROUTER))
        ip("-n", inside, "-6", "route", "replace", "default", "via", address_v6("admin", ROUTER))

    def link(self, who: str, network: str, state: str) -> None:
        """Set the bridge's end of a cable ``up`` or ``down``."""
        ip("-n", self.middle, "link", "set", f"{who}-{network}"[:15], state)

    def remove(self) -> None:
        """Delete every namespace of this lab, and with them its links."""
        for name in namespaces():
            if name.startswith(f"{self.lab}-"):
                with contextlib.suppress(RuntimeError):
                    ip("netns", "delete", name)

    @staticmethod
    def _add(name: str) -> None:
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")


def namespaces() -> list[str]:
    """The names of all network namespaces."""
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return [line.split()[0] for line in done.stdout.splitlines() if line.strip()]


@dataclass(frozen=True)
class Internet:
    """What a host reaches before it is sealed: TCP 80 and 443, UDP 53 and 9, echo requests."""

    fabric: Fabric
    addresses: tuple[str, ...] = (*INTERNET_V4, INTERNET_V6)

    @property
    def namespace(self) -> str:
        return self.fabric.namespace("out")

    def open(self) -> subprocess.Popen[bytes]:
        """Make the namespace and start what answers there, which is returned."""
        self.fabric.join("out", ROUTER, ("admin",))
        for each in INTERNET_V4:
            ip("-n", self.namespace, "address", "add", f"{each}/32", "dev", "lo")
        ip("-n", self.namespace, "address", "add", f"{INTERNET_V6}/128", "dev", "lo", "nodad")
        for switch in ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"):
            subprocess.run([*self.fabric.entry("out"), "sysctl", "-qw", switch], check=True)
        subprocess.run(
            [*self.fabric.entry("out"), "nft", "-f", "-"],
            input=_COUNTERS, text=True, check=True,
        )  # fmt: skip
        server = Path(__file__).with_name("internet_server.py")
        process = subprocess.Popen(
            [*self.fabric.entry("out"), sys.executable, "-I", server],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError("what plays the internet did not start")
        return process

    def seen(self) -> dict[str, int]:
        """Packets that reached it since it was opened: ``{"tcp": …, "udp": …, "icmp": …}``."""
        done = subprocess.run(
            [*self.fabric.entry("out"), "nft", "-j", "list", "counters"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        counters = [
            each["counter"] for each in json.loads(done.stdout)["nftables"] if "counter" in each
        ]
        return {each["name"].removeprefix("seen_"): int(each["packets"]) for each in counters}
