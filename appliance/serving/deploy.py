"""``python -m appliance.serving.deploy --home HOME``: put the model server into the Ray cluster.

Run by the supervisor, in the environment it builds. Exits 0 once the server answers, and the server
outlives it; otherwise the error's own status, with the error as one JSON line on stderr.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import ray

from appliance.errors import ApplianceError, ServingUnhealthy
from appliance.i18n import _
from appliance.layout import Home
from appliance.ledger import Event, Ledger
from appliance.progress import Silent
from appliance.serving.config import ServingConfig
from appliance.serving.deployment import deploy


@click.command()
@click.option(
    "--home",
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True),
)
def main(home: Path) -> None:
    """Serve the current release's model."""
    try:
        config = ServingConfig.of_home(Home(home))
        _join_ray()
        deploy(config, Silent())
        _record(config)
    except ApplianceError as error:
        click.echo(json.dumps(error.as_json()), err=True)
        sys.exit(error.exit_code)


def _record(config: ServingConfig) -> None:
    """Which model of which release answers from now on; the release's name holds its digest."""
    subject = {"model": config.model_name, "release": config.home.current.resolve().name}
    Ledger.open(config.home).append([Event("system:supervisor", "model.load", subject)])


def _join_ray() -> None:
    try:
        ray.init(address="auto", log_to_driver=False, namespace="appliance")
    except (ConnectionError, RuntimeError) as error:
        raise ServingUnhealthy(reason=_("Ray does not answer: {0}").format(error)) from error


if __name__ == "__main__":
    main()
