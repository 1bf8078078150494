"""Ray's head: how it is started, and whether it answers."""

from __future__ import annotations

import http.client
from pathlib import Path

from appliance.cluster import ports
from appliance.cluster.sizing import Shares

# Ray's sockets lie under it and AF_UNIX paths end at 107 bytes; inside the seal /tmp is Home.tmp
TEMP_DIR = Path("/tmp/ray")  # noqa: S108
LOGS = TEMP_DIR / "session_latest/logs"


def start_argv(python: Path, shares: Shares, temp_dir: Path = TEMP_DIR) -> list[str]:
    """The command of a head that stays in the foreground and ends when any of its daemons does."""
    return [
        str(python),
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        f"--node-ip-address={ports.HOST}",
        f"--port={ports.GCS}",
        "--include-dashboard=true",
        f"--dashboard-host={ports.HOST}",
        f"--dashboard-port={ports.DASHBOARD}",
        f"--temp-dir={temp_dir}",
        f"--num-cpus={shares.ray_cpus}",
        f"--object-store-memory={shares.object_store}",
        f"--memory={shares.ray_memory}",
        "--disable-usage-stats",
    ]


def answers(token: str) -> bool:
    """Whether GCS and dashboard both answer, asked with the token. At most 2 seconds."""
    return _get(ports.DASHBOARD, "/api/gcs_healthz", {"Authorization": f"Bearer {token}"}) == 200


def guarded() -> bool:
    """Whether the dashboard refuses a caller without the token: job submission is code execution
    (CVE-2023-48022), so a head that does not refuse is not started at all."""
    return _get(ports.DASHBOARD, "/api/jobs/", {}) in (401, 403)


def serve_answers() -> bool:
    """Whether Serve's proxy has its routes and healthy replicas behind them."""
    return _get(ports.SERVE, "/-/healthz", {}) == 200


def _get(port: int, path: str, headers: dict[str, str]) -> int:
    """HTTP status of a GET on loopback; 0 if nothing answers."""
    connection = http.client.HTTPConnection(ports.HOST, port, timeout=2)
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
