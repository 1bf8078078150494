"""The flow matrix: what a site needs is in it, Ray stays within its domain, nobody else is met."""

from __future__ import annotations

from ipaddress import ip_network

from egress_sites import hospital, single, sites
from hypothesis import HealthCheck, given, settings

from appliance.egress.policy import AllowedFlow, flow_matrix, flows_of
from appliance.manifests.site import Role, Site


def meets(flow: AllowedFlow, address: str, port: int) -> bool:
    net = ip_network(address)
    within = any(p.version == net.version and net.subnet_of(p) for p in flow.peers)
    return within and any(first <= port <= last for first, last in flow.ports)


def may(site: Site, host: str, direction: str, address: str, port: int) -> set[str]:
    """The names of the flows that allow it."""
    flows = flows_of(site, site.host(host))
    return {f.name for f in flows if f.direction == direction and meets(f, address, port)}


def test_what_a_site_needs_is_allowed_on_both_sides() -> None:
    site = hospital()
    for client, server, port, name in (
        ("n3", "n2", 6379, "ray-gcs"),
        ("n3", "n2", 6384, "ray-daemons"),
        ("n5", "n4", 10002, "ray-workers"),
        ("n4", "n5", 33791, "ray-collective"),
        ("n1", "n4", 9443, "relay-dashboard"),
        ("n1", "n3", 9599, "relay-replicas"),
        ("n1", "n5", 6385, "ray-metrics"),
        ("n1", "n5", 9100, "node-metrics"),
        ("n5", "n2", 123, "time"),
    ):
        assert name in may(site, client, "out", f"10.1.0.{server[1]}", port)
        assert name in may(site, server, "in", f"10.1.0.{client[1]}", port)
    assert may(site, "n1", "in", "10.3.0.77", 8443) == {"gateway"}
    assert may(site, "n5", "in", "fd00:1::77", 22) == {"ssh"}
    assert may(site, "n5", "out", "10.2.0.250", 2049) == {"nfs"}
    assert may(site, "n2", "out", "10.0.0.200", 123) == {"time-servers"}
    assert may(site, "n3", "out", "fd00:1::201", 53) == {"names"}
    assert may(site, "n1", "out", "10.9.0.6", 6514) == {"operator-siem"}


def test_nothing_of_ray_or_the_relay_leads_into_another_domain() -> None:
    site = hospital()
    for port in (6379, 6380, 6385, 10002, 10999, 32768, 33791, 9443, 9444, 9500):
        for one, other in (("n2", "n4"), ("n4", "n2"), ("n3", "n5"), ("n5", "n3")):
            assert not may(site, one, "out", f"10.1.0.{other[1]}", port)
            assert not may(site, one, "in", f"10.1.0.{other[1]}", port)
    # and what only the head listens on is not let in elsewhere
    assert not may(site, "n3", "in", "10.1.0.2", 6379)
    assert not may(site, "n3", "in", "10.1.0.1", 9444)


def test_one_host_talks_to_nobody_first() -> None:
    flows = flow_matrix(single())
    assert {flow.direction for flow in flows} == {"in"}
    assert {flow.name for flow in flows} == {"ssh", "gateway"}


def test_an_operators_flow_between_hosts_opens_nothing_beside_its_destination() -> None:
    flow = {
        "name": "backup", "reason": "nightly copies to the gateway host", "sources": ["ray_worker"],
        "destination": "10.2.0.1/32", "protocol": "tcp", "port": 8022,
    }  # fmt: skip
    site = hospital(egress={"allow": [flow]})
    assert may(site, "n5", "out", "10.2.0.1", 8022) == {"operator-backup"}
    assert may(site, "n1", "in", "10.2.0.5", 8022) == {"operator-backup"}
    assert not may(site, "n5", "out", "10.0.0.1", 8022)
    assert not may(site, "n1", "in", "10.0.0.5", 8022)
    opened = [f for f in flows_of(site, site.host("n1")) if f.name == "operator-backup"]
    assert [str(address) for flow in opened for address in flow.local] == ["10.2.0.1"]


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(sites())
def test_every_flow_has_a_reason_two_sides_and_known_peers(site: Site) -> None:
    known = [n.cidr for n in site.networks] + [ip_network(a) for a in site.time_servers]
    matrix = flow_matrix(site)
    for flow in matrix:
        assert flow.name
        assert len(flow.reason) >= 10
        assert flow.peers
        own = {i.address for i in site.host(flow.host).interfaces}
        assert set(flow.local) <= own
        for peer in flow.peers:
            assert any(peer.version == k.version and peer.subnet_of(k) for k in known)
            assert peer.prefixlen > 0
        if flow.direction == "out":
            for other in site.hosts:
                for interface in other.interfaces:
                    if any(interface.address in peer for peer in flow.peers):
                        assert any(
                            twin.host == other.name
                            and twin.direction == "in"
                            and (twin.name, twin.ports) == (flow.name, flow.ports)
                            for twin in matrix
                        )
    for host in site.hosts:
        reached = [f for f in matrix if f.host == host.name and f.name == "ssh"]
        assert reached, "an operator reaches every host"
        if Role.GATEWAY in host.roles:
            assert any(f.host == host.name and f.name == "gateway" for f in matrix)
