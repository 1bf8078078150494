"""How Ray is started on a host of a site: its command line, with every port fixed. Pure but for
:func:`prepare`, which Ray itself calls.

The firewall lets in what :mod:`appliance.manifests.site_ports` names, so no port may be left to
chance. Ray's daemons listen on every address of the host all the same; only the firewall keeps the
other networks out. The dashboard listens on the head's loopback.

Custom resources say where a task or an actor may go: ``host:<name>`` on every host, and
``model_server`` on those that serve models.
"""

from __future__ import annotations

import importlib
import inspect
import json
import time
from pathlib import Path
from typing import Any

from appliance.cluster import ports
from appliance.cluster.environment import Place
from appliance.cluster.node_file import NodeFile
from appliance.cluster.sizing import Shares
from appliance.manifests import site_ports

# Ray's sockets lie under it and AF_UNIX paths end at 107 bytes; systemd makes it (RuntimeDirectory)
TEMP_DIR = Path("/run/sovctl-ray")
MODEL_SERVER = "model_server"
_HOOK = f"{__name__}.prepare"
_START_SECONDS = 180


def argv(python: Path, node: NodeFile, shares: Shares, spill: Path) -> list[str]:
    """The command of a head or a worker that stays in the foreground.

    ``spill`` is where objects go that the store has no room for: on disk, where ``TEMP_DIR`` is
    memory.
    """
    role = (
        [
            "--head",
            f"--port={site_ports.GCS}",
            "--include-dashboard=true",
            f"--dashboard-host={ports.HOST}",
            f"--dashboard-port={site_ports.DASHBOARD}",
            "--no-monitor",  # the autoscaler: a site has the hosts it has
            "--disable-usage-stats",
        ]
        if node.head
        else [f"--address={Place.of_node(node).gcs}"]
    )
    # A head that is no worker schedules nothing: its memory is the control store's.
    work = [f"--num-cpus={shares.ray_cpus}"] if node.worker else ["--num-cpus=0", "--num-gpus=0"]
    return [
        str(python),
        "-m",
        "ray.scripts.scripts",
        "start",
        *role,
        "--block",
        f"--node-ip-address={node.address}",
        f"--node-name={node.host}",
        f"--node-manager-port={site_ports.NODE_MANAGER}",
        f"--object-manager-port={site_ports.OBJECT_MANAGER}",
        f"--runtime-env-agent-port={site_ports.RUNTIME_ENV_AGENT}",
        f"--dashboard-agent-grpc-port={site_ports.DASHBOARD_AGENT_GRPC}",
        f"--dashboard-agent-listen-port={site_ports.DASHBOARD_AGENT_HTTP}",
        f"--metrics-export-port={site_ports.METRICS_EXPORT}",
        f"--min-worker-port={site_ports.WORKERS.start}",
        f"--max-worker-port={site_ports.WORKERS.stop - 1}",
        f"--temp-dir={TEMP_DIR}",
        f"--object-spilling-directory={spill}",
        *work,
        f"--object-store-memory={shares.object_store}",
        f"--memory={shares.ray_memory}",
        f"--resources={json.dumps(resources(node))}",
    ]


def resources(node: NodeFile) -> dict[str, float]:
    """The host's custom resources."""
    serves = node.worker and node.purpose is not None and node.purpose.serves
    return {f"host:{node.host}": 1.0} | ({MODEL_SERVER: 1.0} if serves else {})


def settings(interface: str) -> dict[str, str]:
    """What a site's Ray is told besides :func:`appliance.cluster.environment.inner`.

    ``interface`` is the one with the cluster address: torch's backends would otherwise take the one
    that the host's name leads to, which Debian makes loopback.
    """
    return {
        "RAY_START_HOOK": _HOOK,
        # Patience with hosts that start everything at once: of the raylet with its agents, of
        # 'ray start' with the dashboard, of the dashboard with its parts, of both with GCS.
        "RAY_agent_register_timeout_ms": str(_START_SECONDS * 1000),
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": str(_START_SECONDS),
        "RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT": str(_START_SECONDS),
        "RAY_gcs_server_port_wait_time_s": str(_START_SECONDS),
        # A worker that lost its head ends, and joins the head that comes back as a new node.
        "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
        # Logs lie under TEMP_DIR, in memory: Ray would keep 512 MB of each, five times.
        "RAY_ROTATION_MAX_BYTES": str(8 << 20),
        "RAY_ROTATION_BACKUP_COUNT": "1",
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": f"={interface}",
    }


def prepare(parameters: Any, head: bool) -> None:
    """Called by ``ray start`` (``RAY_START_HOOK``) before it starts anything.

    Ray opens a client server on port 10001 unless it is told no port at all, which its command line
    cannot say. And it gives a raylet 15 seconds to see its agent's ports in files, 30 until it is
    registered, which no setting raises; a busy host needs more. The ports are fixed, so the files
    are written before; the wait is done again here.
    """
    del head
    from ray._private import services

    parameters.ray_client_server_port = None
    start_raylet, get_node = services.start_raylet, services.get_node
    signature = inspect.signature(start_raylet)

    def start_raylet_told(*arguments: Any, **named: Any) -> Any:
        given = signature.bind(*arguments, **named).arguments
        _persist_ports(str(given["session_dir"]), str(given["node_id"]))
        return start_raylet(*arguments, **named)

    def get_node_patiently(*arguments: Any, **named: Any) -> Any:
        until = time.monotonic() + _START_SECONDS
        while True:
            try:
                return get_node(*arguments, **named)
            except RuntimeError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.5)

    services.start_raylet = start_raylet_told
    services.get_node = get_node_patiently


def _persist_ports(session: str, node_id: str) -> None:
    """Write the files by which Ray's agents tell the raylet where they listen."""
    raylet: Any = importlib.import_module("ray._raylet")
    for name, port in (
        (raylet.METRICS_AGENT_PORT_NAME, site_ports.DASHBOARD_AGENT_GRPC),
        (raylet.METRICS_EXPORT_PORT_NAME, site_ports.METRICS_EXPORT),
        (raylet.DASHBOARD_AGENT_LISTEN_PORT_NAME, site_ports.DASHBOARD_AGENT_HTTP),
        (raylet.RUNTIME_ENV_AGENT_PORT_NAME, site_ports.RUNTIME_ENV_AGENT),
    ):
        raylet.persist_port(session, node_id, name, port)
