"""``sovctl completion``: code for the shell to evaluate."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from appliance.i18n import _


@click.command(short_help=_("Print shell completion code."))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print completion code for SHELL.

    bash: eval "$(sovctl completion bash)" in ~/.bashrc; zsh the same in ~/.zshrc;
    fish: sovctl completion fish > ~/.config/fish/completions/sovctl.fish
    """
    from appliance.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None  # click brings all three
    click.echo(kind(cli, {}, "sovctl", "_SOVCTL_COMPLETE").source())
