"""Which host keys a site's machines have: written down once, never accepted blindly.

    trusted = establish(site, place, accept={"n1": {"SHA256:…"}}, ask=None)

A key gets into the site's ``known_hosts`` only if somebody named its fingerprint: in ``site.yaml``
(``ssh: host_keys``), with ``sovctl site host-keys --accept HOST=FINGERPRINT``, or on a terminal
after being shown it. What a host offers is looked up with ``ssh-keyscan``, which trusts nothing.

A host whose key is known and differs now is refused, on a terminal too: only naming the new
fingerprint replaces it. :func:`decide` holds these rules and is pure.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.errors import HostKeyChanged, HostKeyUnknown, HostUnreachable
from appliance.i18n import _
from appliance.provision.several import AT_ONCE
from appliance.provision.ssh import CONNECT_S
from appliance.store.blobs import sync_folder

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.layout import SitePlace
    from appliance.manifests.site import Host, Site

_TYPES = "ed25519,ecdsa,rsa"
# A host that sends a byte now and then would keep ssh-keyscan waiting for ever.
_SCAN_S = CONNECT_S * 6.0


@dataclass(frozen=True, slots=True)
class HostKey:
    """A host's public key: ``kind`` as OpenSSH names it, ``blob`` in its wire format."""

    kind: str
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """``SHA256:…`` as ``ssh-keygen -l`` prints it."""
        digest = base64.b64encode(hashlib.sha256(self.blob).digest()).decode("ascii")
        return f"SHA256:{digest.rstrip('=')}"

    def __str__(self) -> str:
        return f"{self.fingerprint} ({self.kind})"


@dataclass(frozen=True, slots=True)
class Trusted:
    """A key that was not known before and is from now on."""

    host: str
    key: HostKey


Known = Mapping[str, tuple[HostKey, ...]]
"""Keys by what ``known_hosts`` calls a host: an address, or ``[address]:port``."""

Ask = Callable[[str, tuple[HostKey, ...]], HostKey | None]
"""Shows a person a host's name and the keys it offers; returns the one confirmed."""


def label(address: str, port: int) -> str:
    """How ``known_hosts`` calls a host."""
    return address if port == 22 else f"[{address}]:{port}"


def parse(text: str) -> dict[str, tuple[HostKey, ...]]:
    """Read ``known_hosts`` or what ``ssh-keyscan`` prints; lines of neither form are left out."""
    found: dict[str, tuple[HostKey, ...]] = {}
    for line in text.splitlines():
        parts = line.split()
        if len(parts) < 3 or parts[0].startswith(("#", "@", "|")):
            continue
        try:
            blob = base64.b64decode(parts[2], validate=True)
        except (binascii.Error, ValueError):
            continue
        # The blob begins with its own type; a line that says another is not a key.
        kind = parts[1].encode()
        if not blob.startswith(len(kind).to_bytes(4, "big") + kind):
            continue
        for name in parts[0].split(","):
            found[name] = (*found.get(name, ()), HostKey(parts[1], blob))
    return found


def render(known: Known) -> str:
    """``known_hosts``, sorted."""
    lines = [
        f"{name} {key.kind} {base64.b64encode(key.blob).decode('ascii')}\n"
        for name in sorted(known)
        for key in sorted(known[name], key=lambda key: key.kind)
    ]
    return "".join(lines)


def decide(
    host: str,
    address: str,
    offered: tuple[HostKey, ...],
    known: tuple[HostKey, ...],
    named: frozenset[str],
) -> tuple[HostKey, ...]:
    """The keys of ``offered`` that are trusted; none if a person has to be asked. Pure.

    ``named`` are fingerprints an operator wrote down, which count before what was ``known``.
    Raises :class:`HostKeyChanged` if neither agrees with what is offered.
    """
    wanted = named or frozenset(key.fingerprint for key in known)
    if not wanted:
        return ()
    accepted = tuple(key for key in offered if key.fingerprint in wanted)
    if not accepted:
        raise HostKeyChanged(
            host=host,
            address=address,
            expected=", ".join(sorted(wanted)),
            offered=", ".join(str(key) for key in offered),
        )
    return accepted


def suffices(known: tuple[HostKey, ...], named: frozenset[str]) -> bool:
    """Whether nothing has to be looked up: every known key is one that was named (if any was)."""
    return bool(known) and (not named or {key.fingerprint for key in known} <= named)


def establish(
    site: Site, place: SitePlace, accept: Mapping[str, frozenset[str]], ask: Ask | None
) -> tuple[Trusted, ...]:
    """Make ``known_hosts`` hold a trusted key of every host; return those that are new.

    Only hosts that lack one are connected to. ``accept`` adds fingerprints by host name to those in
    ``site.yaml``; ``ask`` is None where there is no terminal. Raises :class:`HostKeyUnknown`,
    :class:`HostKeyChanged` and :class:`HostUnreachable`, and then has changed nothing.
    """
    before = read(place.known_hosts)
    named = {
        h.name: frozenset(h.ssh.host_keys) | accept.get(h.name, frozenset()) for h in site.hosts
    }
    labels = {h.name: label(str(site.management_address(h)), h.ssh.port) for h in site.hosts}
    lacking = [h for h in site.hosts if not suffices(before.get(labels[h.name], ()), named[h.name])]
    now = {labels[h.name]: before[labels[h.name]] for h in site.hosts if h not in lacking}
    fresh: list[Trusted] = []
    for host, offered in zip(lacking, scan(site, lacking), strict=True):
        known = before.get(labels[host.name], ())
        address = str(site.management_address(host))
        keys = decide(host.name, address, offered, known, named[host.name])
        if not keys:
            confirmed = ask(host.name, offered) if ask is not None else None
            if confirmed is None:
                shown = ", ".join(str(key) for key in offered)
                raise HostKeyUnknown(host=host.name, address=address, offered=shown)
            keys = (confirmed,)
        now[labels[host.name]] = keys
        fresh += [Trusted(host.name, key) for key in keys if key not in known]
    if now != before:
        _write(place.known_hosts, render(now))
    return tuple(fresh)


def scan(site: Site, hosts: Sequence[Host]) -> list[tuple[HostKey, ...]]:
    """What each host offers, asked in parallel. Raises :class:`HostUnreachable`."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda host: _scan_one(site, host), hosts))


def _scan_one(site: Site, host: Host) -> tuple[HostKey, ...]:
    address, port = str(site.management_address(host)), host.ssh.port
    try:
        done = subprocess.run(
            ["ssh-keyscan", "-T", str(CONNECT_S), "-t", _TYPES, "-p", str(port), "--", address],
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_SCAN_S,
        )
        printed, complaints = done.stdout, _complaints(done.stderr)
    except subprocess.TimeoutExpired as error:
        printed, complaints = error.stdout or b"", [_("It does not come to an end")]
    found = parse(printed.decode(errors="replace"))
    keys = tuple(dict.fromkeys(key for several in found.values() for key in several))
    if not keys:
        reason = complaints[-1] if complaints else _("It shows no SSH host key")
        raise HostUnreachable(
            host=host.name,
            address=address,
            port=port,
            user=host.ssh.user,
            reason=f"{reason.rstrip('.')}.",
        )
    return keys


def _complaints(stderr: bytes) -> list[str]:
    lines = stderr.decode(errors="replace").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def read(path: Path) -> Known:
    """The keys in a ``known_hosts``; none if there is no such file."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def parse_accept(given: Iterable[str]) -> dict[str, frozenset[str]]:
    """``HOST=SHA256:…`` as typed, by host. Raises ``ValueError``."""
    accepted: dict[str, frozenset[str]] = {}
    for text in given:
        host, equals, fingerprint = text.partition("=")
        if not (host and equals and fingerprint.startswith("SHA256:")):
            raise ValueError(text)
        accepted[host] = accepted.get(host, frozenset()) | {fingerprint.rstrip("=")}
    return accepted


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_folder(path.parent)
