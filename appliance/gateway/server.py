"""``python -m appliance.gateway.server --home HOME``, with ``--fd N`` or ``--site``: TLS.

``--fd``: the socket (Unix or TCP) was opened by whoever started us, inside the seal. ``--site``:
this is the gateway's host of a site, whose ``node.json`` says on which addresses to listen; systemd
is told when it does (``Type=notify``). Either way the certificate is ``tls/gateway.pem``
with ``secrets/gateway.key``. TLS 1.2 is the oldest spoken. Ends on SIGTERM: answers under way get
ten seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
import ssl
import sys
from pathlib import Path

import uvicorn
import uvloop
from starlette.types import ASGIApp

from appliance.cluster import node_file, ports
from appliance.cluster.node_file import GatewayNode
from appliance.cluster.notify import notify
from appliance.errors import ApplianceError, NodeFileInvalid
from appliance.gateway.wiring import gateway
from appliance.i18n import _
from appliance.layout import Home
from appliance.registry import Registry

_LOG = logging.getLogger(__name__)
_BACKLOG = 4096
_GRACE_S = 10
_IDLE_S = 0.2


def context(home: Home) -> ssl.SSLContext:
    """The gateway's side of TLS.

    Raises :class:`OSError` (:class:`ssl.SSLError`) where certificate and key are missing or unfit.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    # ANSSI's TLS guide: forward secrecy and authenticated encryption only.
    made.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL")
    made.load_cert_chain(home.tls / "gateway.pem", home.secrets / "gateway.key")
    return made


class _Server(uvicorn.Server):
    """uvicorn, which tells systemd that it listens, and which at the end would wait for every idle
    client to confirm the end of its TLS session; a client that sleeps in its connection pool never
    does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        notify("READY=1")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        idle = asyncio.create_task(self._drop_idle())
        try:
            await super().shutdown(sockets)
        finally:
            idle.cancel()

    async def _drop_idle(self) -> None:
        while True:
            await asyncio.sleep(_IDLE_S)
            for connection in list(self.server_state.connections):
                cycle = getattr(connection, "cycle", None)
                transport = getattr(connection, "transport", None)
                if transport is not None and (cycle is None or cycle.response_complete):
                    transport.abort()


def server(app: ASGIApp, tls: ssl.SSLContext) -> uvicorn.Server:
    """uvicorn around ``app``; it keeps no access log, because the ledger is the record."""
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        log_level="warning",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=_GRACE_S,
        h11_max_incomplete_event_size=32 << 10,
    )
    config.load()
    config.ssl = tls
    return _Server(config)


async def serve(home: Home, listeners: list[socket.socket]) -> None:
    """Serve until told to stop."""
    for listener in listeners:
        if listener.family != socket.AF_UNIX:
            # Accepted sockets inherit it. asyncio sets it only on sockets whose protocol number is
            # given, and Nagle's algorithm then holds the first token back by 40 ms.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    async with gateway(home) as app:
        await server(app, context(home)).serve(sockets=listeners)


def listen(node: GatewayNode) -> list[socket.socket]:
    """A listening socket on each of the gateway's addresses, and on loopback for this host's own
    operator. Raises :class:`OSError` where the host does not have the address."""
    listeners = []
    for address in dict.fromkeys((*node.addresses, ports.HOST)):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listeners.append(
            socket.create_server((address, node.port), family=family, backlog=_BACKLOG)
        )
    return listeners


def _site(home: Home) -> list[socket.socket]:
    """Make ready a site's gateway: its sockets, and the operator's key known. Raises
    :class:`NodeFileInvalid` on another host."""
    from appliance.install.gateway_home import adopt_operator

    node = node_file.read(home)
    if node.gateway is None:
        raise NodeFileInvalid(path=node_file.path(home), reason=_("This host has no gateway."))
    with Registry.open(home) as registry:
        adopt_operator(home, registry)
    return listen(node.gateway)


def main(arguments: list[str]) -> int:
    """Command line of the gateway."""
    parser = argparse.ArgumentParser()
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--fd", type=int, help="listening socket, inherited")
    where.add_argument("--site", action="store_true", help="listen where node.json says")
    parser.add_argument("--home", type=Path, required=True)
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", level="INFO")
    home = Home(options.home)
    try:
        listeners = _site(home) if options.site else [socket.socket(fileno=options.fd)]
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(home, listeners))
    except ApplianceError as error:
        _LOG.error("%s: %s %s %s", error.code, *error.sentences())
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
