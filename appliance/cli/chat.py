"""``sovctl chat``: ask a served model, one question or a conversation."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.console import Console
from appliance.cli.options import with_console
from appliance.cli.site_option import with_site
from appliance.errors import GatewayAnswerUnclear, RecordMissing
from appliance.i18n import _
from appliance.layout import Home

if TYPE_CHECKING:
    from collections.abc import Generator

    from appliance.cli.gateway_client import GatewayClient

Message = dict[str, str]


@click.command()
@click.argument("model")
@click.option("--message", "-m", help=_("Ask this and end; '-' reads it from standard input."))
@click.option("--system", help=_("Instructions that stand before the conversation."))
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True)
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.0, show_default=True)
@with_site
@with_console
def chat(
    console: Console,
    *,
    model: str,
    message: str | None,
    system: str | None,
    max_tokens: int,
    temperature: float,
) -> None:
    """Ask MODEL, or BASE:ADAPTER. Without -m on a terminal: a conversation."""
    from appliance.cli.gateway_client import GatewayClient

    settings = {"model": model, "max_tokens": max_tokens, "temperature": temperature}
    start: list[Message] = [{"role": "system", "content": system}] if system else []
    with GatewayClient.from_home(Home.from_environment()) as gateway:
        if message is None and sys.stdin.isatty() and not console.as_json:
            _converse(console, gateway, settings, start)
            return
        question = sys.stdin.read() if message in (None, "-") else message
        asked = [*start, {"role": "user", "content": str(question)}]
        said: list[str] = []
        usage = _answer(console, gateway, {**settings, "messages": asked}, said)
    if console.as_json:
        answer = "".join(said)
        console.result({"model": model, "answer": answer, "usage": usage}, answer)


def _converse(
    console: Console, gateway: GatewayClient, settings: dict[str, Any], start: list[Message]
) -> None:
    """Questions and answers until the end of input. Ctrl-C ends an answer, not the conversation."""
    console.say(_("Ask {model}. Ctrl-C stops an answer; Ctrl-D ends.").format(**settings))
    conversation = [*start]
    while True:
        try:
            question = input("> ")
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        if not question.strip():
            continue
        conversation.append({"role": "user", "content": question})
        said: list[str] = []
        try:
            _answer(console, gateway, {**settings, "messages": conversation}, said)
        except KeyboardInterrupt:
            click.echo(" …")
        conversation.append({"role": "assistant", "content": "".join(said)})


def _answer(
    console: Console, gateway: GatewayClient, request: dict[str, Any], said: list[str]
) -> dict[str, int]:
    """Stream one answer to standard output and into ``said``; return its token counts.

    Whatever ends it, Ctrl-C too, closes the stream, which stops the model.
    """
    body = {**request, "stream": True, "stream_options": {"include_usage": True}}
    usage: dict[str, int] = {}
    with closing(_chunks(gateway, body)) as chunks:
        for chunk in chunks:
            usage = chunk.get("usage") or usage
            for choice in chunk.get("choices", ()):
                piece = (choice.get("delta") or {}).get("content") or ""
                said.append(piece)
                if not console.as_json:
                    click.echo(_safe(piece), nl=False)
                    sys.stdout.flush()
    if not console.as_json:
        click.echo()
    return usage


def _chunks(gateway: GatewayClient, body: dict[str, Any]) -> Generator[dict[str, Any]]:
    try:
        yield from gateway.stream("/v1/chat/completions", body)
    except GatewayAnswerUnclear as error:
        if error.values["status"] != "404":
            raise
        raise RecordMissing(kind="model", name=body["model"], group="models") from error


def _safe(text: str) -> str:
    """``text`` without control characters: a model's words must not steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
