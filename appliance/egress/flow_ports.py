"""Ports of a site's exchanges, until appliance/manifests/site_ports.py is merged."""

from __future__ import annotations

from typing import Final

GCS: Final = 6379
RAY_DAEMONS: Final = (range(6380, 6386),)
RAY_METRICS: Final = 6385
WORKERS: Final = range(10002, 11000)
COLLECTIVE: Final = range(32768, 33792)
RELAY_DASHBOARD: Final = 9443
RELAY_SERVE: Final = 9444
RELAY_REPLICAS: Final = range(9500, 9600)
NODE_EXPORTER: Final = 9100
TIME: Final = 123
NAMES: Final = 53
NFS: Final = 2049
