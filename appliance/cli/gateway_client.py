"""How ``sovctl`` talks to a running appliance: HTTPS to the gateway, with the operator's key.

The endpoint comes from ``run/supervisor.json``, the trust from ``tls/ca.pem`` and the key from
``secrets/operator.key``; for a site (:mod:`appliance.cli.site_option`), all three from its
``endpoint.json``. Proxies named in the environment are ignored: the appliance is on this machine
or in the same building. An answer that is an error becomes the :class:`ApplianceError` it was
inside, with its fields, so that it is shown in the operator's language and ends ``sovctl`` with its
own status.

>>> with GatewayClient.from_home(Home.from_environment()) as gateway:
...     gateway.get("/admin/v1/status")
...     for event in gateway.stream("/admin/v1/jobs/ftjob-1/events"):
...         print(event["step"], event["loss"])
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx

from appliance.errors import (
    ApplianceError,
    GatewayAnswerUnclear,
    NotInstalled,
    NotRunning,
    SiteNotInstalled,
)
from appliance.i18n import _
from appliance.layout import Home, SitePlace

_TIMEOUT = httpx.Timeout(120.0, connect=5.0)
# A stream may be silent for as long as a model thinks or a tuning step takes.
_STREAM_TIMEOUT = httpx.Timeout(None, connect=5.0)


class GatewayClient:
    """A connection to the gateway of one installation. Use as a context manager, or just once.

    Every method raises the :class:`ApplianceError` the gateway answered with, or
    :class:`NotRunning` when nothing answers.
    """

    def __init__(self, home: Home, client: httpx.Client) -> None:
        self._home = home
        self._client = client

    @classmethod
    def from_home(cls, home: Home) -> Self:
        """Connect to the site that was chosen, or else to the appliance under ``home``.

        Raises :class:`NotInstalled` where there is none, :class:`NotRunning` where none is up.
        """
        from appliance.cli.site_option import chosen_site

        place = chosen_site(home)
        if place is not None:
            return cls.from_site(place)
        if not home.root.is_dir() or not home.secrets.is_dir():
            raise NotInstalled(home=home.root)
        endpoint = _endpoint(home)
        try:
            trusted = ssl.create_default_context(cafile=home.tls / "ca.pem")
            key = (home.secrets / "operator.key").read_text(encoding="ascii").strip()
        except OSError as error:
            raise NotRunning(
                home=home.root, reason=_("{path} is missing.").format(path=error.filename)
            ) from error
        return cls(home, _client(endpoint, key, trusted))

    @classmethod
    def from_site(cls, place: SitePlace) -> Self:
        """Connect to the gateway of an installed site.

        Raises :class:`SiteNotInstalled` for one that is not, :class:`SiteEndpointDamaged` if what
        is kept of it cannot be read, :class:`NotRunning` if its CA or the operator's key cannot.
        """
        from appliance.install.site_endpoint import Endpoint

        endpoint = Endpoint.read(place)
        if endpoint is None:
            raise SiteNotInstalled(site=place.name, path=place.endpoint)
        try:
            trusted = ssl.create_default_context(cafile=endpoint.ca)
            key = endpoint.operator_key.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            reason = _("{ca} or {key} is missing or damaged.")
            reason = reason.format(ca=endpoint.ca, key=endpoint.operator_key)
            raise NotRunning(home=place.root, reason=reason) from error
        return cls(Home(place.root), _client(endpoint.url, key, trusted))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._client.close()

    def get(self, path: str) -> dict[str, Any]:
        """``GET`` and return the JSON object."""
        return self._call("GET", path, None)

    def post(self, path: str, json: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """``POST`` a JSON object (or nothing) and return the JSON object answered."""
        return self._call("POST", path, json)

    def delete(self, path: str, json: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """``DELETE`` and return the JSON object."""
        return self._call("DELETE", path, json)

    def stream(self, path: str, json: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """Yield the data of server-sent events; ``POST`` where ``json`` is given, else ``GET``.

        Ends with the answer, or at ``[DONE]``. Closing the iterator cancels the request.
        """
        method = "GET" if json is None else "POST"
        with (
            self._answering(),
            self._client.stream(method, path, json=json, timeout=_STREAM_TIMEOUT) as answer,
        ):
            if answer.is_error:
                answer.read()
                raise _rebuilt(answer)
            for line in answer.iter_lines():
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:") or not data:
                    continue
                if data == "[DONE]":
                    return
                event = _parsed(data, path)
                if isinstance(event.get("error"), dict):
                    raise rebuild_error(event["error"], status=200)
                yield event

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        with self._answering():
            answer = self._client.request(method, path, json=body)
        if answer.is_error:
            raise _rebuilt(answer)
        return _parsed(answer.text, path)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn a connection that fails into :class:`NotRunning`, with what the network said."""
        try:
            yield
        except httpx.HTTPError as error:
            reason = _("Its gateway is not reachable: {error}.").format(
                error=str(error).rstrip(".") or type(error).__name__
            )
            raise NotRunning(home=self._home.root, reason=reason) from error


def _client(url: str, key: str, trusted: ssl.SSLContext) -> httpx.Client:
    return httpx.Client(
        base_url=url,
        headers={"Authorization": f"Bearer {key}"},
        verify=trusted,
        timeout=_TIMEOUT,
        trust_env=False,
    )


def rebuild_error(body: Mapping[str, Any], status: int) -> ApplianceError:
    """The error inside an answer's ``error`` object, as the class it was raised as.

    A code this ``sovctl`` does not know (an older one, or Serve's own) becomes
    :class:`GatewayAnswerUnclear` with whatever message there is.
    """
    kind = ApplianceError.catalogue.get(str(body.get("code")))
    fields = body.get("fields")
    if kind is not None and isinstance(fields, dict) and kind.fields() <= fields.keys():
        return kind(**fields)
    message = body.get("message") or body.get("what") or body.get("code") or "?"
    return GatewayAnswerUnclear(status=status, reason=str(message))


def _rebuilt(answer: httpx.Response) -> ApplianceError:
    try:
        body = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        body = {"message": answer.text[:200].strip() or answer.reason_phrase}
    if not isinstance(body, dict):
        body = {"message": str(body)}
    return rebuild_error(body, answer.status_code)


def _parsed(text: str, path: str) -> dict[str, Any]:
    try:
        value = json.loads(text) if text else {}
    except ValueError as error:
        raise GatewayAnswerUnclear(status=200, reason=f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise GatewayAnswerUnclear(status=200, reason=f"{path}: {type(value).__name__}")
    return value


def _endpoint(home: Home) -> str:
    """``https://127.0.0.1:PORT`` of the running appliance; raises :class:`NotRunning`."""
    path: Path = home.run / "supervisor.json"
    try:
        endpoint = json.loads(path.read_text(encoding="utf-8"))["endpoint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotRunning(home=home.root, reason=_("It was not started.")) from error
    return str(endpoint)
