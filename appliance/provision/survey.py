"""Examine a site's hosts before there is anything else of the site: ``sovctl site check --hosts``.

    report = survey(site, SitePlace(home, site.name).known_hosts, progress)

It trusts the host keys that are known already and those that ``site.yaml`` names, asks nobody, and
writes nothing down: a host whose key nobody vouched for is a finding, with the command to accept
it as the remedy.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from appliance.errors import ApplianceError
from appliance.layout import Home, SitePlace
from appliance.manifests.site import Host, Site
from appliance.progress import Progress
from appliance.provision.host_keys import HostKey, decide, label, read, render, scan, suffices
from appliance.provision.needs import BundleNeeds
from appliance.provision.preflight import Report, examine
from appliance.provision.several import AT_ONCE
from appliance.provision.ssh import connections


def survey(
    site: Site,
    known_hosts: Path,
    progress: Progress | None = None,
    needs: BundleNeeds | None = None,
) -> Report:
    """Ask and judge all hosts, reached by keys that are trusted already."""
    before = read(known_hosts)

    def keys_of(host: Host) -> tuple[HostKey, ...]:
        address = str(site.management_address(host))
        known = before.get(label(address, host.ssh.port), ())
        named = frozenset(host.ssh.host_keys)
        if suffices(known, named):
            return known
        try:
            (offered,) = scan(site, [host])
            return decide(host.name, address, offered, known, named)
        except ApplianceError:
            return known  # ssh will meet the same, and say it as this host's finding

    with tempfile.TemporaryDirectory(prefix="sovctl-") as folder:
        place = SitePlace(Home(Path(folder)), site.name)
        place.root.mkdir(parents=True)
        with ThreadPoolExecutor(min(AT_ONCE, len(site.hosts))) as threads:
            keys = list(threads.map(keys_of, site.hosts))
        names = [label(str(site.management_address(h)), h.ssh.port) for h in site.hosts]
        trusted = {name: known for name, known in zip(names, keys, strict=True) if known}
        place.known_hosts.write_text(render(trusted), encoding="ascii")
        with connections(site, place) as remotes:
            return examine(site, remotes, needs, progress)
