"""What a host must have, from the site and from the bundle. Pure.

    bundle = bundle_needs(manifest)                       # once
    needs = host_needs(site, site.host("n1"), bundle)     # per host; bundle None: the site alone
    asked_of(site, host)                                  # what the probe is to look at there

Sizes are exact where the signed manifest is: every blob to the byte. What is unpacked from wheels
and Debian packages is estimated by factors that were measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

from appliance.i18n import N_
from appliance.manifests import site_ports
from appliance.manifests.bundle import BundleManifest
from appliance.manifests.environment import (
    UNPACK_FACTOR,
    RuntimeEnvironment,
    environments_of,
)
from appliance.manifests.site import (
    Host,
    MountedStorage,
    NetworkKind,
    NfsStorage,
    Role,
    Site,
)

Address = IPv4Address | IPv6Address

PACKAGES_FACTOR = 5
"""Bytes on disk for each byte of a .deb, by their own Installed-Size: 4.1 over all packages of
Debian 12, 5.1 for Prometheus, the largest of those that a site without GPUs needs."""

WRITE_BYTES = 32 << 20
"""Written to measure a disk: enough to tell a disk from a USB stick, gone in a second."""

_CUDA_WHEEL = re.compile(r"nvidia_cuda_runtime(?:_cu\d+)?-(\d+)\.(\d+)[.\d]*-")
_CUDA_TORCH = re.compile(r"torch-[^-]*(?:\+|%2B)cu(\d{2})(\d)-")
_DRIVER_PACKAGE = re.compile(
    r"(?:nvidia-(?:driver|open|kernel-(?:open-)?dkms)|cuda-drivers)[a-z0-9-]*_(\d+(?:\.\d+)+)"
)


@dataclass(frozen=True, slots=True)
class BundleNeeds:
    """What a bundle asks of the hosts it is installed on.

    ``blobs`` are (digest in hexadecimal, bytes). ``runtime`` and ``packages`` are bytes once
    unpacked, ``model`` those of the largest model; ``cuda`` is (major, minor) of the runtime and
    ``driver`` the version of the GPU driver that the bundle brings, None where it brings none.
    """

    release: str
    blobs: tuple[tuple[str, int], ...]
    environments: tuple[RuntimeEnvironment, ...]
    runtime: int
    packages: int
    model: int
    cuda: tuple[int, int] | None
    driver: str | None

    @property
    def size(self) -> int:
        """Bytes of all blobs."""
        return sum(size for _digest, size in self.blobs)


@dataclass(frozen=True, slots=True)
class PortNeed:
    """Ports that a program of ours will listen on.

    ``address`` None: on all of the host's. ``units`` are the systemd services that may have it
    already, because they are ours or will be.
    """

    protocol: Literal["tcp", "udp"]
    ports: range
    what: str
    units: frozenset[str]
    address: Address | None = None

    @property
    def firm(self) -> bool:
        """Whether it must have just these ports."""
        return len(self.ports) < 10


@dataclass(frozen=True, slots=True)
class HostNeeds:
    """What one host must have."""

    bundle: BundleNeeds | None
    ports: tuple[PortNeed, ...]
    shared: str | None
    ray: bool


def bundle_needs(manifest: BundleManifest) -> BundleNeeds:
    """What the manifest says the hosts must have."""
    wheels = [file for part in manifest.of_kind("wheelhouse") for file in part.files]
    packages = [file for part in manifest.of_kind("packages") for file in part.files]
    debs = [file for file in packages if file.path.endswith(".deb")]
    drivers = [m.group(1) for file in debs if (m := _DRIVER_PACKAGE.search(file.path))]
    return BundleNeeds(
        release=manifest.release_id,
        blobs=tuple((blob.hex, blob.size) for blob in manifest.blobs()),
        environments=environments_of(manifest),
        runtime=int(sum(w.size for w in wheels if w.path.endswith(".whl")) * UNPACK_FACTOR),
        packages=sum(file.size for file in debs) * PACKAGES_FACTOR,
        model=max((model.size for model in manifest.of_kind("model")), default=0),
        cuda=_cuda([file.path for file in wheels]),
        driver=max(drivers, key=version_of, default=None),
    )


def _cuda(wheels: list[str]) -> tuple[int, int] | None:
    """The CUDA that the newest of the wheels was built for."""
    names = [path.rpartition("/")[2] for path in wheels]
    found = [m for name in names if (m := _CUDA_WHEEL.match(name) or _CUDA_TORCH.match(name))]
    return max(((int(m.group(1)), int(m.group(2))) for m in found), default=None)


def version_of(text: str) -> tuple[int, ...]:
    """ "570.86.15" as numbers that compare; what is no number ends it."""
    found = re.match(r"\d{1,9}(?:\.\d{1,9}){0,7}", text)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def host_needs(site: Site, host: Host, bundle: BundleNeeds | None) -> HostNeeds:
    """What ``host`` must have for its roles."""
    storage = site.storage
    shared = storage.path if host.uses_storage and isinstance(storage, MountedStorage) else None
    return HostNeeds(bundle, tuple(_ports(site, host)), shared, host.runs_ray)


_RAY_UNITS = frozenset({"sovctl-ray.service", "sovctl-serve.service"})
_RELAY = frozenset({"sovctl-relay.service"})
_GATEWAY = frozenset({"sovctl-gateway.service"})
_PROMETHEUS = frozenset({"prometheus.service"})
_EXPORTER = frozenset({"prometheus-node-exporter.service"})
_CHRONY = frozenset({"chrony.service", "chronyd.service"})
_LOOPBACK = IPv4Address("127.0.0.1")


def _ports(site: Site, host: Host) -> Iterator[PortNeed]:
    cluster = site.address(host, NetworkKind.CLUSTER)
    if Role.RAY_HEAD in host.roles:
        yield _port(site_ports.GCS, N_("Ray's control store"), _RAY_UNITS)
        yield _port(site_ports.DASHBOARD, N_("Ray's dashboard"), _RAY_UNITS, _LOOPBACK)
        yield _port(site_ports.SERVE, N_("Serve's proxy"), _RAY_UNITS, _LOOPBACK)
        yield _port(site_ports.RELAY_DASHBOARD, N_("the relay"), _RELAY, cluster)
        yield _port(site_ports.RELAY_SERVE, N_("the relay"), _RELAY, cluster)
    if host.runs_ray:
        daemons = range(site_ports.NODE_MANAGER, site_ports.METRICS_EXPORT + 1)
        yield PortNeed("tcp", daemons, N_("Ray's daemons"), _RAY_UNITS)
        yield PortNeed("tcp", site_ports.WORKERS, N_("Ray's workers"), _RAY_UNITS)
        yield PortNeed("tcp", site_ports.REPLICAS, N_("model replicas"), _RAY_UNITS, _LOOPBACK)
        yield PortNeed("tcp", site_ports.RELAY_REPLICAS, N_("the relay"), _RELAY, cluster)
    if Role.GATEWAY in host.roles:
        for name in site.gateway.networks:
            yield _port(site.gateway.port, N_("the gateway"), _GATEWAY, host.address_in(name))
    if Role.MONITORING in host.roles:
        yield _port(site_ports.PROMETHEUS, N_("Prometheus"), _PROMETHEUS, _LOOPBACK)
    yield _port(site_ports.NODE_EXPORTER, N_("the node exporter"), _EXPORTER)
    yield PortNeed(
        "udp", range(site_ports.TIME, site_ports.TIME + 1), N_("the time service"), _CHRONY
    )


def _port(
    number: int, what: str, units: frozenset[str], address: Address | None = None
) -> PortNeed:
    return PortNeed("tcp", range(number, number + 1), what, units, address)


# --- what the probe is asked ----------------------------------------------------------------------


def asked_of(site: Site, host: Host) -> dict[str, object]:
    """The parameters of :mod:`~appliance.provision.host_facts` for ``host``."""
    return {
        "folder": site.folder,
        "folders": [site.storage.path] if isinstance(site.storage, MountedStorage) else [],
        "write_bytes": WRITE_BYTES,
        "connect": [list(target) for target in _targets(site, host)],
        "name_servers": [str(address) for address in site.name_servers],
        "deadline_s": 8,
    }


def peers_of(site: Site, host: Host) -> tuple[Host, ...]:
    """The other hosts that it must reach over the cluster network: its Ray cluster's, and what the
    gateway stands in front of."""
    if Role.GATEWAY in host.roles:
        others = [other for other in site.hosts if other.runs_ray]
    else:
        others = [other for other in site.hosts if other.domain and other.domain == host.domain]
    return tuple(other for other in others if other != host)


def _targets(site: Site, host: Host) -> Iterator[tuple[str, str, int]]:
    if site.address(host, NetworkKind.CLUSTER):
        for peer in peers_of(site, host):
            address = site.address(peer, NetworkKind.CLUSTER)
            if address is not None:
                yield f"peer {peer.name}", str(address), peer.ssh.port
    if isinstance(site.storage, NfsStorage):
        yield "nfs", str(site.storage.server), site_ports.NFS
