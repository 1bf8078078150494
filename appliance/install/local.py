"""The appliance's processes on this machine, as an installation sees them: start, stop, healthy.

:class:`Cluster` is what :mod:`appliance.install.embedded` needs; :class:`LocalCluster` is the real
one (:mod:`appliance.cluster.lifecycle` and the gateway's own answer).
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from appliance.cluster import lifecycle
from appliance.errors import NotRunning
from appliance.i18n import _

if TYPE_CHECKING:
    from appliance.layout import Home
    from appliance.progress import Progress

_ANSWER_S = 30.0


class Cluster(Protocol):
    """The processes of one installation."""

    def start(self, release: Path, port: int, progress: Progress) -> None:
        """Start the release in the folder ``release``; return when it is up."""

    def stop(self, progress: Progress) -> None:
        """Stop what runs; a no-op if nothing does."""

    def port(self) -> int | None:
        """The port of the running appliance; None if none runs."""

    def healthy(self) -> bool:
        """Whether it runs and says that it is healthy. Quick; reads files only."""

    def check(self) -> None:
        """Ask the gateway as a client would. Raises :class:`NotRunning`."""


class LocalCluster:
    """The one on this machine. ``sealed`` False starts it without namespaces (``--unsealed``)."""

    def __init__(self, home: Home, *, sealed: bool) -> None:
        self._home = home
        self._sealed = sealed

    def start(self, release: Path, port: int, progress: Progress) -> None:
        lifecycle.start(self._home, release, port, progress, sealed=self._sealed)

    def stop(self, progress: Progress) -> None:
        lifecycle.stop(self._home, progress)

    def port(self) -> int | None:
        endpoint = lifecycle.state(self._home).endpoint
        return endpoint.port if endpoint else None

    def healthy(self) -> bool:
        state = lifecycle.state(self._home)
        return state.running and state.phase == "healthy"

    def check(self) -> None:
        endpoint = lifecycle.state(self._home).endpoint
        if endpoint is None:
            raise NotRunning(home=self._home.root, reason=_("It ended after it was started."))
        deadline = time.monotonic() + _ANSWER_S
        while True:
            try:
                ask_gateway(self._home, endpoint.url, "/admin/v1/status")
            except (OSError, ValueError) as error:
                if time.monotonic() > deadline:
                    reason = _("Its gateway does not answer: {error}.").format(error=error)
                    raise NotRunning(home=self._home.root, reason=reason) from error
                time.sleep(0.5)
            else:
                return


def ask_gateway(home: Home, endpoint: str, path: str) -> object:
    """GET ``path`` with the site's CA and the operator's key; return the JSON.

    Raises ``OSError`` (an HTTP error status too) or ``ValueError``.
    """
    return ask(f"{endpoint}{path}", home.tls / "ca.pem", home.secrets / "operator.key")


def ask(url: str, ca: Path, key_file: Path, data: bytes | None = None) -> object:
    """GET ``url``, or POST ``data`` (JSON) there, as the operator; return the JSON.

    Raises ``OSError`` (an HTTP error status too) or ``ValueError``.
    """
    trusted = ssl.create_default_context(cafile=ca)
    key = key_file.read_text(encoding="ascii").strip()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, data, headers)  # noqa: S310 - our own https endpoint
    direct = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusted)
    )
    try:
        with direct.open(request, timeout=10 if data is None else 120) as answer:
            return json.load(answer)
    except http.client.HTTPException as error:  # what is no answer is not an OSError by itself
        raise OSError(f"{type(error).__name__}: {error}") from error
