"""A site as an Ansible inventory. Pure: values in, a value out.

The shape is that of Ansible's YAML inventory plugin: groups with hosts and children. There is one
group for each role, ``ray`` for every host of a Ray cluster, one for each trust domain
(``domain_<name>``), and ``time_source`` for the host whose clock the others follow. The variables
are all that a role knows of a site::

    all hosts     sovctl_home, site_name, site_files, site_hosts, release_id, release_dir,
                  previous_release, apt_repository, gateway_port, serving_replicas, shared_storage,
                  time_servers, name_servers, default_route_reason, management_networks
    each host     cluster_address, addresses, gpu_count, host_files, and how Ansible reaches it
    trust domain  trust_domain, trust_domain_purpose, ray_head_address

Whatever is secret is a file below ``host_files``, never a variable.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.manifests.site import (
    Host,
    MountedStorage,
    NetworkKind,
    NfsStorage,
    Role,
    Site,
    SiteNetwork,
)

SHARED_NFS = "/srv/sovctl-shared"
"""Where role ``store`` mounts a site's NFS export."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What is to be put on a site. ``files`` is the site's folder on the controller.

    ``apt_repository`` is the path of the bundle's Debian repository inside the release; empty if it
    brings none. ``previous_release`` is what runs now, if that is another release.
    """

    release_id: str
    files: Path
    apt_repository: str = ""
    serving_replicas: int = 1
    previous_release: str | None = None


def inventory(site: Site, deployment: Deployment) -> dict[str, Any]:
    """The inventory of ``site``: ``{"all": {"hosts": …, "children": …, "vars": …}}``."""
    return {
        "all": {
            "hosts": {host.name: _host(site, host, deployment) for host in site.hosts},
            "children": _groups(site),
            "vars": _site(site, deployment),
        }
    }


def domain_group(name: str) -> str:
    """The group of a trust domain; Ansible's groups have no dashes."""
    return f"domain_{name.replace('-', '_')}"


def _groups(site: Site) -> dict[str, Any]:
    groups: dict[str, Any] = {
        role.value: {"hosts": {h.name: {} for h in site.hosts if role in h.roles}} for role in Role
    }
    groups["ray"] = {"children": {Role.RAY_HEAD.value: {}, Role.RAY_WORKER.value: {}}}
    groups["time_source"] = {"hosts": {site.head(site.trust_domains[0].name).name: {}}}
    for domain in site.trust_domains:
        groups[domain_group(domain.name)] = {
            "hosts": {host.name: {} for host in site.domain_hosts(domain.name)},
            "vars": {
                "trust_domain": domain.name,
                "trust_domain_purpose": domain.purpose.value,
                "ray_head_address": _cluster_address(site, site.head(domain.name)),
            },
        }
    return groups


def _site(site: Site, deployment: Deployment) -> dict[str, Any]:
    route = site.egress.default_route
    common = {
        "sovctl_home": site.folder,
        "site_name": site.name,
        "site_files": str(deployment.files),
        "site_hosts": [
            {"name": host.name, "addresses": [str(i.address) for i in host.interfaces]}
            for host in site.hosts
        ],
        "release_id": deployment.release_id,
        "release_dir": f"{site.folder}/releases/{deployment.release_id}",
        "apt_repository": deployment.apt_repository,
        "gateway_port": site.gateway.port,
        "serving_replicas": deployment.serving_replicas,
        "shared_storage": _storage(site),
        "time_servers": [str(address) for address in site.time_servers],
        "name_servers": [str(address) for address in site.name_servers],
        "default_route_reason": route.reason if route else "",
        "management_networks": [str(network.cidr) for network in _management(site)],
        # Asking each host for its interpreter would cost a round trip; every Debian has this one.
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    if deployment.previous_release is not None:
        common["previous_release"] = deployment.previous_release
    return common


def _storage(site: Site) -> dict[str, str]:
    storage = site.storage
    made = {"kind": storage.kind, "server": "", "export": "", "path": ""}
    if isinstance(storage, NfsStorage):
        made |= {"server": str(storage.server), "export": storage.export, "path": SHARED_NFS}
    elif isinstance(storage, MountedStorage):
        made |= {"path": storage.path}
    return made


def _management(site: Site) -> list[SiteNetwork]:
    """The networks over which the controller reaches hosts."""
    reached = {host.name: site.management_address(host) for host in site.hosts}
    return [
        network
        for network in site.networks
        if any(address in network.cidr for address in reached.values())
    ]


def _host(site: Site, host: Host, deployment: Deployment) -> dict[str, Any]:
    variables = {
        "ansible_host": str(site.management_address(host)),
        "ansible_user": host.ssh.user,
        "ansible_port": host.ssh.port,
        "ansible_become": host.ssh.user != "root",
        "cluster_address": _cluster_address(site, host),
        "addresses": {i.network: str(i.address) for i in host.interfaces},
        "gpu_count": host.gpus.count,
        "host_files": str(deployment.files / "hosts" / host.name),
    }
    if host.ssh.key is not None:
        variables["ansible_ssh_private_key_file"] = host.ssh.key
        variables["ansible_ssh_common_args"] = "-o IdentitiesOnly=yes"
    return variables


def _cluster_address(site: Site, host: Host) -> str:
    """Empty for a host in no cluster network."""
    return str(site.address(host, NetworkKind.CLUSTER) or "")
