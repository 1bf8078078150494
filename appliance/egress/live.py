"""What ``/proc`` says about the seal of a process, now. Reads only; standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_WIDE = 8  # bits: a route to more than 1/256 of all addresses is a way out, not to a network
_KINDS = ("user", "net", "mnt", "pid", "ipc", "uts")


@dataclass(frozen=True, slots=True)
class Observation:
    """The isolation of one process.

    ``namespaces`` maps a kind to its inode number (0: not readable by this user), ``interfaces``
    names the network interfaces, ``routes`` the routes that lead anywhere but loopback,
    ``capabilities`` the effective and the bounding set in hexadecimal, ``seccomp`` is 2 under a
    filter.
    """

    namespaces: dict[str, int]
    interfaces: list[str]
    routes: list[str]
    seccomp: int
    no_new_privileges: bool
    capabilities: dict[str, str]

    @property
    def default_routes(self) -> list[str]:
        """Those of ``routes`` that lead everywhere, or to a part of it too large for a network."""
        return [route for route in self.routes if _leads_out(route)]

    @property
    def sealed(self) -> bool:
        """Whether only loopback exists and nothing can change that."""
        powerless = all(int(bits, 16) == 0 for bits in self.capabilities.values())
        return self.no_way_out and self.seccomp == 2 and self.no_new_privileges and powerless

    @property
    def no_way_out(self) -> bool:
        """Whether the network namespace has loopback only and no route beyond it."""
        return self.interfaces == ["lo"] and not self.routes


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of ``/proc/self/mountinfo``, proc(5)."""

    target: Path
    options: frozenset[str]


def observe(pid: int | str) -> Observation:
    """Look at process ``pid`` (or ``"self"``). Raises :class:`OSError` if it is gone."""
    proc = Path("/proc") / str(pid)
    status = dict(
        line.split(":", 1) for line in (proc / "status").read_text("utf-8").splitlines() if line
    )
    return Observation(
        namespaces={kind: _inode(proc / "ns" / kind) for kind in _KINDS},
        interfaces=parse_interfaces((proc / "net/dev").read_text("ascii")),
        routes=parse_routes(_read(proc / "net/route"), _read(proc / "net/ipv6_route")),
        seccomp=int(status.get("Seccomp", "0")),
        no_new_privileges=status.get("NoNewPrivs", "0").strip() == "1",
        capabilities={name: status.get(name, "f").strip() for name in ("CapEff", "CapBnd")},
    )


def parse_interfaces(net_dev: str) -> list[str]:
    """Interface names of ``/proc/net/dev``: two heading lines, then ``name: counters``."""
    return [line.split(":", 1)[0].strip() for line in net_dev.splitlines()[2:] if ":" in line]


def parse_routes(ipv4: str, ipv6: str) -> list[str]:
    """Routes over another interface than ``lo``, of ``/proc/net/route`` and ``ipv6_route``.

    The kernel lists its own unreachable default in ``ipv6_route`` over ``lo``: no way out.
    """
    rows = [line.split() for line in ipv4.splitlines()[1:] if line.strip()]
    out = [f"{row[1]}/{row[7]} via {row[0]}" for row in rows if row[0] != "lo"]
    rows = [line.split() for line in ipv6.splitlines() if line.strip()]
    return out + [f"{row[0]}/{int(row[1], 16)} via {row[-1]}" for row in rows if row[-1] != "lo"]


def _leads_out(route: str) -> bool:
    """``DESTINATION/MASK via DEV`` as :func:`parse_routes` gives it.

    IPv4's mask is 8 hexadecimal digits, least significant byte first; IPv6's length is a number.
    Multicast (224.0.0.0/4, ff00::/8) stays on the link.
    """
    destination, _slash, rest = route.partition("/")
    mask = rest.split(" ", 1)[0]
    if len(destination) == 8:
        length, multicast = int(mask, 16).bit_count(), destination.lower().endswith("e0")
    else:
        length, multicast = int(mask), destination.lower().startswith("ff")
    return length < _WIDE and not multicast


def mounts() -> list[Mount]:
    """The mounts this process sees."""
    rows = [line.split() for line in Path("/proc/self/mountinfo").read_text("utf-8").splitlines()]
    unescape = {"\\040": " ", "\\011": "\t", "\\012": "\n", "\\134": "\\"}
    found = []
    for row in rows:
        name = row[4]
        for escaped, character in unescape.items():
            name = name.replace(escaped, character)
        found.append(Mount(Path(name), frozenset(row[5].split(","))))
    return found


def children(pid: int) -> list[int]:
    """Process ids whose parent is ``pid``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            stat = _read(entry / "stat")
            # the command may hold spaces and brackets; fields start after the last ')'
            if stat and int(stat.rpartition(")")[2].split()[1]) == pid:
                found.append(int(entry.name))
    return sorted(found)


def _inode(link: Path) -> int:
    try:
        return link.stat().st_ino
    except OSError:
        return 0


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""
