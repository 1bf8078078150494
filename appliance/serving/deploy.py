"""``python -m appliance.serving.deploy --home HOME``: put the model server into the Ray cluster.

Run by the supervisor, in the environment it builds. Exits 0 once the server answers, and the server
outlives it; otherwise the error's own status, with the error as one JSON line on stderr.

With ``--watch``, on the head of a site, it stays: see :mod:`appliance.serving.watch`.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import click

from appliance.errors import ApplianceError, ServingUnhealthy
from appliance.i18n import _
from appliance.layout import Home
from appliance.ledger import Event, Ledger
from appliance.progress import Silent
from appliance.serving.config import ServingConfig


@click.command()
@click.option(
    "--home",
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True),
)
@click.option("--watch", is_flag=True)
def main(home: Path, watch: bool) -> None:
    """Serve the current release's model."""
    try:
        if watch:
            from appliance.serving.watch import Watch

            logging.basicConfig(format="%(levelname)s %(message)s", level="INFO")
            sys.exit(Watch(Home(home)).run())
        serve_once(ServingConfig.of_home(Home(home)))
    except ApplianceError as error:
        click.echo(json.dumps(error.as_json()), err=True)
        sys.exit(error.exit_code)


def serve_once(config: ServingConfig) -> None:
    """Deploy. Embedded it is recorded here; a host of a site has no ledger, and the gateway records
    each replica when it first answers."""
    import ray

    from appliance.serving.deployment import deploy

    _join_ray()
    if config.fleet is not None:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        config = config.sized_for(node["Resources"].get("CPU", 0.0) for node in nodes)
    deploy(config, Silent())
    if config.fleet is None:
        _record(config)


def _record(config: ServingConfig) -> None:
    """Which model of which release answers from now on; the release's name holds its digest."""
    subject = {"model": config.model_name, "release": config.release}
    Ledger.open(config.home).append([Event("system:supervisor", "model.load", subject)])


def _join_ray() -> None:
    import ray

    try:
        ray.init(address="auto", log_to_driver=False, namespace="appliance")
    except (ConnectionError, RuntimeError) as error:
        raise ServingUnhealthy(reason=_("Ray does not answer: {0}").format(error)) from error


if __name__ == "__main__":
    main()
