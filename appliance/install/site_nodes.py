"""What each host of a site is told of itself: ``node.json`` from ``site.yaml``. Pure."""

from __future__ import annotations

from appliance.cluster.node_file import DomainNodes, GatewayNode, NodeFile
from appliance.manifests.site import (
    Host,
    MountedStorage,
    NetworkKind,
    NfsStorage,
    Role,
    Site,
)
from appliance.provision.inventory import SHARED_NFS


def node_of(site: Site, host: Host, release_id: str) -> NodeFile:
    """The ``node.json`` of ``host`` when the site runs ``release_id``."""
    domain = next((d for d in site.trust_domains if host.runs_ray and d.name == host.domain), None)
    return NodeFile(
        version=1,
        site=site.name,
        host=host.name,
        domain=domain.name if domain else None,
        purpose=domain.purpose if domain else None,
        head=Role.RAY_HEAD in host.roles,
        worker=Role.RAY_WORKER in host.roles,
        address=cluster_address(site, host),
        head_address=cluster_address(site, site.head(domain.name)) if domain else None,
        peers=ray_addresses(site, domain.name) if domain else (),
        seal="firewall",
        release=release_id,
        shared=shared_folder(site),
        replicas=serving_replicas(site),
        gateway=_gateway(site) if Role.GATEWAY in host.roles else None,
    )


def cluster_address(site: Site, host: Host) -> str:
    """Its address in the cluster network, or where the controller reaches it."""
    return str(site.address(host, NetworkKind.CLUSTER) or site.management_address(host))


def ray_addresses(site: Site, domain: str) -> tuple[str, ...]:
    """The addresses of a trust domain's Ray hosts, the head's first."""
    hosts = site.domain_hosts(domain)
    return tuple(cluster_address(site, host) for host in hosts if host.runs_ray)


def serving_replicas(site: Site) -> int:
    """One model server for each worker of the domain that serves."""
    hosts = site.domain_hosts(site.serving_domain.name)
    return max(1, sum(Role.RAY_WORKER in host.roles for host in hosts))


def shared_folder(site: Site) -> str | None:
    """Where data sets, runs and adapters are shared; None where they are on the one host."""
    match site.storage:
        case NfsStorage():
            return SHARED_NFS
        case MountedStorage(path=path):
            return path
        case _:
            return None


def gateway_addresses(site: Site) -> tuple[str, ...]:
    """Those the gateway listens on."""
    found = (site.gateway_host.address_in(name) for name in site.gateway.networks)
    return tuple(str(address) for address in found if address is not None)


def _gateway(site: Site) -> GatewayNode:
    tuning = site.tuning_domain
    return GatewayNode(
        port=site.gateway.port,
        addresses=gateway_addresses(site),
        serving=_domain(site, site.serving_domain.name),
        tuning=_domain(site, tuning.name) if tuning else None,
    )


def _domain(site: Site, name: str) -> DomainNodes:
    return DomainNodes(name, cluster_address(site, site.head(name)), ray_addresses(site, name))
