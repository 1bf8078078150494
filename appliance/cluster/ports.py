"""The ports inside the seal, and how an address and a port are written.

The seal's network namespace is its own, so the ports need no configuration.
"""

from __future__ import annotations

from typing import Final

HOST: Final = "127.0.0.1"
GCS: Final = 6379
DASHBOARD: Final = 8265
SERVE: Final = 8000  # Serve's proxy
REPLICAS: Final = range(8100, 8200)  # one of them is where the model server listens

RAY_ADDRESS: Final = f"{HOST}:{GCS}"
DASHBOARD_URL: Final = f"http://{HOST}:{DASHBOARD}"
SERVE_URL: Final = f"http://{HOST}:{SERVE}"


def at(address: str, port: int) -> str:
    """``address:port`` as it stands in a URL: an IPv6 address in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
