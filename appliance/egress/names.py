"""The names a sealed host knows: its own, the site's hosts, and those that must lead nowhere. Pure.

A sealed host asks no resolver, or only those the site names, so ``/etc/hosts`` is where names come
from. Names that software asks for unasked (a cloud's metadata service, telemetry) lead to this
host's own loopback, where nobody listens: they fail at once instead of after a resolver's timeout,
and ask nobody. The firewall refuses them all the same; this is the second wall.
"""

from __future__ import annotations

from typing import Final

from appliance.manifests.site import Host, NetworkKind, Site

NOWHERE: Final = {
    "metadata": "Ray and Google's libraries look for a cloud",
    "metadata.google.internal": "Ray and Google's libraries look for a cloud",
    "instance-data": "boto looks for a cloud",
    "instance-data.ec2.internal": "boto looks for a cloud",
    "usage-stats.ray.io": "Ray's telemetry",
}
"""A name and who asks for it unasked."""


def hosts_file(site: Site, host: Host) -> str:
    """The lines of ``/etc/hosts`` of ``host``.

    A host's name is its address in the cluster network (Ray looks itself up by name), else the
    address it is managed at; ``n1.storage`` is its address in the network ``storage``.
    """
    lines = [
        "# Written by sovctl from site.yaml.",
        "127.0.0.1 localhost",
        "::1 localhost ip6-localhost ip6-loopback",
    ]
    for each in site.hosts:
        main = site.address(each, NetworkKind.CLUSTER) or site.management_address(each)
        lines.append(f"{main} {each.name}")
        lines += [f"{i.address} {each.name}.{i.network}" for i in each.interfaces]
    lines.append("# Names that software asks for unasked.")
    lines += [f"127.0.0.1 {name}" for name in NOWHERE]
    return "\n".join(lines) + "\n"
