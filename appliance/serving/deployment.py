"""The Serve application: replicas that hold engine and ingress together; embedded just one.

Engine, ingress and listener share a process on purpose: a token goes from the model to the gateway
without a hop between Ray workers (direct ingress, ``appliance.cluster.environment.serve``). Serve
still starts, watches and replaces the replica, and its proxy holds requests meanwhile. Access logs
are off. Serve's other switches stay at their defaults: running the ingress in Serve's own event
loop changed neither processor time per token nor throughput (``tests/bench/serving.py``).

On a site there is one replica on each serving host. A replica binds its port at the host that
Serve's HTTP options name, as the proxy does: loopback, on every host. What comes in from the
gateway's host comes through that host's relay (docs/adr/0009). The one proxy is on the head.
"""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.schema import ApplicationStatus, LoggingConfig

from appliance.cluster import ports
from appliance.cluster.ray_start import MODEL_SERVER
from appliance.engines.engine import Engine
from appliance.errors import ServingUnhealthy
from appliance.i18n import _
from appliance.progress import Progress
from appliance.serving.adapters import ServedAdapters
from appliance.serving.answers import Admission, Answers
from appliance.serving.app import build_app
from appliance.serving.config import ServingConfig
from appliance.serving.gate import AdapterGate, SignedGate
from appliance.serving.watch import APPLICATION, DEPLOYMENT, RELEASE

_LOOK_EVERY_S = 0.5


class ModelServer:
    """What runs in the replica. Serve calls ``__serve_build_asgi_app__`` and ``check_health``."""

    def __init__(self, config: ServingConfig) -> None:
        from transformers.utils import logging as transformers_logging

        from appliance.engines.transformers_engine import EngineSize, TransformersEngine

        # Its warnings may hold token ids of a prompt, and no prompt is ever logged.
        transformers_logging.set_verbosity_error()
        self._config = config
        self._engine: Engine = TransformersEngine.open(
            config.model_dir, EngineSize(threads=config.threads)
        )
        places = self._engine.capabilities.concurrent_requests + config.waiting_requests
        self._answers = Answers(self._engine, config.model_name, Admission(places))
        gate = (AdapterGate if config.fleet is None else SignedGate)(config.home, config.model_dir)
        self._served = ServedAdapters(self._engine, gate.verify, config.loaded_adapters)

    def __serve_build_asgi_app__(self) -> FastAPI:
        key = self._config.serve_key.read_bytes().strip()
        created = int((self._config.model_dir / "config.json").stat().st_mtime)
        return build_app(
            self._answers, self._served, key, created=created, release=self._config.release
        )

    def check_health(self) -> None:
        """Raises when the engine is gone, so that Serve starts a new replica."""
        self._engine.check()


def deploy(config: ServingConfig, progress: Progress) -> None:
    """Start Serve and the application in the Ray cluster of ``RAY_ADDRESS``; wait until healthy.

    Running it again replaces the application. It outlives the process that calls this. A site is
    served as soon as one replica is there: a host that is down delays its own and no other's.
    Raises ``ServingUnhealthy``.
    """
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host=ports.HOST, port=ports.SERVE),
        logging_config=LoggingConfig(enable_access_log=False),
    )
    with progress.task(_("Loading {0}").format(config.model_name), None, "items"):
        try:
            if config.fleet is None:
                serve.run(_application(config), name=APPLICATION, route_prefix="/")
            else:
                target = serve.RunTarget(_application(config), APPLICATION, "/")
                serve.run_many([target], wait_for_applications_running=False)
                _wait_for_the_first()
        except RuntimeError as error:  # what Serve raises when the replica cannot be made
            raise ServingUnhealthy(reason=_why(str(error))) from error


def _wait_for_the_first() -> None:
    """Return when a replica runs; as long as that takes. Raises ``ServingUnhealthy``."""
    while True:
        application = serve.status().applications.get(APPLICATION)
        if application is not None:
            states = [dict(each.replica_states) for each in application.deployments.values()]
            if any(state.get("RUNNING", 0) for state in states):
                return
            if application.status in {ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY}:
                raise ServingUnhealthy(reason=_why(application.message))
        time.sleep(_LOOK_EVERY_S)


def _why(error: str) -> str:
    """The last line of what the replica raised, which Serve's error leaves out, and that error."""
    application = serve.status().applications.get(APPLICATION)
    deployments = application.deployments.values() if application else ()
    lines = [line.strip() for each in deployments for line in each.message.splitlines()]
    told = [line for line in lines if line]
    return f"{told[-1]} ({error})" if told else error


def _application(config: ServingConfig) -> Any:
    deployment = serve.deployment(
        serve.ingress()(ModelServer),
        name=DEPLOYMENT,
        num_replicas=1 if config.fleet is None else config.fleet.replicas,
        max_replicas_per_node=None if config.fleet is None else 1,
        # Above the engine's own bound, which answers 429 in OpenAI's shape instead of queueing.
        max_ongoing_requests=4 * config.waiting_requests,
        ray_actor_options={
            "num_cpus": config.cpus,
            "resources": {} if config.fleet is None else {MODEL_SERVER: 1},
            "runtime_env": {
                "env_vars": {"OMP_NUM_THREADS": str(config.threads), RELEASE: config.release}
            },
        },
        health_check_period_s=5,
        graceful_shutdown_timeout_s=10,
        logging_config=LoggingConfig(enable_access_log=False),
    )
    return deployment.bind(config)
