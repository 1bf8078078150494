"""The Serve application: one replica holding engine and ingress together.

Engine, ingress and listener share a process on purpose: a token goes from the model to the gateway
without a hop between Ray workers (direct ingress, ``appliance.cluster.environment.serve``). Serve
still starts, watches and replaces the replica, and its proxy holds requests meanwhile. Access logs
are off. Serve's other switches stay at their defaults: running the ingress in Serve's own event
loop changed neither processor time per token nor throughput (``tests/bench/serving.py``).
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from appliance.cluster import ports
from appliance.engines.engine import Engine
from appliance.errors import ServingUnhealthy
from appliance.i18n import _
from appliance.progress import Progress
from appliance.serving.adapters import ServedAdapters
from appliance.serving.answers import Admission, Answers
from appliance.serving.app import build_app
from appliance.serving.config import ServingConfig
from appliance.serving.gate import AdapterGate

APPLICATION = "appliance"


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
        self._served = ServedAdapters(
            self._engine, AdapterGate(config.home, config.model_dir).verify, config.loaded_adapters
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        key = self._config.serve_key.read_bytes().strip()
        created = int((self._config.model_dir / "config.json").stat().st_mtime)
        return build_app(self._answers, self._served, key, created)

    def check_health(self) -> None:
        """Raises when the engine is gone, so that Serve starts a new replica."""
        self._engine.check()


def deploy(config: ServingConfig, progress: Progress) -> None:
    """Start Serve and the application in the Ray cluster of ``RAY_ADDRESS``; wait until healthy.

    Running it again replaces the application. It outlives the process that calls this. Raises
    ``ServingUnhealthy``.
    """
    serve.start(
        http_options=HTTPOptions(host=ports.HOST, port=ports.SERVE),
        logging_config=LoggingConfig(enable_access_log=False),
    )
    with progress.task(_("Loading {0}").format(config.model_name), None, "items"):
        try:
            serve.run(_application(config), name=APPLICATION, route_prefix="/")
        except RuntimeError as error:  # what Serve raises when the replica cannot be made
            raise ServingUnhealthy(reason=_why(error)) from error


def _why(error: RuntimeError) -> str:
    """The last line of what the replica raised, which Serve's error leaves out, and that error."""
    application = serve.status().applications.get(APPLICATION)
    deployments = application.deployments.values() if application else ()
    lines = [line.strip() for each in deployments for line in each.message.splitlines()]
    told = [line for line in lines if line]
    return f"{told[-1]} ({error})" if told else str(error)


def _application(config: ServingConfig) -> Any:
    deployment = serve.deployment(
        serve.ingress()(ModelServer),
        name="model",
        num_replicas=1,
        # Above the engine's own bound, which answers 429 in OpenAI's shape instead of queueing.
        max_ongoing_requests=4 * config.waiting_requests,
        ray_actor_options={
            "num_cpus": config.cpus,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(config.threads)}},
        },
        health_check_period_s=5,
        graceful_shutdown_timeout_s=10,
        logging_config=LoggingConfig(enable_access_log=False),
    )
    return deployment.bind(config)
