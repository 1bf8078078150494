"""What a valid site might do better: allowed, and yet worth a thought. Pure.

    for advice in advise(site):
        print(advice.subject, advice.what, advice.why, advice.fix)

What a site must keep is in :mod:`appliance.manifests.site_rules`, and breaking it is an error. Here
is what an operator may well have decided on purpose; ``sovctl site check`` says it, for people and
with ``--json`` for the evidence, so that an auditor sees that it was known.

:data:`REMARKS` is all that may be said, in its order: for each the reason and the remedy, and what
looks for it, which yields a subject and a sentence each time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from appliance.i18n import N_, _
from appliance.manifests.site import (
    Flow,
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

Said = Iterator[tuple[str, str]]
"""The field of the file that is meant, and what is so there."""


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
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Remark:
    """What may be said of a site, and what looks whether it is to be said."""

    code: str
    look: Callable[[Site], Said]
    why: str
    fix: str


def advise(site: Site) -> tuple[Advice, ...]:
    """Every remark on ``site``, those on what could leave it first."""
    return tuple(
        Advice(remark.code, subject, what, _(remark.why), _(remark.fix))
        for remark in REMARKS
        for subject, what in remark.look(site)
    )


# --- what could leave it --------------------------------------------------------------------------


def _default_route(site: Site) -> Said:
    route = site.egress.default_route
    if route is not None:
        text = _("Every host keeps its default route, because: {reason}")
        yield "egress.default_route", text.format(reason=route.reason)


def _broad_flows(site: Site) -> Said:
    text = _("Flow {name} leads to many machines: {to}.")
    for flow in site.egress.allow:
        if flow.destination.prefixlen <= _BROAD_PREFIX[flow.destination.version]:
            yield _of_flow(flow, text)


def _public_flows(site: Site) -> Said:
    text = _("Flow {name} leads out to the internet: {to}.")
    for flow in site.egress.allow:
        if flow.destination.is_global:
            yield _of_flow(flow, text)


def _of_flow(flow: Flow, text: str) -> tuple[str, str]:
    to = f"{flow.destination} {flow.protocol}/{flow.port}"
    return f"egress.allow: {flow.name}", text.format(name=flow.name, to=to)


def _name_servers(site: Site) -> Said:
    if site.name_servers:
        servers = ", ".join(map(str, site.name_servers))
        text = _("The hosts may ask name servers: {servers}.")
        yield "name_servers", text.format(servers=servers)


def _beyond_routers(site: Site) -> Said:
    if site.egress.default_route is not None:
        return
    wanted: list[tuple[str, IPv4Network | IPv6Network | IPv4Address | IPv6Address]] = [
        *((_("time server"), address) for address in site.time_servers),
        *((_("name server"), address) for address in site.name_servers),
        *((_("flow {name}").format(name=f.name), f.destination) for f in site.egress.allow),
    ]
    far = tuple(f"{what} {to}" for what, to in wanted if not _near(site, to))
    if far:
        text = _("None of the site's networks holds: {far}.")
        yield "networks", text.format(far=", ".join(far))


def _near(site: Site, place: IPv4Network | IPv6Network | IPv4Address | IPv6Address) -> bool:
    """Whether some network of the site holds an address, or a part of a network."""
    if isinstance(place, IPv4Address | IPv6Address):
        return any(place in network.cidr for network in site.networks)
    return any(place.version == n.cidr.version and n.cidr.overlaps(place) for n in site.networks)


# --- trust domains and the gateway ----------------------------------------------------------------


def _shared_domains(site: Site) -> Said:
    text = _("Trust domain {name} both serves users and tunes on private data.")
    for domain in site.trust_domains:
        if domain.purpose is Purpose.SHARED:
            yield f"trust_domains: {domain.name}", text.format(name=domain.name)


def _idle_domains(site: Site) -> Said:
    text = _("Trust domain {name} has no ray_worker.")
    for domain in site.trust_domains:
        if not any(Role.RAY_WORKER in h.roles for h in site.domain_hosts(domain.name)):
            yield f"trust_domains: {domain.name}", text.format(name=domain.name)


def _gateway_beside_ray(site: Site) -> Said:
    host = site.gateway_host
    if len(site.hosts) > 1 and host.runs_ray:
        text = _("Host {name} is the gateway and also runs Ray.")
        yield f"hosts: {host.name}", text.format(name=host.name)


def _gateway_without_name(site: Site) -> Said:
    if not site.gateway.names:
        yield "gateway.names", _("The gateway has no name, so that callers must use its address.")


# --- operators and their hosts --------------------------------------------------------------------


def _no_management(site: Site) -> Said:
    if not any(network.kind is NetworkKind.MANAGEMENT for network in site.networks):
        yield "networks", _("SSH comes in by the network that each host names first.")


def _unpinned_keys(site: Site) -> Said:
    unpinned = tuple(host.name for host in site.hosts if not host.ssh.host_keys)
    if unpinned:
        text = _("No SSH host key is written down for: {hosts}.")
        yield "hosts", text.format(hosts=", ".join(unpinned))


def _shared_keys(site: Site) -> Said:
    users = Counter(key for host in site.hosts for key in set(host.ssh.host_keys))
    twins = tuple(h.name for h in site.hosts if any(users[key] > 1 for key in h.ssh.host_keys))
    if twins:
        text = _("These hosts have the same SSH host key: {hosts}.")
        yield "hosts", text.format(hosts=", ".join(twins))


def _no_time_servers(site: Site) -> Said:
    if not site.time_servers:
        text = _("All hosts follow the clock of {host}, which follows nobody.")
        yield "time_servers", text.format(host=site.time_source.name)


def _no_monitoring(site: Site) -> Said:
    if not any(Role.MONITORING in host.roles for host in site.hosts):
        yield "hosts", _("No host keeps measurements of the others.")


# --- storage and accelerators ---------------------------------------------------------------------


def _local_storage(site: Site) -> Said:
    if isinstance(site.storage, LocalStorage):
        text = _("Data sets, checkpoints and adapters lie on the disk of one host, in {folder}.")
        yield "storage", text.format(folder=site.folder)


def _storage_in_the_clear(site: Site) -> Said:
    storage = site.storage
    if isinstance(storage, NfsStorage) and not _on_storage_network(site, storage):
        text = _("Files travel to {server} over a network that is not for storage only.")
        yield "storage.server", text.format(server=storage.server)


def _on_storage_network(site: Site, storage: NfsStorage) -> bool:
    return any(
        network.kind is NetworkKind.STORAGE and storage.server in network.cidr
        for network in site.networks
    )


def _uneven_gpus(site: Site) -> Said:
    text = _("The hosts of trust domain {name} have different GPUs: {kinds}.")
    for domain in site.trust_domains:
        workers = [h for h in site.domain_hosts(domain.name) if Role.RAY_WORKER in h.roles]
        kinds = {_gpus(host) for host in workers}
        if len(kinds) > 1:
            shown = text.format(name=domain.name, kinds=", ".join(sorted(kinds)))
            yield f"trust_domains: {domain.name}", shown


def _gpus(host: Host) -> str:
    return f"{host.gpus.count} × {host.gpus.model or 'GPU'}" if host.gpus.count else _("none")


REMARKS: tuple[Remark, ...] = (
    Remark(
        "default-route",
        _default_route,
        N_("The firewall alone then stands between the hosts and what is beyond the router."),
        N_("Remove 'egress: default_route' if no host needs to reach another network."),
    ),
    Remark(
        "broad-flow",
        _broad_flows,
        N_("Whoever controls one of them can receive what leaves by it."),
        N_("Name the one address that is meant, such as 10.9.0.5/32."),
    ),
    Remark(
        "public-flow",
        _public_flows,
        N_("A way out is open to what runs on the hosts it is for."),
        N_("Put a server of your own in between, or remove the flow."),
    ),
    Remark(
        "name-servers",
        _name_servers,
        N_("A name can carry data out, if the server asks others on their behalf."),
        N_("Remove 'name_servers' (the hosts know each other), or let them answer no others."),
    ),
    Remark(
        "beyond-a-router",
        _beyond_routers,
        N_("Without a default route a host gets there only by a route of its own."),
        N_("Add that route on the hosts, or use addresses in the site's networks."),
    ),
    Remark(
        "shared-domain",
        _shared_domains,
        N_("Ray does not isolate jobs from each other: a tuning job can reach what serves."
           " ANSSI's guide on generative AI asks for them apart (R12, R21)."),
        N_("Give tuning hosts a domain of their own (manifests/training-8.yaml), or note"
           " in the risk analysis why one is enough."),
    ),
    Remark(
        "no-worker",
        _idle_domains,
        N_("A head alone schedules and runs nothing: no model answers or learns there."),
        N_("Add the role ray_worker to one of its hosts, which may be the head."),
    ),
    Remark(
        "gateway-on-ray-host",
        _gateway_beside_ray,
        N_("A job that breaks out of its user there is beside the keys and the ledger."),
        N_("Give the gateway a host of its own; it needs no GPU."),
    ),
    Remark(
        "gateway-without-name",
        _gateway_without_name,
        N_("Its certificate then holds for that address only, and moving it breaks them all."),
        N_("Add 'gateway: names: [ai.hospital.example]', the name that your own DNS answers."),
    ),
    Remark(
        "no-management-network",
        _no_management,
        N_("Whoever is in that network, callers or Ray's jobs, can try to log in."),
        N_("Add a network of kind 'management' for operators only, if the hosts have one."),
    ),
    Remark(
        "host-keys-not-pinned",
        _unpinned_keys,
        N_("The first contact then rests on what somebody confirms at a terminal."),
        N_("Run 'ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub' on each host's console and"
           " write what it prints under 'ssh: host_keys'."),
    ),
    Remark(
        "host-key-shared",
        _shared_keys,
        N_("They were cloned from one image, and each can pass for the other."),
        N_("On each: 'rm /etc/ssh/ssh_host_* && ssh-keygen -A', and write the new ones down."),
    ),
    Remark(
        "no-time-servers",
        _no_time_servers,
        N_("It drifts by seconds a week, and with it the ledger's times and expiry dates."),
        N_("Name your own time servers under 'time_servers'."),
    ),
    Remark(
        "local-storage",
        _local_storage,
        N_("They are lost with it, and a second host could not see them."),
        N_("Back that folder up, or write 'storage: {kind: nfs, …}'."),
    ),
    Remark(
        "storage-in-the-clear",
        _storage_in_the_clear,
        N_("NFS here is not encrypted: whoever is in that network can read them."),
        N_("Put the server into a network of kind 'storage' that only these hosts are in."),
    ),
    Remark(
        "no-monitoring",
        _no_monitoring,
        N_("A disk that fills or a GPU that overheats is noticed when something has stopped."),
        N_("Add the role 'monitoring' to one host; best the gateway's."),
    ),
    Remark(
        "uneven-gpus",
        _uneven_gpus,
        N_("A tuning run is as fast as its slowest host, and a replica may land on any."),
        N_("Correct 'gpus' if that is a slip; else expect the speed of the weakest."),
    ),
)  # fmt: skip
