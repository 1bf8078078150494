"""What a valid site might do better: allowed, and yet worth a thought. Pure.

    for advice in advise(site):
        print(advice.subject, advice.what, advice.why, advice.fix)

What a site must keep is in :mod:`appliance.manifests.site`, and breaking it is an error. Here
is what an operator may well have decided on purpose; it is said once, by ``sovctl site check`` and
``sovctl plan``, and goes into the evidence, so that an auditor sees that it was known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from appliance.i18n import _
from appliance.manifests.site import (
    Host,
    LocalStorage,
    NetworkKind,
    NfsStorage,
    Purpose,
    Role,
    Site,
)

_BROAD_PREFIX = {4: 16, 6: 48}
"""A flow's destination with a prefix no longer than this is broad: 65 536 addresses of IPv4."""


@dataclass(frozen=True, slots=True)
class Advice:
    """One remark. ``code`` is stable; ``subject`` is the field of the file that it is about."""

    code: str
    subject: str
    what: str
    why: str
    fix: str

    def as_json(self) -> dict[str, str]:
        """The same for machines."""
        return {
            "code": self.code,
            "subject": self.subject,
            "what": self.what,
            "why": self.why,
            "fix": self.fix,
        }


def advise(site: Site) -> tuple[Advice, ...]:
    """Every remark on ``site``, those on what could leave it first."""
    return tuple(advice for look in _LOOKS for advice in look(site))


def _default_route(site: Site) -> Iterator[Advice]:
    route = site.egress.default_route
    if route is not None:
        yield Advice(
            "default-route",
            "egress.default_route",
            _("Every host keeps its default route, because: {reason}").format(reason=route.reason),
            _("The firewall alone then stands between the hosts and what is beyond the router."),
            _("Remove 'egress: default_route' if no host needs to reach another network."),
        )


def _flows(site: Site) -> Iterator[Advice]:
    for flow in site.egress.allow:
        to = f"{flow.destination} {flow.protocol}/{flow.port}"
        if flow.destination.prefixlen <= _BROAD_PREFIX[flow.destination.version]:
            yield Advice(
                "broad-flow",
                f"egress.allow: {flow.name}",
                _("Flow {name} leads to many machines: {to}.").format(name=flow.name, to=to),
                _("Whoever controls one of them can receive what leaves by it."),
                _("Name the one address that is meant, such as 10.9.0.5/32."),
            )
        if flow.destination.is_global:
            yield Advice(
                "public-flow",
                f"egress.allow: {flow.name}",
                _("Flow {name} leads out to the internet: {to}.").format(name=flow.name, to=to),
                _("A way out is open to what runs on the hosts it is for."),
                _("Put a server of your own in between, or remove the flow."),
            )


def _names(site: Site) -> Iterator[Advice]:
    if site.name_servers:
        servers = ", ".join(map(str, site.name_servers))
        yield Advice(
            "name-servers",
            "name_servers",
            _("The hosts may ask name servers: {servers}.").format(servers=servers),
            _("A name can carry data out, if the server asks others on their behalf."),
            _("Remove 'name_servers' (the hosts know each other), or let them answer no others."),
        )


def _beyond_routers(site: Site) -> Iterator[Advice]:
    if site.egress.default_route is not None:
        return
    wanted: list[tuple[str, IPv4Network | IPv6Network | IPv4Address | IPv6Address]] = [
        *((_("time server"), address) for address in site.time_servers),
        *((_("name server"), address) for address in site.name_servers),
        *((_("flow {name}").format(name=f.name), f.destination) for f in site.egress.allow),
    ]
    far = tuple(f"{what} {to}" for what, to in wanted if not _near(site, to))
    if far:
        yield Advice(
            "beyond-a-router",
            "networks",
            _("None of the site's networks holds: {far}.").format(far=", ".join(far)),
            _("Without a default route a host gets there only by a route of its own."),
            _("Add that route on the hosts, or use addresses in the site's networks."),
        )


def _near(site: Site, place: IPv4Network | IPv6Network | IPv4Address | IPv6Address) -> bool:
    """Whether some network of the site holds an address, or a part of a network."""
    if isinstance(place, IPv4Address | IPv6Address):
        return any(place in network.cidr for network in site.networks)
    return any(place.version == n.cidr.version and n.cidr.overlaps(place) for n in site.networks)


def _shared_domain(site: Site) -> Iterator[Advice]:
    for domain in site.trust_domains:
        if domain.purpose is Purpose.SHARED:
            yield Advice(
                "shared-domain",
                f"trust_domains: {domain.name}",
                _("Trust domain {name} both serves users and tunes on private data.").format(
                    name=domain.name
                ),
                _(
                    "Ray does not isolate jobs from each other: a tuning job can reach what serves."
                    " ANSSI's guide on generative AI asks for them apart (R12, R21)."
                ),
                _(
                    "Give tuning hosts a domain of their own (manifests/training-8.yaml), or note"
                    " in the risk analysis why one is enough."
                ),
            )


def _idle_domain(site: Site) -> Iterator[Advice]:
    for domain in site.trust_domains:
        if not any(Role.RAY_WORKER in h.roles for h in site.domain_hosts(domain.name)):
            yield Advice(
                "no-worker",
                f"trust_domains: {domain.name}",
                _("Trust domain {name} has no ray_worker.").format(name=domain.name),
                _("A head alone schedules and runs nothing: no model answers or learns there."),
                _("Add the role ray_worker to one of its hosts, which may be the head."),
            )


def _gateway_host(site: Site) -> Iterator[Advice]:
    host = site.gateway_host
    if len(site.hosts) > 1 and host.roles & {Role.RAY_HEAD, Role.RAY_WORKER}:
        yield Advice(
            "gateway-on-ray-host",
            f"hosts: {host.name}",
            _("Host {name} is the gateway and also runs Ray.").format(name=host.name),
            _("A job that breaks out of its user there is beside the keys and the ledger."),
            _("Give the gateway a host of its own; it needs no GPU."),
        )


def _gateway_names(site: Site) -> Iterator[Advice]:
    if not site.gateway.names:
        yield Advice(
            "gateway-without-name",
            "gateway.names",
            _("The gateway has no name, so that callers must use its address."),
            _("Its certificate then holds for that address only, and moving it breaks them all."),
            _("Add 'gateway: names: [ai.hospital.example]', the name that your own DNS answers."),
        )


def _management(site: Site) -> Iterator[Advice]:
    if not any(network.kind is NetworkKind.MANAGEMENT for network in site.networks):
        yield Advice(
            "no-management-network",
            "networks",
            _("SSH comes in by the network that each host names first."),
            _("Whoever is in that network, callers or Ray's jobs, can try to log in."),
            _("Add a network of kind 'management' for operators only, if the hosts have one."),
        )


def _host_keys(site: Site) -> Iterator[Advice]:
    unpinned = tuple(host.name for host in site.hosts if not host.ssh.host_keys)
    if unpinned:
        yield Advice(
            "host-keys-not-pinned",
            "hosts",
            _("No SSH host key is written down for: {hosts}.").format(hosts=", ".join(unpinned)),
            _("The first contact then rests on what somebody confirms at a terminal."),
            _(
                "Run 'ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub' on each host's console and"
                " write what it prints under 'ssh: host_keys'."
            ),
        )
    users = Counter(key for host in site.hosts for key in set(host.ssh.host_keys))
    twins = tuple(h.name for h in site.hosts if any(users[key] > 1 for key in h.ssh.host_keys))
    if twins:
        yield Advice(
            "host-key-shared",
            "hosts",
            _("These hosts have the same SSH host key: {hosts}.").format(hosts=", ".join(twins)),
            _("They were cloned from one image, and each can pass for the other."),
            _("On each: 'rm /etc/ssh/ssh_host_* && ssh-keygen -A', and write the new ones down."),
        )


def _time(site: Site) -> Iterator[Advice]:
    if not site.time_servers:
        head = site.head(site.trust_domains[0].name).name
        yield Advice(
            "no-time-servers",
            "time_servers",
            _("All hosts follow the clock of {host}, which follows nobody.").format(host=head),
            _("It drifts by seconds a week, and with it the ledger's times and expiry dates."),
            _("Name your own time servers under 'time_servers'."),
        )


def _storage(site: Site) -> Iterator[Advice]:
    if isinstance(site.storage, LocalStorage):
        yield Advice(
            "local-storage",
            "storage",
            _("Data sets, checkpoints and adapters lie on the disk of one host."),
            _("They are lost with it, and a second host could not see them."),
            _("Back up {folder}, or write 'storage: {{kind: nfs, …}}'.").format(folder=site.folder),
        )
    if isinstance(site.storage, NfsStorage) and not _on_storage_network(site, site.storage):
        yield Advice(
            "storage-in-the-clear",
            "storage.server",
            _("Files travel to {server} over a network that is not for storage only.").format(
                server=site.storage.server
            ),
            _("NFS here is not encrypted: whoever is in that network can read them."),
            _("Put the server into a network of kind 'storage' that only these hosts are in."),
        )


def _on_storage_network(site: Site, storage: NfsStorage) -> bool:
    return any(
        network.kind is NetworkKind.STORAGE and storage.server in network.cidr
        for network in site.networks
    )


def _monitoring(site: Site) -> Iterator[Advice]:
    if not any(Role.MONITORING in host.roles for host in site.hosts):
        yield Advice(
            "no-monitoring",
            "hosts",
            _("No host keeps measurements of the others."),
            _("A disk that fills or a GPU that overheats is noticed when something has stopped."),
            _("Add the role 'monitoring' to one host; best the gateway's."),
        )


def _uneven_gpus(site: Site) -> Iterator[Advice]:
    for domain in site.trust_domains:
        workers = [h for h in site.domain_hosts(domain.name) if Role.RAY_WORKER in h.roles]
        kinds = {_gpus(host) for host in workers}
        if len(kinds) > 1:
            yield Advice(
                "uneven-gpus",
                f"trust_domains: {domain.name}",
                _("The hosts of trust domain {name} have different GPUs: {kinds}.").format(
                    name=domain.name, kinds=", ".join(sorted(kinds))
                ),
                _("A tuning run is as fast as its slowest host, and a replica may land on any."),
                _("Correct 'gpus' if that is a slip; else expect the speed of the weakest."),
            )


def _gpus(host: Host) -> str:
    return f"{host.gpus.count} × {host.gpus.model or 'GPU'}" if host.gpus.count else _("none")


_LOOKS: tuple[Callable[[Site], Iterator[Advice]], ...] = (
    _default_route,
    _flows,
    _names,
    _beyond_routers,
    _shared_domain,
    _idle_domain,
    _gateway_host,
    _gateway_names,
    _management,
    _host_keys,
    _time,
    _storage,
    _monitoring,
    _uneven_gpus,
)
