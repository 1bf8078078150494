"""``sovctl data``: data sets for tuning."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from appliance.cli.console import Console
from appliance.cli.options import with_console
from appliance.cli.site_option import with_site
from appliance.cli.tables import columns, fields
from appliance.errors import DiskFull, FileUnreadable, RecordMissing
from appliance.i18n import _
from appliance.layout import Home
from appliance.progress import Progress

_PIECE = 4 << 20


@click.group()
def data() -> None:
    """Import, list and show data sets."""


@data.command("import")
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--name", required=True, help=_("Name of the data set."))
@click.option(
    "--heldout",
    type=click.Path(path_type=Path),
    help=_("Rows to measure with. Without it, 5 % of FILE are held out."),
)
@with_site
@with_console
def import_(console: Console, *, source: Path, name: str, heldout: Path | None) -> None:
    """Check FILE and register it as a data set.

    FILE holds one JSON object a line: {"prompt", "completion"} or {"messages"}. Or it is a folder
    with train.jsonl and heldout.jsonl.
    """
    from appliance.cli.gateway_client import GatewayClient

    home = Home.from_environment()
    with (
        GatewayClient.from_home(home) as gateway,
        _staged(home, source, heldout, console) as path,
        console.task(_("Checking every row"), None, "items"),
    ):
        done = gateway.post("/admin/v1/datasets", {"name": name, "path": path})
    text = _("{name}: {rows} training rows, {digest}").format(**done)
    console.result(done, text)


@data.command("list")
@with_site
@with_console
def list_(console: Console) -> None:
    """All data sets."""
    found = _datasets()
    rows = [(each["name"], each["rows"], each["schema"], each["digest"]) for each in found]
    console.result(found, columns((_("NAME"), _("ROWS"), _("FORM"), _("DIGEST")), rows))


@data.command()
@click.argument("name")
@with_site
@with_console
def show(console: Console, *, name: str) -> None:
    """One data set."""
    for each in _datasets():
        if each["name"] == name:
            console.result(each, fields(each))
            return
    raise RecordMissing(kind="data set", name=name, group="data")


def _datasets() -> list[dict[str, object]]:
    from appliance.cli.gateway_client import GatewayClient

    with GatewayClient.from_home(Home.from_environment()) as gateway:
        found: list[dict[str, object]] = gateway.get("/admin/v1/datasets")["data"]
    return found


@contextmanager
def _staged(home: Home, source: Path, heldout: Path | None, progress: Progress) -> Iterator[str]:
    """A copy of the files where the sealed appliance can read it; yields its name in there.

    What is inside the seal sees the installation's folder and nothing else of this machine.
    """
    staging = home.datasets / "staging"
    staging.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=staging) as name:
        folder = Path(name)
        if heldout is not None:
            pairs = {source: "train.jsonl", heldout: "heldout.jsonl"}
        elif source.is_dir():
            kept = ("train.jsonl", "heldout.jsonl", "card.json")
            pairs = {source / each: each for each in kept if (source / each).exists()}
        else:
            pairs = {source: "rows.jsonl"}
        for path, copy in pairs.items():
            _copy(path, folder / copy, progress)
        single = "rows.jsonl" in pairs.values()
        yield f"{folder.name}/rows.jsonl" if single else folder.name


def _copy(source: Path, target: Path, progress: Progress) -> None:
    """Copy in pieces of 4 MiB, with a bar.

    Raises:
        FileUnreadable: it is missing, or no plain file.
        DiskFull: there is no room for the copy.
    """
    try:
        if not source.is_file():
            raise FileUnreadable(path=source, reason=_("There is no such plain file."))
        size = source.stat().st_size
        free = shutil.disk_usage(target.parent).free
        if size > free:
            reason = _("The data set is copied into the appliance before it is used.")
            needed, left = f"{size} bytes", f"{free} bytes"
            raise DiskFull(path=target.parent, needed=needed, free=left, reason=reason)
        title = _("Copying {name}").format(name=source.name)
        with (
            progress.task(title, size, "bytes") as task,
            source.open("rb") as old,
            target.open("wb") as new,
        ):
            while piece := old.read(_PIECE):
                new.write(piece)
                task.advance(len(piece))
    except OSError as error:
        raise FileUnreadable(path=source, reason=error.strerror or error) from error
