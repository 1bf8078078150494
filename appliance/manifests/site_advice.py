"""What a valid site still had better not be: advice for whoever writes ``site.yaml``. Pure.

    for advice in advise(site):
        print(advice.subject, advice.what, advice.why, advice.fix)

A contradiction is an error of :class:`~appliance.manifests.site.Site`; advice is a choice that the
operator may make and an auditor will ask about.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from appliance.i18n import _
from appliance.manifests.site import LocalStorage, NfsStorage, Purpose, Role, Site

_BROAD = {4: 16, 6: 48}
"""An allowed flow to more than so many leading bits leave open is hardly a list of peers."""


@dataclass(frozen=True, slots=True)
class Advice:
    """One remark. ``subject`` is where in the file it belongs; ``code`` is stable."""

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
    """All that there is to say about a site, in the order of the file."""
    return (*_of_hosts(site), *_of_domains(site), *_of_services(site), *_of_egress(site))


def _of_domains(site: Site) -> Iterator[Advice]:
    for domain in site.trust_domains:
        if domain.purpose is Purpose.SHARED:
            yield Advice(
                "shared-domain",
                f"trust_domains: {domain.name}",
                _("Serving and tuning share one trust domain."),
                _("Ray does not isolate jobs from each other: who may tune can read what is served "
                  "(ANSSI, guide on generative AI, R12 and R21)."),
                _("Give tuning hosts a domain of their own (manifests/training-8.yaml), or note "
                  "in the risk analysis why one is enough."),
            )  # fmt: skip


def _of_hosts(site: Site) -> Iterator[Advice]:
    for host in site.hosts:
        if not host.ssh.host_keys:
            yield Advice(
                "host-key-open",
                f"hosts: {host.name}",
                _("No SSH host key is named for {host}.").format(host=host.name),
                _("Its key has to be compared by hand before it is talked to."),
                _("Put the line of 'ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub' on its "
                  "console into ssh.host_keys."),
            )  # fmt: skip
    gateway = site.gateway_host
    if gateway.domain is not None and len(site.hosts) > 1:
        yield Advice(
            "gateway-on-ray-host",
            f"hosts: {gateway.name}",
            _("The gateway runs beside Ray on {host}.").format(host=gateway.name),
            _("Whoever breaks out of a job there is next to the keys and the ledger."),
            _("On larger sites give the gateway a host of its own."),
        )


def _of_services(site: Site) -> Iterator[Advice]:
    if not site.time_servers:
        yield Advice(
            "no-time-servers",
            "time_servers",
            _("No time source is named."),
            _("The hosts agree with the head's clock, which may be wrong; certificates and the "
              "ledger's dates rest on it."),
            _("Name the hospital's NTP servers, if there are any inside."),
        )  # fmt: skip
    if not any(Role.MONITORING in host.roles for host in site.hosts):
        yield Advice(
            "no-monitoring",
            "hosts",
            _("No host has the role monitoring."),
            _("Nobody keeps figures of disks, memory and Ray's work over time."),
            _("Give one host the role monitoring."),
        )
    storage = site.storage
    if isinstance(storage, LocalStorage) and len(site.hosts) == 1:
        yield Advice(
            "one-disk",
            "storage",
            _("Data sets, checkpoints and adapters are on one host's own disk."),
            _("They are lost with it."),
            _("Back the folder up, or use nfs or mounted storage."),
        )
    if isinstance(storage, NfsStorage) and not any(
        storage.server in network.cidr for network in site.networks
    ):
        yield Advice(
            "nfs-elsewhere",
            "storage.server",
            _("{server} is in none of the site's networks.").format(server=storage.server),
            _("A host without a route to it cannot mount the export."),
            _("Use a server in a storage network."),
        )


def _of_egress(site: Site) -> Iterator[Advice]:
    if site.egress.default_route is not None:
        yield Advice(
            "default-route",
            "egress.default_route",
            _("Hosts keep their default route."),
            _("One wall less: only the firewall stops a packet then."),
            _("Remove default_route unless something needs it; its reason is in the evidence."),
        )
    if site.name_servers:
        yield Advice(
            "name-servers",
            "name_servers",
            _("Hosts may ask name servers."),
            _("Questions can carry data out where a server forwards them (DNS tunnels)."),
            _("Leave name_servers empty: the hosts know each other's names from /etc/hosts."),
        )
    for flow in site.egress.allow:
        if flow.destination.prefixlen <= _BROAD[flow.destination.version]:
            yield Advice(
                "broad-flow",
                f"egress.allow: {flow.name}",
                _("{flow} allows {network}.").format(flow=flow.name, network=flow.destination),
                _("So wide a network is hardly known host by host."),
                _("Name the hosts that are meant."),
            )
