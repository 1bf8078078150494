"""A site's gateway and its replicas: who is asked, who is brought up to date, who is left alone.

Real TLS with client certificates on loopback. The replicas are small servers with the internal
routes of ``serving/app.py``; a relay whose replica is gone accepts connections and closes them.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from appliance.cluster import pki
from appliance.cluster.jobs import Jobs
from appliance.cluster.node_file import DomainNodes
from appliance.errors import AdapterRefused, JobUnknown, RayRefused, ServiceUnavailable
from appliance.gateway.audit import Audit
from appliance.gateway.model_service import ModelService
from appliance.gateway.nodes import SILENT_AFTER_S, Heartbeats, Node, Report
from appliance.gateway.reconciler import Order, Reconciler, difference
from appliance.gateway.replicas import Replicas, Target
from appliance.gateway.site_doors import DomainDoor, relay
from appliance.ledger.event import Event
from appliance.registry import Adapter, AdapterStatus
from appliance.trust.site_ca import CLIENT, SERVER, Leaf

KEY, TOKEN = "s" * 64, "r" * 64
DIGEST = "sha256:" + "a" * 64
NAMES = st.sampled_from("abcd")


@dataclass
class Fake:
    """A replica: what it was asked, what it has loaded."""

    name: str
    asked: list[str] = field(default_factory=list)
    loaded: dict[str, dict[str, Any]] = field(default_factory=dict)
    refuses: str = ""
    server: Any = None
    port: int = 0

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_get("/internal/state", self.state)
        app.router.add_route("*", "/internal/adapters/{name}", self.adapter)
        return app

    async def chat(self, request: web.Request) -> web.Response:
        assert request.headers["X-Appliance-Gateway"] == KEY
        assert await request.read() == b'{"question": 1}'
        self.asked.append("chat")
        await asyncio.sleep(0.05)
        return web.Response(text=self.name)

    async def state(self, _request: web.Request) -> web.Response:
        pins = [{"name": name, **pin} for name, pin in self.loaded.items()]
        return web.json_response(
            {"model": "base", "release": "demo-1", "adapters": pins, "requests": 1, "places": 9}
        )

    async def adapter(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        self.asked.append(f"{request.method} {name}")
        if request.method == "DELETE":
            self.loaded.pop(name, None)
        elif self.refuses:
            error = AdapterRefused(name=name, reason=self.refuses)
            return web.json_response({"error": error.as_json()}, status=409)
        else:
            self.loaded[name] = await request.json()
        return web.Response(status=204)


@dataclass
class Lab:
    """The fakes of a domain, and its credentials in ``folder``."""

    stack: AsyncExitStack
    folder: Path
    server_tls: ssl.SSLContext
    fakes: dict[str, Fake] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    cleared: set[str] = field(default_factory=set)
    dashboard: str = ""
    jobs: dict[str, Any] = field(default_factory=dict)

    async def start(self, name: str) -> Fake:
        fake = self.fakes[name] = Fake(name)
        fake.server = TestServer(fake.app(), scheme="https")
        await fake.server.start_server(ssl=self.server_tls)
        self.stack.push_async_callback(fake.server.close)
        fake.port = fake.server.port
        return fake

    async def die(self, fake: Fake) -> None:
        """Its process ends; the relay before it stays: it accepts, and closes."""
        await fake.server.close()

        async def nobody(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            fake.asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
            fake.asked.append((await reader.read(1000) if reader.at_eof() else b"").decode())
            writer.close()

        server = await asyncio.start_server(nobody, "127.0.0.1", fake.port, ssl=self.server_tls)
        self.stack.callback(server.close)

    async def applications(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"
        targets = [
            {"ip": "127.0.0.1", "port": fake.port, "name": f"SERVE_REPLICA::appliance#model#{name}"}
            for name, fake in self.fakes.items()
        ]
        return web.json_response({"target_groups": [{"targets": targets, "protocol": "HTTP"}]})

    async def job(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            body = await request.json()
            self.jobs[body["submission_id"]] = body
            return web.json_response({"submission_id": body["submission_id"]})
        if request.match_info["id"] not in self.jobs:
            return web.Response(status=404, text="Job does not exist")
        details = {"submission_id": "a", "status": "RUNNING", "entrypoint": "x", "start_time": 1000}
        return web.json_response(details)

    def clear(self, name: str, digest: str) -> Order:
        if name not in self.cleared:
            raise AdapterRefused(name=name, reason="not promoted")
        return Order(f"/adapters/{name}", digest, "PEM")

    @asynccontextmanager
    async def gateway(self) -> AsyncIterator[tuple[ModelService, Reconciler]]:
        door = DomainDoor(DomainNodes("main", "127.0.0.1", ("127.0.0.1",)), self.folder)
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=door.trust)) as session,
            ModelService(
                session,
                "https://127.0.0.1:1",
                self.dashboard,
                door.token,
                door.serve_key,
                relay=lambda target: f"https://{target.address}:{target.port}",
            ) as service,
            Audit(self.events.extend) as audit,
        ):
            file = self.folder / "served-adapters.json"
            yield service, Reconciler(service, audit, self.clear, file)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    now = datetime.now(UTC)
    authority = pki.ensure_authority(tmp_path / "relay-ca.pem", tmp_path / "ca.key", "relay", now)
    for name, use in (("relay", SERVER), ("client", CLIENT)):
        leaf = Leaf(name, ("localhost",), ("127.0.0.1",), (use,))
        pki.ensure_leaf(tmp_path / f"{name}.pem", tmp_path / f"{name}.key", leaf, authority, now)
    (tmp_path / "ray.token").write_text(TOKEN)
    (tmp_path / "serve.key").write_text(KEY)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "relay.pem", tmp_path / "relay.key")
    tls.load_verify_locations(tmp_path / "relay-ca.pem")
    tls.verify_mode = ssl.CERT_REQUIRED
    async with AsyncExitStack() as stack:
        found = Lab(stack, tmp_path, tls)
        app = web.Application()
        app.router.add_get("/api/serve/applications/", found.applications)
        app.router.add_post("/api/jobs/", found.job)
        app.router.add_get("/api/jobs/{id}", found.job)
        head = TestServer(app, scheme="https")
        await head.start_server(ssl=tls)
        stack.push_async_callback(head.close)
        found.dashboard = f"https://127.0.0.1:{head.port}"
        yield found


async def said(service: ModelService) -> str:
    body = b'{"question": 1}'
    async with service.ask("POST", "/v1/chat/completions", body=body) as answer:
        return await answer.text()


def adapter(name: str) -> Adapter:
    return Adapter(
        name=name,
        base="base",
        base_digest=DIGEST,
        dataset_digest=DIGEST,
        job_id=None,
        digest=DIGEST,
        path=f"/adapters/{name}",
        status=AdapterStatus.PROMOTED,
        card_path="",
        created=datetime.now(UTC),
    )


async def test_requests_spread_and_none_is_lost_or_sent_twice(lab: Lab) -> None:
    one, two = await lab.start("one"), await lab.start("two")
    async with lab.gateway() as (service, reconciler):
        await reconciler.round()
        answers = await asyncio.gather(*(said(service) for _turn in range(10)))
        assert Counter(answers) == {"one": 5, "two": 5}

        await lab.die(one)
        one.asked.clear()
        answers = await asyncio.gather(*(said(service) for _turn in range(10)))
        assert set(answers) == {"two"}
        assert not any("question" in each for each in one.asked), "the relay saw no question"
        assert two.asked.count("chat") == 15, "each was asked once"

        three = await lab.start("three")
        await reconciler.round()
        answers = await asyncio.gather(*(said(service) for _turn in range(6)))
        assert set(answers) == {"two", "three"}, "a new one is found while the others work"
        assert one.name not in answers, "Serve still names the dead one"
        assert three.asked.count("chat") == 3
    hosts = [(e.action, e.subject["release"]) for e in lab.events if e.action == "model.load"]
    assert hosts == [("model.load", "demo-1")] * 3


async def test_every_replica_is_brought_to_what_was_asked(lab: Lab) -> None:
    one, two = await lab.start("one"), await lab.start("two")
    lab.cleared = {"icd10", "letters"}
    async with lab.gateway() as (_service, reconciler):
        await reconciler.round()
        await reconciler.load(adapter("icd10"))
        assert one.loaded["icd10"] == two.loaded["icd10"]
        assert one.loaded["icd10"]["signer"] == "PEM"
        one.loaded.clear()  # as a replica that was started anew
        two.loaded["stranger"] = {"path": "/x", "digest": DIGEST}
        three = await lab.start("three")
        await reconciler.round()
        assert [sorted(each.loaded) for each in (one, two, three)] == [["icd10"]] * 3
        loadings = await reconciler.loadings()
        assert (loadings.loaded["icd10"], loadings.replicas) == (3, 3)

        two.refuses = "Its files are not the ones registered."
        with pytest.raises(AdapterRefused) as refused:
            await reconciler.load(adapter("letters"))
        assert refused.value.values["reason"] == two.refuses
        assert not any("letters" in each.loaded for each in (one, two, three)), "all or none"

    async with lab.gateway() as (_service, restarted):
        one.loaded.clear()
        await restarted.round()
        assert "icd10" in one.loaded, "a gateway that is restarted remembers"
        lab.cleared.clear()  # retired or revoked
        three.loaded.clear()
        await restarted.round()
        assert [sorted(each.loaded) for each in (one, two, three)] == [[]] * 3
        with pytest.raises(AdapterRefused):
            await restarted.unload("icd10")
    assert [e.subject["adapter"] for e in lab.events if e.action == "adapter.unload"] == ["icd10"]
    assert Counter(e.action for e in lab.events)["model.load"] == 3, "once, not at each restart"


async def test_nobody_without_the_gateways_certificate_is_let_in(lab: Lab) -> None:
    fake = await lab.start("one")
    stranger = ssl.create_default_context(cafile=str(lab.folder / "relay-ca.pem"))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=stranger)) as session:
        with pytest.raises(aiohttp.ClientError):
            async with session.get(f"https://127.0.0.1:{fake.port}/internal/state") as answer:
                await answer.read()
    async with lab.gateway() as (_service, reconciler):
        with pytest.raises(ServiceUnavailable):
            await reconciler.load(await asyncio.to_thread(_cleared, lab, "icd10"))


def _cleared(lab: Lab, name: str) -> Adapter:
    lab.cleared.add(name)
    return adapter(name)


async def test_jobs_are_asked_through_the_relay(lab: Lab, tmp_path: Path) -> None:
    door = DomainDoor(DomainNodes("main", "127.0.0.1", ("127.0.0.1",)), lab.folder)
    jobs = Jobs(lab.dashboard, TOKEN, door.trust)

    def use() -> None:
        jobs.submit(["echo", "a b"], run_dir=tmp_path, env={}, metadata={}, submission_id="a")
        assert jobs.status("a").status == "RUNNING"
        with pytest.raises(JobUnknown):
            jobs.status("b")
        with pytest.raises(RayRefused):
            Jobs(lab.dashboard, TOKEN, ssl.create_default_context()).list()

    await asyncio.to_thread(use)
    assert lab.jobs["a"]["entrypoint"] == f"cd {tmp_path} && exec echo 'a b'"


@given(st.lists(st.tuples(st.booleans(), NAMES), max_size=60))
def test_the_least_busy_is_taken_and_a_forgotten_one_never(steps: list[tuple[bool, str]]) -> None:
    replicas = Replicas(at_once=False)
    targets = [Target(name, "10.0.0.1", 8100 + number) for number, name in enumerate("abcd")]
    replicas.update(targets)
    for replica in replicas.known.values():
        replicas.admit(replica)
    held: dict[str, list[Any]] = {}
    for takes, name in steps:
        if takes and (replica := replicas.take()) is not None:
            others = [each.under_way for each in replicas.known.values() if each.ready]
            assert replica.ready
            assert replica.under_way - 1 == min([*others, replica.under_way - 1])
            held.setdefault(replica.target.name, []).append(replica)
        elif held.get(name):
            replicas.give_back(held[name].pop())
        elif name == "d":
            replicas.forget(replicas.known["d"])
    replicas.update(targets[:2])
    assert sorted(replicas.known) == ["a", "b"]


@given(st.dictionaries(NAMES, NAMES), st.dictionaries(NAMES, NAMES))
def test_the_difference_leads_from_one_to_the_other(
    wanted: dict[str, str], loaded: dict[str, str]
) -> None:
    todo = difference(wanted, loaded)
    result = {name: digest for name, digest in loaded.items() if name not in todo.unload}
    assert {**result, **{name: wanted[name] for name in todo.load}} == wanted


def test_a_relay_listens_beside_the_replica_it_is_for() -> None:
    assert relay(Target("x", "10.0.0.2", 8107)) == "https://10.0.0.2:9507"
    assert relay(Target("x", "fd00::2", 8100)) == "https://[fd00::2]:9500"


def test_a_host_that_falls_silent_is_shown_as_dead_long_before_ray_says_so() -> None:
    def report(address: str, mark: float, *, alive: bool = True) -> Report:
        node = Node(
            name=address,
            address=address,
            alive=alive,
            head=address == "h",
            cpus=2,
            memory_total=1,
            memory_available=1,
        )
        return Report(node, mark)

    beats = Heartbeats("main", ("h", "w", "never"))
    beats.hear([report("h", 1), report("w", 1)], now=0.0)
    beats.hear([report("h", 2), report("w", 1)], now=SILENT_AFTER_S)
    alive = {node.address: node.alive for node in beats.nodes(SILENT_AFTER_S, head_answers=True)}
    assert alive == {"h": True, "w": False, "never": False}
    beats.hear([report("w", 1, alive=False), report("h", 3), report("w", 9)], now=20.0)
    alive = {node.address: node.alive for node in beats.nodes(20.0, head_answers=True)}
    assert alive == {"h": True, "w": True, "never": False}, "it joined again as another node"
    alive = {node.address: node.alive for node in beats.nodes(99.0, head_answers=False)}
    assert alive == {"h": False, "w": True, "never": False}, (
        "without the head nothing else is known"
    )


def test_what_is_remembered_holds_no_secret(tmp_path: Path) -> None:
    order = Order("/adapters/x", DIGEST, "PEM")
    assert json.loads(order.body()) == {"path": "/adapters/x", "digest": DIGEST, "signer": "PEM"}
