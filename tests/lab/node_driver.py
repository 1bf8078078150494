"""Run from the controller's network: deliver something made up to a site's hosts, as install does.

    python -m tests.lab.node_driver SITE_FILE HOME OPERATOR MEGABYTES [--hold]

Prints bytes sent by host, or the error, as JSON. With ``--hold`` it keeps the hosts' locks until
its standard input ends.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from appliance.errors import ApplianceError
from appliance.install.site import trust_hosts
from appliance.layout import Home, SitePlace
from appliance.manifests.document import load
from appliance.manifests.site import Site
from appliance.progress import Silent
from appliance.provision import host_lock
from appliance.provision.delivery import Shipment, deliver
from appliance.provision.host_lock import Claim
from appliance.provision.ssh import connections
from appliance.store.blobs import Store

RELEASE = "lab-1.0-0000"


def shipment(store: Store, megabytes: int) -> Shipment:
    """The same bytes every time: one large file and a small one."""
    big = random.Random(megabytes).randbytes(megabytes << 20)
    blobs = sorted([(store.put(big), len(big)), (store.put(b"small"), 5)])
    links = tuple((digest, f"models/m/{size}.safetensors") for digest, size in blobs)
    return Shipment(RELEASE, tuple(blobs), links, (("bundle.json", b"{}"),), 1 << 20)


def main() -> None:
    file, home, operator, megabytes = sys.argv[1:5]
    site = load(Site, Path(file))
    place = SitePlace(Home(Path(home)), site.name)
    store = Store(place.home.store)
    goods = shipment(store, int(megabytes))
    try:
        trust_hosts(site, place, {}, None)
        with (
            connections(site, place) as remotes,
            host_lock.hold(remotes, site.folder, Claim.of(operator, operator)) as claim,
        ):
            sent = deliver(remotes, goods, store, Silent(), home=site.folder, run=claim.run)
            print(json.dumps({name: each.size for name, each in sent.items()}), flush=True)
            if "--hold" in sys.argv:
                sys.stdin.read()
    except ApplianceError as error:
        print(json.dumps({"error": error.as_json()}), flush=True)


if __name__ == "__main__":
    main()
