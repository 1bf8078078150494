"""The ports of a site's hosts, in one place: the firewall, Ray, the relay and the checks agree."""

from __future__ import annotations

from typing import Final

GCS: Final = 6379
NODE_MANAGER: Final = 6380
OBJECT_MANAGER: Final = 6381
RUNTIME_ENV_AGENT: Final = 6382
DASHBOARD_AGENT_GRPC: Final = 6383
DASHBOARD_AGENT_HTTP: Final = 6384
METRICS_EXPORT: Final = 6385
WORKERS: Final = range(10002, 11000)
DASHBOARD: Final = 8265
SERVE: Final = 8000
REPLICAS: Final = range(8100, 8200)
RELAY_DASHBOARD: Final = 9443
RELAY_SERVE: Final = 9444
RELAY_REPLICAS: Final = range(9500, 9600)

# Between the tuning workers of one trust domain (torch.distributed, Gloo): the kernel's own range
# for ports that nobody named, which role base narrows to this.
COLLECTIVE: Final = range(32768, 33792)
NODE_EXPORTER: Final = 9100
PROMETHEUS: Final = 9090
TIME: Final = 123
NAMES: Final = 53
NFS: Final = 2049
