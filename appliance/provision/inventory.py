"""A site as an Ansible inventory. Pure: a value in, a value out.

The shape is that of Ansible's YAML inventory plugin: groups with hosts and children. There is one
group for each role, one for each trust domain (``domain_<name>``), and variables that are needed to
reach a host or to place it; policy stays in the site, which playbooks get whole.
"""

from __future__ import annotations

from typing import Any

from appliance.manifests.site import Host, NetworkKind, Role, Site


def inventory(site: Site) -> dict[str, Any]:
    """The inventory of ``site``: ``{"all": {"hosts": …, "children": …, "vars": …}}``."""
    children: dict[str, Any] = {}
    for role in Role:
        children[role.value] = {"hosts": {h.name: {} for h in site.hosts if role in h.roles}}
    for domain in site.trust_domains:
        members = site.domain_hosts(domain.name)
        children[f"domain_{domain.name.replace('-', '_')}"] = {
            "hosts": {host.name: {} for host in members},
            "vars": {
                "trust_domain": domain.name,
                "trust_domain_purpose": domain.purpose.value,
                "ray_head_address": _cluster_address(site, site.head(domain.name)),
            },
        }
    return {
        "all": {
            "hosts": {host.name: _variables(site, host) for host in site.hosts},
            "children": children,
            "vars": {"sovctl_home": site.folder, "site_name": site.name},
        }
    }


def _variables(site: Site, host: Host) -> dict[str, Any]:
    return {
        "ansible_host": _management_address(site, host),
        "ansible_user": host.ssh.user,
        "ansible_port": host.ssh.port,
        "cluster_address": _cluster_address(site, host),
        "addresses": {i.network: str(i.address) for i in host.interfaces},
        "gpus": host.gpus.count,
    }


def _management_address(site: Site, host: Host) -> str:
    """Over the management network where there is one, else the first the host names."""
    return _address(site, host, NetworkKind.MANAGEMENT) or str(host.interfaces[0].address)


def _cluster_address(site: Site, host: Host) -> str | None:
    return _address(site, host, NetworkKind.CLUSTER)


def _address(site: Site, host: Host, kind: NetworkKind) -> str | None:
    for network in site.networks:
        address = host.address_in(network.name)
        if network.kind is kind and address is not None:
            return str(address)
    return None
