"""Which listener the gateway asks, as replicas come and go. Real HTTP on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from appliance.gateway.model_service import ModelService
from appliance.gateway.replicas import replicas_of

KEY, TOKEN = "s" * 64, "r" * 64


@dataclass
class Serve:
    """Ray's dashboard, Serve's proxy and replicas: each its own server, each says who it is."""

    stack: AsyncExitStack
    names: list[str] = field(default_factory=list)
    ports: dict[str, int] = field(default_factory=dict)
    looked: int = 0
    broken: bool = False
    answers: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self, name: str) -> TestServer:
        async def answer(request: web.Request) -> web.Response:
            assert request.headers["X-Appliance-Gateway"] == KEY
            return web.Response(text=name)

        app = web.Application()
        app.router.add_route("*", "/v1/{rest:.*}", answer)
        app.router.add_get("/api/serve/applications/", self.applications)
        server = TestServer(app)
        await server.start_server()
        self.stack.push_async_callback(server.close)
        self.ports[name] = server.port or 0
        return server

    async def applications(self, request: web.Request) -> web.Response:
        self.looked += 1
        await self.answers.wait()
        if self.broken or request.headers["Authorization"] != f"Bearer {TOKEN}":
            return web.Response(text="<html>", status=500)
        found = [f"SERVE_REPLICA::appliance#model#{name}" for name in self.names]
        targets = [target(name, self.ports[name.rpartition("#")[2]]) for name in found]
        return web.json_response(details(targets or [target("proxy", self.ports["proxy"])]))


def target(name: str, port: int) -> dict[str, Any]:
    return {"ip": "127.0.0.1", "port": port, "instance_id": "", "name": name}


def details(targets: list[dict[str, Any]]) -> dict[str, Any]:
    return {"target_groups": [{"targets": targets, "route_prefix": "/", "protocol": "HTTP"}]}


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:
        found = Serve(stack)
        found.answers.set()
        yield found


@asynccontextmanager
async def service(serve: Serve) -> AsyncIterator[ModelService]:
    base = f"http://127.0.0.1:{serve.ports['proxy']}"
    async with (
        aiohttp.ClientSession() as session,
        ModelService(session, base, base, TOKEN, KEY) as model,
    ):
        yield model


async def said(model: ModelService) -> str:
    async with model.ask("POST", "/v1/completions", body=b"{}") as answer:
        return await answer.text()


async def turns_to(model: ModelService, name: str) -> set[str]:
    """Ask until ``name`` answers, for a minute at most; who else has answered meanwhile."""
    others: set[str] = set()
    async with asyncio.timeout(60):
        while (answered := await said(model)) != name:
            others.add(answered)
            await asyncio.sleep(0.01)
    return others


async def test_requests_follow_the_replica_and_none_is_lost_between_two(serve: Serve) -> None:
    await serve.start("proxy")
    first = await serve.start("first")
    async with service(serve) as model:
        assert await said(model) == "proxy", "before there is a replica"
        serve.names = ["first"]
        assert await turns_to(model, "first") <= {"proxy"}
        looked = serve.looked
        assert [await said(model) for _turn in range(3)] == ["first"] * 3
        assert serve.looked == looked, "a replica that answers is not looked for again"

        await first.close()
        assert await said(model) == "proxy", "its replica is gone, and Serve has not noticed"
        serve.names = []
        assert await said(model) == "proxy", "Serve has noticed"
        await serve.start("second")
        serve.names = ["second"]
        assert await turns_to(model, "second") <= {"proxy"}


async def test_a_dashboard_that_fails_or_hangs_costs_speed_and_nothing_else(serve: Serve) -> None:
    await serve.start("proxy")
    serve.broken = True
    async with service(serve) as model:
        assert await said(model) == "proxy"
    serve.answers.clear()
    async with service(serve) as model:
        assert [await said(model) for _turn in range(20)] == ["proxy"] * 20
        while serve.looked < 2:
            await asyncio.sleep(0.01)
        await said(model)
        assert serve.looked == 2, "one search for all who ask"
    serve.answers.set()


async def test_without_proxy_and_replica_it_is_said(serve: Serve) -> None:
    proxy = await serve.start("proxy")
    async with service(serve) as model:
        await proxy.close()
        with pytest.raises(aiohttp.ClientConnectorError):
            await said(model)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["target_groups", "targets", "protocol", "name"]), inner)
    ),
)


@given(_JSON)
def test_whatever_the_dashboard_says_names_a_replica_or_none(content: Any) -> None:
    assert not replicas_of(content)
    assert not replicas_of({"target_groups": content})
