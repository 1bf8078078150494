"""A site's authorities, and every host's folder of what Ansible brings to it. Idempotent.

Under ``sites/<name>/authority`` (mode 0700): the callers' CA, the operator's API key and, for each
trust domain, two authorities, Ray's token and the key that Serve's ingress demands. Ray's authority
issues what Ray's processes of that domain present to each other. The relay's issues a server's
certificate to each Ray host and one client's to the gateway: so a Ray process, which holds a key of
Ray's authority, cannot pass for the gateway.

Under ``hosts/<host>`` is what that host gets and nothing more; ``node.tar`` and ``gateway.tar``
hold the same files with their owners and modes, because one archive is one step for Ansible where
ten files are twenty. ``credentials.sha256`` changes when any of it does; a unit that names it is
restarted then.

A second run changes no byte. A leaf is issued anew when it would end within 30 days or when the
host's names or addresses changed; an authority, when it ends; then all it issued follows.
"""

from __future__ import annotations

import hashlib
import io
import secrets
import tarfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from appliance.cluster import node_file, pki
from appliance.cluster.files import write_whole
from appliance.egress import names, ruleset
from appliance.errors import GatewayCertificateUnfit
from appliance.install import site_nodes
from appliance.layout import SitePlace
from appliance.manifests.site import HospitalCertificate, Host, Role, Site
from appliance.trust.server_chain import ChainUnfit, ServerChain, check_chain
from appliance.trust.site_ca import CLIENT, SERVER, Leaf, Pair

_LOOPBACK = ("127.0.0.1", "::1")
_SECRET = 0o640
_OPEN = 0o644

Files = dict[str, bytes]


def issue(site: Site, place: SitePlace, release_id: str) -> None:
    """Make what is missing, renew what ends or no longer fits, leave the rest as it is.

    Raises :class:`GatewayCertificateUnfit` before anything is written, and OSError.
    """
    now = datetime.now(UTC)
    chain = _hospital_chain(site, now)
    for folder in (place.root, place.authority, place.hosts):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
    _ensure(place.operator_key, lambda: f"sov-{secrets.token_hex(8)}-{secrets.token_hex(32)}")
    domains = {d.name: _Domain(place.domain(d.name), site, d.name, now) for d in site.trust_domains}
    for host in site.hosts:
        folder = place.host(host.name)
        node = _node_files(host, folder, domains, now)
        node["node.json"] = node_file.as_bytes(site_nodes.node_of(site, host, release_id))
        gateway: Files = {}
        if Role.GATEWAY in host.roles:
            gateway = _gateway_files(site, place, chain, domains, now)
        _write_folder(folder, site, host, node, gateway)


class _Domain:
    """A trust domain's authorities and secrets, made if they are missing."""

    def __init__(self, folder: Path, site: Site, name: str, now: datetime) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        title = f"{site.name} {name}"
        self.ray = pki.ensure_authority(folder / "ca.pem", folder / "ca.key", f"{title} Ray", now)
        self.relay = pki.ensure_authority(
            folder / "relay-ca.pem", folder / "relay-ca.key", f"{title} relay", now
        )
        for secret in ("ray.token", "serve.key"):
            _ensure(folder / secret, lambda: secrets.token_hex(32))

    def read(self, name: str) -> bytes:
        """A file of the domain's."""
        return (self.folder / name).read_bytes()


def _node_files(host: Host, folder: Path, domains: Mapping[str, _Domain], now: datetime) -> Files:
    """What a Ray host holds; nothing on another."""
    if not host.runs_ray or host.domain is None:
        return {}
    domain = domains[host.domain]
    addresses = tuple(str(interface.address) for interface in host.interfaces)
    hosts, everywhere = ("localhost", host.name), (*addresses, *_LOOPBACK)
    ray = _leaf(folder, "ray", Leaf(host.name, hosts, everywhere), domain.ray, now)
    relay_leaf = Leaf(f"relay {host.name}", hosts, everywhere, (SERVER,))
    relay = _leaf(folder, "relay", relay_leaf, domain.relay, now)
    return {
        **ray,
        **relay,
        "tls/ray-ca.pem": domain.read("ca.pem"),
        "tls/relay-ca.pem": domain.read("relay-ca.pem"),
        "secrets/ray.token": domain.read("ray.token"),
        "secrets/serve.key": domain.read("serve.key"),
    }


def _gateway_files(
    site: Site,
    place: SitePlace,
    chain: ServerChain | None,
    domains: Mapping[str, _Domain],
    now: datetime,
) -> Files:
    """What the gateway's host holds besides."""
    folder = place.host(site.gateway_host.name) / "gateway"
    if chain is None or site.gateway.certificate is None:
        title, key = f"{site.name} callers", place.authority / "ca.key"
        authority = pki.ensure_authority(place.callers_ca, key, title, now)
        hosts = dict.fromkeys((*site.gateway.names, site.gateway_host.name, "localhost"))
        addresses = (*site_nodes.gateway_addresses(site), *_LOOPBACK)
        files = _leaf(
            folder, "gateway", Leaf("gateway", tuple(hosts), addresses, (SERVER,)), authority, now
        )
    else:
        _write(place.callers_ca, chain.root, _OPEN)
        files = {
            "tls/gateway.pem": chain.presented,
            "secrets/gateway.key": Path(site.gateway.certificate.key).read_bytes(),
        }
    files["tls/ca.pem"] = place.callers_ca.read_bytes()
    files["secrets/operator.key"] = place.operator_key.read_bytes()
    for name, domain in domains.items():
        leaf = Leaf("gateway", (site.gateway_host.name,), (), (CLIENT,))
        own = folder / "domains" / name
        pki.ensure_leaf(own / "client.pem", own / "client.key", leaf, domain.relay, now)
        for file in ("client.pem", "client.key"):
            files[f"domains/{name}/{file}"] = (own / file).read_bytes()
        for file in ("relay-ca.pem", "ray.token", "serve.key"):
            files[f"domains/{name}/{file}"] = domain.read(file)
    return files


def _leaf(folder: Path, name: str, leaf: Leaf, authority: Pair, now: datetime) -> Files:
    """A leaf in a host's folder, by its place there."""
    pem, key = f"tls/{name}.pem", f"secrets/{name}.key"
    pki.ensure_leaf(folder / pem, folder / key, leaf, authority, now)
    return {pem: (folder / pem).read_bytes(), key: (folder / key).read_bytes()}


def _hospital_chain(site: Site, now: datetime) -> ServerChain | None:
    """The site's own certificate, checked; None if the appliance issues one itself."""
    given: HospitalCertificate | None = site.gateway.certificate
    if given is None:
        return None
    try:
        chain, key = Path(given.chain).read_bytes(), Path(given.key).read_bytes()
        addresses = site_nodes.gateway_addresses(site)
        return check_chain(chain, key, site.gateway.names, addresses, now)
    except (OSError, ChainUnfit) as error:
        raise GatewayCertificateUnfit(chain=given.chain, reason=error) from error


def _write_folder(folder: Path, site: Site, host: Host, node: Files, gateway: Files) -> None:
    """Make the host's folder hold exactly this."""
    content = {
        **node,
        **{f"gateway/{name}": data for name, data in gateway.items()},
        "node.tar": _archive(node),
        "hosts": names.hosts_file(site, host).encode(),
        "egress.nft": ruleset.render(site, host).encode(),
    }
    if gateway:
        content["gateway.tar"] = _archive(gateway)
    parts = (content["node.tar"], content.get("gateway.tar", b""))
    content["credentials.sha256"] = hashlib.sha256(b"".join(parts)).hexdigest().encode()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    for name, data in content.items():
        _write(folder / name, data, 0o600 if _is_secret(name) else _OPEN)
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in content:
            path.unlink()


def _is_secret(name: str) -> bool:
    return name.endswith((".key", ".token", ".tar"))


def _archive(files: Files) -> bytes:
    """A tar of ``files`` as they are to stand under the host's installation folder.

    The same files give the same bytes. Owned by root; group ``sovctl`` reads the secrets.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(files):
            entry = tarfile.TarInfo(name)
            entry.size = len(files[name])
            entry.mode = _SECRET if _is_secret(name) else _OPEN
            entry.uname, entry.gname = "root", "sovctl"  # by name: tar looks the numbers up
            tar.addfile(entry, io.BytesIO(files[name]))
    return buffer.getvalue()


def _ensure(path: Path, make: Callable[[], str]) -> None:
    """A secret in a file of its own, made once."""
    if not path.exists():
        write_whole(path, make().encode("ascii"), mode=0o600)


def _write(path: Path, data: bytes, mode: int) -> None:
    """Replace ``path`` if it differs."""
    try:
        same = path.read_bytes() == data and path.stat().st_mode & 0o777 == mode
    except FileNotFoundError:
        same = False
    if not same:
        write_whole(path, data, mode=mode)
