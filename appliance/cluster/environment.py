"""The environment of every process of the appliance. Built from nothing: what the operator's shell
holds (proxies, cloud credentials, ``PYTHONPATH``) does not go in.

In two steps, because two versions of this code meet here. :func:`outer` is what ``sovctl`` gives to
the programs that make the seal, and knows nothing of what will run in it. :func:`inner` is called
by the supervisor, which is the *release's* own code: so a newer or older ``sovctl`` starts a
release with the settings that release was tested with, as after a rollback.

What differs between the embedded appliance and a host of a site is a :class:`Place`: where Ray is,
which certificate authority its processes trust, and what keeps them from getting out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from appliance.cluster import node_file, ports
from appliance.cluster.node_file import NodeFile
from appliance.cluster.sizing import Shares
from appliance.layout import Home

_FROM_OPERATOR = ("LANG", "LANGUAGE", "LC_ALL", "LC_MESSAGES", "TZ")
_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process of the appliance stands.

    ``address`` is this host's towards other Ray hosts, ``head`` the Ray head's. The dashboard and
    Serve's proxy listen on the head's loopback wherever it is; a process on another host has no
    dashboard (the gateway reaches it through the relay). ``ray_ca`` is the file name, under
    ``Home.tls``, of the authority that Ray's processes trust. ``seal`` is what shuts the exits: a
    network namespace that has only loopback, or the host's firewall.
    """

    address: str
    head: str
    ray_ca: str
    seal: Literal["namespace", "firewall"]

    @classmethod
    def embedded(cls) -> Place:
        """One machine: everything on loopback, inside the seal's own network namespace."""
        return cls(ports.HOST, ports.HOST, "ca.pem", "namespace")

    @classmethod
    def of_node(cls, node: NodeFile) -> Place:
        """A host of a site."""
        return cls(node.address, node.head_address or node.address, "ray-ca.pem", node.seal)

    @classmethod
    def of_home(cls, home: Home) -> Place:
        """What ``home`` is: a host of a site has a ``node.json``."""
        node = node_file.read_if_any(home)
        return cls.embedded() if node is None else cls.of_node(node)

    @property
    def gcs(self) -> str:
        """``host:port`` of Ray's control store: what a driver or a worker joins."""
        return ports.at(self.head, ports.GCS)


def ray_token(home: Home) -> Path:
    """The token every Ray client and daemon presents."""
    return home.secrets / "ray.token"


def serve_key(home: Home) -> Path:
    """The value of ``X-Appliance-Gateway`` that Serve's ingress demands."""
    return home.secrets / "serve.key"


def outer(operator: Mapping[str, str]) -> dict[str, str]:
    """The variables of the door and of the supervisor, given the operator's own environment."""
    kept = {name: operator[name] for name in _FROM_OPERATOR if name in operator}
    return {
        "LANG": "C.UTF-8",
        **kept,
        "PATH": _SYSTEM_PATH,
        "PYTHONNOUSERSITE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def inner(
    home: Home,
    python: Path,
    shares: Shares,
    operator: Mapping[str, str],
    place: Place | None = None,
) -> dict[str, str]:
    """The variables of what the supervisor (or, on a site, systemd) starts, given the release's
    ``python``; ``place`` is the embedded one unless it is given.

    Holds paths of secrets, never secrets: an environment is readable in ``/proc``.
    """
    where = place or Place.embedded()
    threads = str(shares.replica_threads)
    return {
        **outer(operator),
        "PATH": f"{python.parent}:{_SYSTEM_PATH}",
        "HOME": str(home.tmp),
        "TMPDIR": "/tmp",  # noqa: S108 - Home.tmp, bound there by the seal
        "SOVCTL_HOME": str(home.root),
        "SOVCTL_SEAL": where.seal,
        **_ray(home, where),
        **serve(),
        **_silence(),
        "OMP_NUM_THREADS": threads,
        "APPLIANCE_REPLICA_CPUS": str(shares.replica_cpus),
        "APPLIANCE_REPLICA_THREADS": threads,
        "APPLIANCE_TUNING_CPUS": str(shares.tuning_cpus),
        "APPLIANCE_TUNING_THREADS": str(shares.tuning_threads),
    }


def _ray(home: Home, place: Place) -> dict[str, str]:
    return {
        "RAY_ADDRESS": place.gcs,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(ray_token(home)),
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(home.tls / "ray.pem"),
        "RAY_TLS_SERVER_KEY": str(home.secrets / "ray.key"),
        "RAY_TLS_CA_CERT": str(home.tls / place.ray_ca),
        "RAY_COLOR_PREFIX": "0",
        # Ray starts its workers at niceness 15, the model server among them; here only tuning
        # steps back (appliance.tuning.loop).
        "RAY_worker_niceness": "0",
        # Ray would wait half a minute for a node to be drained: embedded there is nowhere to drain
        # to, and a site's host is stopped by systemd, which waits no longer than it must.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }


def serve() -> dict[str, str]:
    """Serve's replica listens itself, on one of ``ports.REPLICAS``, besides behind Serve's proxy.

    Through the proxy every token is one more message between Ray processes, which cost a tenth of
    the throughput of eight streams (``tests/bench/serving.py``). Serve gives out ports from the
    least one on and lets one rest for minutes when its replica is gone, hence the many. No period
    of draining: it is for load balancers outside, which would go on sending to a replica that ends.
    """
    return {
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports.REPLICAS.start),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports.REPLICAS.stop),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
    }


def _silence() -> dict[str, str]:
    """What would call home, told not to. The seal does not rely on any of it."""
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "WANDB_MODE": "disabled",
        "TOKENIZERS_PARALLELISM": "false",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_GCE_CHECK": "true",
    }
