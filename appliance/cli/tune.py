"""``sovctl tune``: fine-tune a model as a Ray job, and follow it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from appliance.cli.console import Console
from appliance.cli.options import with_console
from appliance.cli.site_option import with_site
from appliance.cli.tables import columns, fields
from appliance.errors import TuneStopped
from appliance.i18n import N_, _
from appliance.layout import Home

if TYPE_CHECKING:
    from appliance.cli.gateway_client import GatewayClient
    from appliance.progress import Task

_PHASES = {
    "load": N_("Loading model and data"),
    "evaluate-base": N_("Evaluating the base"),
    "train": N_("Training"),
    "evaluate-adapter": N_("Evaluating the adapter"),
    "save": N_("Saving"),
}
_LINES_WITHOUT_BAR = 5  # of a phase, where there is no terminal to draw a bar on


@click.group()
def tune() -> None:
    """Fine-tune a model as a Ray job; the result is a signed adapter."""


@tune.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--follow/--detach", default=True, help=_("Wait and show progress, or return."))
@with_site
@with_console
def submit(console: Console, *, spec: Path, follow: bool) -> None:
    """Start the tuning run that SPEC (YAML) describes."""
    from appliance.manifests.document import load
    from appliance.manifests.tuning import TuningSpec

    wanted = load(TuningSpec, spec)
    with _gateway() as gateway:
        job = gateway.post("/admin/v1/jobs", wanted.model_dump(mode="json"))
        if follow:
            console.say(_("Job {id} makes {base}:{name}.").format(name=wanted.name, **job))
            _follow_to_the_end(console, gateway, job["id"])
            return
    text = _("Job {id} is submitted. Follow it with 'sovctl tune logs --follow {id}'.")
    console.result(job, text.format(**job))


@tune.command("list")
@with_site
@with_console
def list_(console: Console) -> None:
    """All jobs, newest first."""
    with _gateway() as gateway:
        found = gateway.get("/admin/v1/jobs")["data"]
    rows = [
        (job["id"], job["status"], job["spec"]["name"], job["base"], job["created"][:19])
        for job in found
    ]
    headings = (_("ID"), _("STATUS"), _("ADAPTER"), _("BASE"), _("CREATED"))
    console.result(found, columns(headings, rows))


@tune.command()
@click.argument("job_id", metavar="ID")
@with_site
@with_console
def show(console: Console, *, job_id: str) -> None:
    """One job: its spec and how it stands."""
    with _gateway() as gateway:
        job = gateway.get(_path(job_id))
    flat = {name: value for name, value in job.items() if name not in ("spec", "error")}
    text = f"{fields(flat)}\n\n{fields(job['spec'])}"
    if job["error"]:
        text += f"\n\n{job['error']['what']} {job['error']['why']}\n→ {job['error']['fix']}"
    console.result(job, text)


@tune.command()
@click.argument("job_id", metavar="ID")
@click.option("--follow", "-f", is_flag=True, help=_("Show its progress until it ends."))
@with_site
@with_console
def logs(console: Console, *, job_id: str, follow: bool) -> None:
    """What a job printed; with --follow, its progress."""
    with _gateway() as gateway:
        if follow:
            _follow_to_the_end(console, gateway, job_id)
            return
        answer = gateway.get(f"{_path(job_id)}/logs")
    console.result(answer, answer["text"])


@tune.command()
@click.argument("job_id", metavar="ID")
@with_site
@with_console
def cancel(console: Console, *, job_id: str) -> None:
    """Ask a job to stop: it finishes its step and saves a checkpoint first."""
    with _gateway() as gateway:
        job = gateway.post(f"{_path(job_id)}/cancel")
    if job["finished"]:
        console.result(job, _("Job {id} had ended already: {status}.").format(**job))
        return
    console.result(job, _("Job {id} is asked to stop.").format(**job))


def _follow_to_the_end(console: Console, gateway: GatewayClient, job_id: str) -> None:
    """Show progress until the job ends; print its record. Raises the error it ended with."""
    from appliance.cli.gateway_client import rebuild_error

    job: dict[str, Any] = {}
    try:
        with _Bars(console) as bars:
            for event in gateway.stream(f"{_path(job_id)}/events"):
                if "job" in event:
                    job = event["job"]
                else:
                    bars.show(event)
    except KeyboardInterrupt:
        again = _("The job goes on. To follow it again: sovctl tune logs --follow {id}")
        console.say(again.format(id=job_id))
        raise
    if job.get("error"):
        raise rebuild_error(job["error"], status=200)
    if job.get("status") != "succeeded":
        raise TuneStopped(step="?", steps=job.get("spec", {}).get("steps", "?"))
    text = _(
        "The adapter {adapter} is made and signed. 'sovctl adapters show {adapter}' tells more."
    )
    console.result(job, text.format(adapter=job["adapter"]))


class _Bars:
    """One bar a phase of the run; without a terminal, a few lines of figures."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stack = ExitStack()
        self._phase = ""
        self._task: Task | None = None
        self._step = 0

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def show(self, line: Mapping[str, Any]) -> None:
        """Draw one line of ``progress.jsonl``."""
        phase = str(line["phase"])
        if phase not in _PHASES:
            return
        if phase != self._phase:
            self._stack.close()
            title, total = _(_PHASES[phase]), int(line["steps"]) or None
            self._task = self._stack.enter_context(self._console.task(title, total, "steps"))
            self._phase, self._step = phase, 0
        assert self._task is not None
        step = int(line["step"])
        remark = _remark(line)
        self._task.advance(max(0, step - self._step))
        self._task.note(remark)
        share = max(1, int(line["steps"]) // _LINES_WITHOUT_BAR)
        if not self._console.interactive and remark and step // share > self._step // share:
            self._console.say(f"  {step}/{line['steps']}  {remark}")
        self._step = max(step, self._step)


def _remark(line: Mapping[str, Any]) -> str:
    return ", ".join(_remarks(line))


def _remarks(line: Mapping[str, Any]) -> Iterator[str]:
    if line.get("loss") is not None:
        yield _("loss {loss:.3f}").format(loss=line["loss"])
    if line.get("heldout_loss") is not None:
        yield _("held-out {loss:.3f}").format(loss=line["heldout_loss"])
    if line.get("tokens_per_second"):
        yield _("{rate:.0f} tok/s").format(rate=line["tokens_per_second"])
    if line.get("eta_seconds") is not None:
        minutes, seconds = divmod(round(line["eta_seconds"]), 60)
        yield _("{minutes}:{seconds:02} left").format(minutes=minutes, seconds=seconds)


def _gateway() -> GatewayClient:
    from appliance.cli.gateway_client import GatewayClient

    return GatewayClient.from_home(Home.from_environment())


def _path(job_id: str) -> str:
    return f"/admin/v1/jobs/{quote(job_id, safe='')}"
