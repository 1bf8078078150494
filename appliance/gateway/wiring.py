"""The gateway's parts put together for one installation."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import aiohttp
from starlette.types import ASGIApp

from appliance.cluster import environment, node_file, ports, prove
from appliance.cluster.jobs import Jobs as ClusterJobs
from appliance.cluster.node_file import GatewayNode
from appliance.errors import AdapterRefused, RecordMissing
from appliance.gateway import internal, nodes, release_catalogue, site_doors
from appliance.gateway.adapters_admin import Adapters, Bring, Egress, Probe, Verb
from appliance.gateway.admin import Admin
from appliance.gateway.app import Gateway
from appliance.gateway.audit import Audit
from appliance.gateway.calls import Handler
from appliance.gateway.console import Console
from appliance.gateway.fine_tuning import FineTuning
from appliance.gateway.identity import Identities
from appliance.gateway.inference import Inference
from appliance.gateway.limits import Allowance
from appliance.gateway.model_service import ModelService
from appliance.gateway.nodes import Heartbeats, Node, NodeWatch
from appliance.gateway.ray_console import RayConsole
from appliance.gateway.reconciler import Clear, Order, Reconciler
from appliance.gateway.replicas import Reach
from appliance.gateway.routes import ROUTES
from appliance.gateway.secret_files import ensure_secret, read_secret
from appliance.gateway.sessions import Sessions
from appliance.gateway.site_doors import DomainDoor
from appliance.gateway.tuning_jobs import NoTuning, RayJobs, Register, TuningJobs
from appliance.i18n import _
from appliance.layout import Home
from appliance.ledger.log import Ledger
from appliance.registry import Adapter, Job, Registry
from appliance.store.releases import Releases
from appliance.tuning.run import RunFolder

# The dashboard closes an idle connection after 75 s or more; we do so well before, so that
# no request is sent into a connection that is being closed.
_KEEP_ALIVE_S = 15.0


@dataclass(frozen=True)
class Far:
    """What differs where the model server and Ray are on other hosts: a site.

    ``domains`` are the trust domains, the one that serves first; ``clear`` decides on adapters.
    """

    domains: tuple[DomainDoor, ...]
    clear: Clear
    reach: Reach = site_doors.relay


@dataclass(frozen=True)
class Neighbours:
    """What the gateway works with, of the rest of the appliance.

    ``serve`` and ``ray`` are the base URLs of Serve's proxy and of Ray's dashboard.
    ``tuning_hosts`` is on how many hosts a job can run at once. ``far`` is None embedded.
    """

    serve: str
    ray: str
    jobs: RayJobs
    register: Register
    bring: Bring
    promote: Verb
    retire: Verb
    probes: Mapping[str, Probe] = field(default_factory=dict)
    allowance: Allowance = field(default_factory=Allowance)
    tuning_hosts: int = 1
    far: Far | None = None


def neighbours(home: Home, registry: Registry) -> Neighbours:
    """Those of a running appliance, at their fixed ports inside the seal."""
    from appliance.tuning import adapters

    def register(folder: RunFolder, job: Job) -> Adapter:
        return adapters.register(home, registry, folder.root, job.id)

    return Neighbours(
        serve=ports.SERVE_URL,
        ray=ports.DASHBOARD_URL,
        jobs=ClusterJobs(),
        register=register,
        bring=lambda release, name: bring(home, registry, release, name),
        promote=lambda name: adapters.promote(home, registry, name),
        retire=lambda name: adapters.retire(home, registry, name),
        probes={
            "gateway": prove.probe_here,
            "ray-task": lambda: prove.prove_from_ray_task(home),
            "ray-job": lambda: prove.prove_from_ray_job(home),
        },
    )


def site_neighbours(home: Home, registry: Registry, node: GatewayNode) -> Neighbours:
    """Those of a site's gateway: the domain that serves and the one that tunes, which may be the
    same, each behind the relays of its hosts. Raises :class:`OSError` where credentials are amiss.
    """
    serving = DomainDoor.of(home, node.serving)
    tuning = None if node.tuning is None else DomainDoor.of(home, node.tuning)
    doors = {door.domain.domain: door for door in (serving, tuning) if door is not None}
    for door in doors.values():
        door.trust  # noqa: B018 - what is missing is said at the start
    jobs = {
        name: ClusterJobs(door.dashboard, door.token, door.trust) for name, door in doors.items()
    }
    probes: dict[str, Probe] = {"gateway": prove.probe_here}
    for name, client in jobs.items():
        probes[f"ray-task@{name}"] = partial(prove.prove_from_task_of_job, home, client)
        probes[f"ray-job@{name}"] = partial(prove.prove_from_ray_job, home, client)
    return replace(
        neighbours(home, registry),
        serve=serving.serve,
        ray=serving.dashboard,
        jobs=NoTuning() if tuning is None else jobs[tuning.domain.domain],
        probes=probes,
        tuning_hosts=1 if tuning is None else len(tuning.domain.nodes),
        far=Far(tuple(doors.values()), lambda name, digest: clear(home, registry, name, digest)),
    )


def clear(home: Home, registry: Registry, name: str, digest: str) -> Order:
    """Verify in full an adapter that replicas are to load, and say what they are to load.

    Raises :class:`RecordMissing` and :class:`AdapterRefused`.
    """
    from appliance.tuning import adapters

    record = registry.adapters.get(name)
    if record.digest != digest:
        raise AdapterRefused(name=name, reason=_("Another version of it is registered by now."))
    folder = adapters.verify(home, registry, name, record.base_digest)
    signer = adapters.public_key(home).read_text(encoding="ascii")
    return Order(str(folder), digest, signer)


def bring(home: Home, registry: Registry, release_id: str, name: str) -> Adapter:
    """Register the adapter ``name`` of a release folder; see :func:`tuning.adapters.bring`.

    Raises :class:`ReleaseUnknown`, :class:`ReleaseDamaged` and :class:`RecordMissing` too.
    """
    from appliance.tuning import adapters

    release = Releases(home).get(release_id)
    brought = release.manifest().of_kind("adapter")
    artefact = next((each for each in brought if each.name == name), None)
    if artefact is None:
        raise RecordMissing(kind="adapter", name=name, group="adapters")
    return adapters.bring(home, registry, release, artefact)


@asynccontextmanager
async def gateway(home: Home) -> AsyncIterator[ASGIApp]:
    """The gateway of ``home``, running for the length of the ``async with`` block.

    Raises the registry's and the ledger's errors where they cannot be opened: without identities
    and a record there is no service.
    """
    node = node_file.read_if_any(home)
    with Registry.open(home) as registry:
        if node is None or node.gateway is None:
            beside = neighbours(home, registry)
        else:
            beside = site_neighbours(home, registry, node.gateway)
        async with assembled(home, registry, beside) as app:
            yield app


@asynccontextmanager
async def assembled(home: Home, registry: Registry, beside: Neighbours) -> AsyncIterator[ASGIApp]:
    """The gateway between ``registry`` and the neighbours given."""
    async with AsyncExitStack() as stack:
        audit = await stack.enter_async_context(Audit(Ledger.open(home).append))
        await _enter_release(home, registry, audit)
        jobs = TuningJobs(
            home, registry, beside.jobs, beside.register, audit, hosts=beside.tuning_hosts
        )
        await stack.enter_async_context(jobs)
        identities, sessions = Identities(registry.api_keys.authenticate), Sessions()
        upstream = await stack.enter_async_context(_upstream(home, beside, audit))
        session, service, serve = upstream.session, upstream.service, upstream.serving
        parts = (
            Inference(service, audit),
            RayConsole(session, beside.ray, upstream.token),
            Console(identities, sessions, audit),
            FineTuning(registry, jobs),
            Adapters(
                registry,
                audit,
                serve,
                bring=beside.bring,
                promote=beside.promote,
                retire=beside.retire,
            ),
            Egress(audit, serve, beside.probes),
            Admin(
                home=home,
                registry=registry,
                identities=identities,
                audit=audit,
                jobs=jobs,
                serve=serve,
                nodes=upstream.nodes,
            ),
        )
        yield Gateway(handlers(parts), identities, sessions, audit, beside.allowance)


@dataclass(frozen=True)
class _Upstream:
    """The gateway's ways to the model server and to Ray."""

    session: aiohttp.ClientSession
    token: str
    service: ModelService
    serving: internal.Serving
    nodes: Callable[[], Awaitable[list[Node]]]


@asynccontextmanager
async def _upstream(home: Home, beside: Neighbours, audit: Audit) -> AsyncIterator[_Upstream]:
    far = beside.far
    async with AsyncExitStack() as stack:
        if far is None:
            session = await stack.enter_async_context(_client())
            token = read_secret(environment.ray_token(home))
            key = ensure_secret(environment.serve_key(home))
            service = await stack.enter_async_context(
                ModelService(session, beside.serve, beside.ray, token, key)
            )

            async def beside_us() -> list[Node]:
                return [each.node for each in await nodes.listed(session, beside.ray, token)]

            yield _Upstream(session, token, service, internal.ServeInternal(service), beside_us)
            return
        watches = []
        sessions = {}
        for door in far.domains:
            own = sessions[door] = await stack.enter_async_context(_client(door.trust))
            heartbeats = Heartbeats(door.domain.domain, door.domain.nodes)
            watch = NodeWatch(own, door.dashboard, door.token, heartbeats)
            watches.append(await stack.enter_async_context(watch))
        door = far.domains[0]
        session = sessions[door]
        service = await stack.enter_async_context(
            ModelService(
                session, beside.serve, beside.ray, door.token, door.serve_key, relay=far.reach
            )
        )
        remembered = home.registry.parent / "served-adapters.json"
        serving = await stack.enter_async_context(Reconciler(service, audit, far.clear, remembered))

        async def of_all_domains() -> list[Node]:
            return [node for watch in watches for node in watch.nodes()]

        yield _Upstream(session, door.token, service, serving, of_all_domains)


def handlers(parts: tuple[Any, ...]) -> dict[str, Handler]:
    """Each route's handler: the method of that name, which exactly one part has."""
    found: dict[str, Handler] = {}
    for route in ROUTES:
        owners = [part for part in parts if hasattr(part, route.handler)]
        if len(owners) != 1:
            raise ValueError(f"{route.name}: {len(owners)} parts have '{route.handler}'")
        found[route.handler] = getattr(owners[0], route.handler)
    return found


async def _enter_release(home: Home, registry: Registry, audit: Audit) -> None:
    for event in await asyncio.to_thread(release_catalogue.enter, home, registry):
        audit.note(event)


def _client(trust: ssl.SSLContext | None = None) -> aiohttp.ClientSession:
    """Connections to the services inside, over TLS where ``trust`` is given: no cookies, no
    proxies, no decompression, no total time limit (a model may think for long), 5 s to connect."""
    return aiohttp.ClientSession(
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
        connector=aiohttp.TCPConnector(
            limit=0, keepalive_timeout=_KEEP_ALIVE_S, ssl=trust if trust is not None else True
        ),
        skip_auto_headers={"User-Agent", "Accept-Encoding"},
    )
