"""Does the network fit: addresses, speed, MTU, routes, ports, names, the way to peers. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Final

from appliance.egress.policy import management_networks
from appliance.i18n import _
from appliance.manifests.site import NetworkKind
from appliance.provision.facts import Address, Listener, Route
from appliance.provision.finding import HostFinding
from appliance.provision.needs import PortNeed, peers_of
from appliance.provision.subject import Subject

GOOD_SPEED: Final = 10_000  # Mbit/s: a 16 GB model to a node in 13 s; gradients want more
SLOW_NAME_MS: Final = 2_000  # sudo and Ray look up the host's own name again and again
_HEADERS: Final = {4: 40, 6: 60}  # bytes of IP and TCP, beside what a segment carries
_OPTIONS: Final = 12  # TCP's timestamps, which the largest segment may or may not leave room for


def addresses(on: Subject) -> Iterator[HostFinding]:
    """Every address of site.yaml is on one of the host's interfaces, and its link is up."""
    if on.facts.interfaces is None or any(i.addresses is None for i in on.facts.interfaces):
        remedy = _("Install iproute2 on it, or compare by hand.")
        yield on.untold(_("its addresses are not known"), remedy, "interfaces")
        return
    for given in on.host.interfaces:
        found = on.facts.interface_of(given.address)
        if found is None:
            text = _("{address} ({network}) is on none of its interfaces").format(
                address=given.address, network=given.network
            )
            yield on.failed(text, _("Correct site.yaml, or the host: 'ip addr' lists what it has."))
        elif found.state == "down":
            text = _("{address} is on {name}, whose link is down").format(
                address=given.address, name=found.name
            )
            yield on.failed(
                text, _("Check the cable and 'ip link set {n} up'.").format(n=found.name)
            )
        else:
            yield on.passed(f"{given.network}: {given.address} ({found.name})")


def speed(on: Subject) -> Iterator[HostFinding]:
    """How fast the cluster network's interface is."""
    address = on.site.address(on.host, NetworkKind.CLUSTER)
    found = on.facts.interface_of(address) if address is not None else None
    if found is None:
        yield on.passed(_("no interface in a cluster network"))
    elif found.speed is None:
        yield on.passed(_("{name} does not tell its speed").format(name=found.name))
    elif found.speed < GOOD_SPEED and len(on.site.hosts) > 1:
        yield on.warned(
            _("{name} does {n} Mbit/s").format(name=found.name, n=found.speed),
            _("Copying models and tuning over hosts will be slow; use a port of 10 Gbit/s."),
        )
    else:
        yield on.passed(f"{found.name}: {found.speed} Mbit/s")


def mtu(on: Subject) -> Iterator[HostFinding]:
    """Each interface carries what site.yaml says of its network, and so does the way to peers."""
    networks = {network.name: network for network in on.site.networks}
    for given in on.host.interfaces:
        wanted = networks[given.network].mtu
        found = on.facts.interface_of(given.address)
        if found is None or found.mtu is None:
            continue  # the check of addresses says why
        text = _("{name} has an MTU of {mtu}; {network} is to have {wanted}").format(
            name=found.name, mtu=found.mtu, network=given.network, wanted=wanted
        )
        remedy = _("Run 'ip link set {name} mtu {wanted}' and make it stay, or correct site.yaml.")
        if found.mtu != wanted:
            yield on.failed(text, remedy.format(name=found.name, wanted=wanted))
        else:
            yield on.passed(f"{given.network}: {found.mtu}")
    cluster = on.site.address(on.host, NetworkKind.CLUSTER)
    interface = on.facts.interface_of(cluster) if cluster is not None else None
    for each in on.facts.connections or ():
        if not each.name.startswith("peer ") or each.segment is None or interface is None:
            continue
        least = (interface.mtu or 0) - _HEADERS[each.address.version] - _OPTIONS
        if each.segment < least:
            text = _("{name}: packets carry {n} bytes, {least} were expected").format(
                name=each.name, n=each.segment, least=least
            )
            yield on.warned(
                text, _("Compare the MTU of both hosts and of the switch between them.")
            )


def routes(on: Subject) -> Iterator[HostFinding]:
    """The controller is still reached once the default route is gone."""
    known = on.facts.routes
    if known is None:
        yield on.untold(_("its routes are not known"), _("Run 'ip route' on it."), "routes")
        return
    defaults = [route for route in known if route.to.prefixlen == 0]
    if on.site.egress.default_route is not None:
        yield on.passed(_("the default route stays, as site.yaml says"))
        return
    client = on.meeting.client
    way = way_to(known, client) if client is not None and not client.is_loopback else None
    if client is not None and way is not None and way.to.prefixlen == 0:
        text = _("the controller ({client}) is reached by the default route, which will go")
        remedy = _(
            "Give the host a route to the controller's network ('ip route add …'), or say why the "
            "default route stays: 'egress: default_route: reason' in site.yaml."
        )
        yield on.failed(text.format(client=client), remedy)
    elif defaults:
        via = ", ".join(sorted({str(route.via or route.device) for route in defaults}))
        yield on.passed(_("the default route (via {via}) will be taken away").format(via=via))
    else:
        yield on.passed(_("no default route"))


def way_to(routes: tuple[Route, ...], address: Address) -> Route | None:
    """The most specific of ``routes`` that leads to ``address``."""
    leading = [r for r in routes if r.to.version == address.version and address in r.to]
    return max(leading, key=lambda route: route.to.prefixlen, default=None)


def operator(on: Subject) -> Iterator[HostFinding]:
    """The seal lets SSH in from the management networks only: the controller must be in one."""
    client = on.meeting.client
    if client is None or client.is_loopback:
        yield on.passed(_("not seen"))
        return
    networks = management_networks(on.site)
    inside = next((network for network in networks if client in network), None)
    if inside is None:
        text = _("the controller ({client}) is in none of the networks that may use SSH: {names}")
        names = ", ".join(map(str, networks))
        remedy = _(
            "Run sovctl from a machine in one of them, or make the controller's network one of "
            "site.yaml's with 'kind: management'; the seal would lock you out."
        )
        yield on.failed(text.format(client=client, names=names), remedy)
    else:
        yield on.passed(f"{client} ({inside})")


def ports(on: Subject) -> Iterator[HostFinding]:
    """What will listen here finds its ports free, or has them already."""
    taken = on.facts.listeners
    if taken is None:
        yield on.untold(_("its ports in use are not known"), _("Run 'ss -ltnup' on it."), "ports")
        return
    clashes = 0
    for need in on.needs.ports:
        for listener in taken:
            if not _clash(on, need, listener):
                continue
            clashes += 1
            owner = listener.process or _("a program that only root can see")
            text = _("{protocol} port {port} ({what}) is taken by {owner} on {address}").format(
                protocol=listener.protocol, port=listener.port, what=_(need.what),
                owner=owner, address=listener.address,
            )  # fmt: skip
            stop = listener.unit or owner
            remedy = _(
                "Stop it: 'systemctl disable --now {unit}', or give it another port."
            ).format(unit=stop)
            yield on.failed(text, remedy) if need.firm else on.warned(text, remedy)
    if not clashes:
        yield on.passed(_("all ports are free or ours"))


def _clash(on: Subject, need: PortNeed, listener: Listener) -> bool:
    if listener.protocol != need.protocol or listener.port not in need.ports:
        return False
    if listener.unit in need.units or (listener.unit or "").startswith("sovctl-"):
        return False
    if (listener.program or "").startswith(f"{on.site.folder}/"):
        return False
    theirs, ours = listener.address, need.address
    return ours is None or theirs.is_unspecified or theirs == ours


def names(on: Subject) -> Iterator[HostFinding]:
    """The site's name servers answer, and the host's own name is no trouble."""
    silent = [str(s) for s in on.site.name_servers if on.facts.answers.get(str(s)) is None]
    if silent:
        yield on.warned(
            _("name servers do not answer: {servers}").format(servers=", ".join(silent)),
            _("Correct 'name_servers' in site.yaml, or open port 53 to them."),
        )
    slow = on.facts.own_name_ms
    if on.facts.own_name_found is None or (slow is not None and slow > SLOW_NAME_MS):
        yield on.warned(
            _("it takes the host seconds to look up its own name"),
            _("Put its name into /etc/hosts, and take dead servers out of /etc/resolv.conf."),
        )
        return
    wanted = {str(server) for server in on.site.name_servers}
    others = [s for s in on.facts.name_servers if s not in wanted and not _is_loopback(s)]
    if others:
        yield on.passed(_("{servers} will not be asked any more").format(servers=", ".join(others)))
    elif not silent:
        yield on.passed(_("{n} name servers").format(n=len(wanted)))


def _is_loopback(text: str) -> bool:
    try:
        return ip_address(text.partition("%")[0]).is_loopback
    except ValueError:
        return False


def peers(on: Subject) -> Iterator[HostFinding]:
    """Over the cluster network the host reaches those it will work with.

    A sealed host lets no SSH through there, out or in, so that its refusal is as good as an answer.
    """
    met = {each.name: each for each in on.facts.connections or ()}
    others = peers_of(on.site, on.host)
    if not others:
        yield on.passed(_("no other host to reach"))
        return
    lost = []
    for peer in others:
        each = met.get(f"peer {peer.name}")
        reached = each is not None and each.outcome in {"open", "refused"}
        behind_seal = on.facts.sealed or peer.name in on.sealed
        if not reached and not (behind_seal and each is not None and each.outcome != "timeout"):
            lost.append(f"{peer.name} ({each.outcome if each else _('not tried')})")
    if on.facts.sealed and not lost:
        yield on.passed(_("sealed: {n} hosts").format(n=len(others)))
    elif lost:
        yield on.failed(
            _("over the cluster network it does not reach {peers}").format(peers=", ".join(lost)),
            _("Check cabling, VLAN and firewalls between them; 'ip route get ADDRESS' helps."),
        )
    else:
        yield on.passed(_("{n} hosts over the cluster network").format(n=len(others)))
