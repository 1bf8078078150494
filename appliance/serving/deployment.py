"""The Serve application: one replica holding engine and ingress together.

Engine and ingress share a process on purpose: a token goes from the model to the HTTP answer
without another hop between Ray workers. Settings here were chosen by ``tests/bench/serving.py``.
"""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import ApplicationStatus, LoggingConfig

from appliance.cluster import ports
from appliance.engines.engine import Engine
from appliance.errors import ServingUnhealthy
from appliance.progress import Progress
from appliance.serving.adapters import AdapterPin, ServedAdapters
from appliance.serving.answers import Admission, Answers
from appliance.serving.app import build_app
from appliance.serving.config import ServingConfig

APPLICATION = "appliance"
_HEALTHY_WITHIN = 180.0  # seconds; the model loads in a few, more on a cold disk


class ModelServer:
    """What runs in the replica. Serve calls ``__serve_build_asgi_app__`` and ``check_health``."""

    def __init__(self, config: ServingConfig) -> None:
        from appliance.engines.transformers_engine import EngineSize, TransformersEngine

        self._config = config
        self._engine: Engine = TransformersEngine.open(
            config.model_dir, EngineSize(threads=config.threads)
        )
        places = self._engine.capabilities.concurrent_requests + config.waiting_requests
        self._answers = Answers(self._engine, config.model_name, Admission(places))
        self._served = ServedAdapters(self._engine, _verify_with(config), config.loaded_adapters)

    def __serve_build_asgi_app__(self) -> FastAPI:
        key = self._config.serve_key.read_bytes().strip()
        created = int((self._config.model_dir / "config.json").stat().st_mtime)
        app = build_app(self._answers, self._served, key, created)
        app.router.on_startup.append(self._served.restore)
        return app

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
    application = _application(config)
    with progress.task(f"Loading {config.model_name}", None, "items"):
        serve.run(application, name=APPLICATION, route_prefix="/", blocking=False)
        _wait_until_healthy()


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


def _wait_until_healthy() -> None:
    deadline = time.monotonic() + _HEALTHY_WITHIN
    while time.monotonic() < deadline:
        application = serve.status().applications.get(APPLICATION)
        if application is not None and application.status == ApplicationStatus.RUNNING:
            return
        if application is not None and application.status == ApplicationStatus.DEPLOY_FAILED:
            raise ServingUnhealthy(reason=application.message)
        time.sleep(0.2)
    raise ServingUnhealthy(reason=f"It was not ready within {_HEALTHY_WITHIN:.0f} seconds.")


def _verify_with(config: ServingConfig) -> Any:
    """What an adapter must pass before it is loaded."""

    def verify(pin: AdapterPin) -> None:
        from appliance.tuning import adapters

        adapters.verify(config.home, pin.name, pin.path, pin.digest)

    return verify
