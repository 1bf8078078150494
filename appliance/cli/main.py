"""The root command and the one place where an error becomes an exit status.

Groups are imported only when they are used: ``sovctl --help`` must answer in under 0.3 s, so no
module here may import torch, ray, tuf or sqlalchemy at the top.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path

import click

from appliance import __version__
from appliance.cli.console import Console
from appliance.errors import ApplianceError, ExitCode, InternalError
from appliance.i18n import N_, _
from appliance.layout import Home

# command → (module under appliance.cli, attribute, one line of help)
_COMMANDS: dict[str, tuple[str, str, str]] = {
    "trust": ("trust", "trust", N_("Keys, the m-of-n root, the pinned fingerprint.")),
    "bundle": ("bundle", "bundle", N_("Build, inspect and verify bundles.")),
    "plan": ("install", "plan", N_("Show what install would change. Changes nothing.")),
    "install": ("install", "install", N_("Verify a bundle and install it, sealed.")),
    "uninstall": ("install", "uninstall", N_("Remove the appliance.")),
    "site": ("site", "site", N_("Describe a site of several machines; trust its hosts.")),
    "start": ("operate", "start", N_("Start the installed appliance.")),
    "stop": ("operate", "stop", N_("Stop the running appliance.")),
    "status": ("operate", "status", N_("What runs, what is installed, what it uses.")),
    "doctor": ("operate", "doctor", N_("Check this machine and installation; name remedies.")),
    "logs": ("operate", "logs", N_("Show or follow the logs.")),
    "models": ("models", "models", N_("Models of the current release.")),
    "adapters": ("adapters", "adapters", N_("Tuned adapters: show, promote, load, retire.")),
    "data": ("data", "data", N_("Import, list and show data sets.")),
    "tune": ("tune", "tune", N_("Fine-tune a model as a Ray job.")),
    "chat": ("chat", "chat", N_("Ask a served model.")),
    "keys": ("keys", "keys", N_("API keys of the gateway.")),
    "egress": ("egress", "egress", N_("State and prove that nothing gets out.")),
    "audit": ("audit", "audit", N_("Read and verify the ledger.")),
    "completion": ("completion", "completion", N_("Print shell completion code.")),
}


class _LazyGroup(click.Group):
    """A group that imports a command's module when the command is used, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _help = _COMMANDS[cmd_name]
        command: click.Command = getattr(
            importlib.import_module(f"appliance.cli.{module}"), attribute
        )
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section(_("Commands")):
            formatter.write_dl([(name, _(text)) for name, (_m, _a, text) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sovctl")
def cli() -> None:
    """Install, run and audit an AI appliance that no packet leaves."""


def main(argv: list[str] | None = None) -> int:
    """Run ``sovctl`` and return its exit status (:class:`appliance.errors.ExitCode`).

    Every :class:`ApplianceError` is printed as what, why and what to do next. Anything else is a
    defect: its traceback goes to a log file, and the operator is told where.
    """
    arguments = sys.argv[1:] if argv is None else argv
    console = Console(as_json="--json" in arguments)
    try:
        outcome = cli.main(args=arguments, prog_name="sovctl", standalone_mode=False)
    except ApplianceError as error:
        console.error(error)
        return int(error.exit_code)
    except click.ClickException as error:
        error.show()
        return int(ExitCode.USAGE)
    except (click.Abort, KeyboardInterrupt):
        click.echo(_("Interrupted. Run the same command again to go on."), err=True)
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.OK)
    except Exception as error:  # noqa: BLE001 - the boundary: nothing may pass as a traceback
        summary = f"{type(error).__name__}: {error}"
        console.error(InternalError(error=summary, log=_record_defect(traceback.format_exc())))
        return int(ExitCode.INTERNAL)
    return int(outcome) if isinstance(outcome, int) else int(ExitCode.OK)


def _record_defect(text: str) -> Path:
    """Append a traceback to ``logs/sovctl.log`` (or the temporary folder) and return the path."""
    import tempfile

    for folder in (Home.from_environment().logs, Path(tempfile.gettempdir())):
        path = folder / "sovctl.log"
        try:
            if folder.is_dir():
                descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                with os.fdopen(descriptor, "a", encoding="utf-8") as log:
                    log.write(text)
                return path
        except OSError:
            continue
    return Path(os.devnull)


if __name__ == "__main__":
    sys.exit(main())
