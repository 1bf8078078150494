"""The gateway's parts put together for one installation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from starlette.types import ASGIApp

from appliance.cluster import environment, ports, prove
from appliance.cluster.jobs import Jobs as ClusterJobs
from appliance.errors import RecordMissing
from appliance.gateway import internal, release_catalogue
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
from appliance.gateway.ray_console import RayConsole
from appliance.gateway.routes import ROUTES
from appliance.gateway.secret_files import ensure_secret, read_secret
from appliance.gateway.sessions import Sessions
from appliance.gateway.tuning_jobs import RayJobs, Register, TuningJobs
from appliance.layout import Home
from appliance.ledger.log import Ledger
from appliance.registry import Adapter, Job, Registry
from appliance.store.releases import Releases
from appliance.tuning.run import RunFolder

_LOG = logging.getLogger(__name__)
# The dashboard closes an idle connection after 75 s or more; we do so well before, so that
# no request is sent into a connection that is being closed.
_KEEP_ALIVE_S = 15.0


@dataclass(frozen=True)
class Neighbours:
    """What the gateway works with, of the rest of the appliance.

    ``serve`` and ``ray`` are the base URLs of Serve's proxy and of Ray's dashboard.
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
    with Registry.open(home) as registry:
        async with assembled(home, registry, neighbours(home, registry)) as app:
            yield app


@asynccontextmanager
async def assembled(home: Home, registry: Registry, beside: Neighbours) -> AsyncIterator[ASGIApp]:
    """The gateway between ``registry`` and the neighbours given."""
    async with AsyncExitStack() as stack:
        audit = await stack.enter_async_context(Audit(Ledger.open(home).append))
        session = await stack.enter_async_context(_client())
        await _enter_release(home, registry, audit)
        jobs = TuningJobs(home, registry, beside.jobs, beside.register, audit)
        await stack.enter_async_context(jobs)
        identities, sessions = Identities(registry.api_keys.authenticate), Sessions()
        serve_key = ensure_secret(environment.serve_key(home))
        token = read_secret(environment.ray_token(home))
        service = await stack.enter_async_context(
            ModelService(session, beside.serve, beside.ray, token, serve_key)
        )
        serve = internal.ServeInternal(service)
        parts = (
            Inference(service, audit),
            RayConsole(session, beside.ray, token),
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
                nodes=lambda: internal.nodes(session, beside.ray, token),
            ),
        )
        yield Gateway(handlers(parts), identities, sessions, audit, beside.allowance)


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


def _client() -> aiohttp.ClientSession:
    """Connections to the services inside: no cookies, no proxies, no decompression, no total time
    limit (a model may think for long), 5 s to connect."""
    return aiohttp.ClientSession(
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
        skip_auto_headers={"User-Agent", "Accept-Encoding"},
    )
