"""A real gateway on loopback (uvicorn, TLS, ledger, registry) before a stand-in for Serve and Ray.

The stand-in is a real HTTP server with the routes of ``serving/app.py`` and of Ray's dashboard that
the gateway uses; it answers made-up tokens. It is what lets these tests run in seconds and without
Ray; ``tests/integration/test_main_job.py`` runs the same gateway before the real ones.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from appliance.cluster import pki
from appliance.cluster.jobs import Job as RayJob
from appliance.errors import JobUnknown
from appliance.gateway.limits import Allowance
from appliance.gateway.server import context, server
from appliance.gateway.wiring import Neighbours, assembled, bring
from appliance.layout import Home
from appliance.ledger.files import LedgerFiles
from appliance.ledger.log import Ledger
from appliance.registry import Adapter, AdapterStatus, Job, Registry, Role
from appliance.tuning.run import RunFolder

SERVE_KEY, RAY_TOKEN = "s" * 64, "r" * 64


@dataclass
class StandIn:
    """Serve and the dashboard in one small server; remembers what it was asked."""

    tokens: int = 5
    pause_s: float = 0.0
    seen: list[dict[str, Any]] = field(default_factory=list)
    loaded: dict[str, str] = field(default_factory=dict)
    left: threading.Event = field(default_factory=threading.Event)
    cut_after: int | None = None

    def app(self) -> Starlette:
        """The server."""
        answer = self._answer
        routes = [
            Route("/v1/{rest:path}", answer, methods=["GET", "POST"]),
            Route("/internal/state", self._state),
            Route("/api/serve/applications/", self._applications),
            Route("/internal/adapters/{name}", self._adapter, methods=["POST", "DELETE"]),
            Route("/{rest:path}", self._dashboard, methods=["GET", "POST", "PUT", "DELETE"]),
        ]
        return Starlette(routes=routes)

    async def _answer(self, request: Request) -> Response:
        body = await request.body()
        self.seen.append({"path": request.url.path, "headers": request.headers, "body": body})
        if request.headers.get("x-appliance-gateway") != SERVE_KEY:
            return JSONResponse({"error": {"message": "gateway only"}}, 403)
        if request.method == "GET":
            return JSONResponse({"object": "list", "data": [{"id": "base", "object": "model"}]})
        wanted = json.loads(body)
        usage = {"prompt_tokens": 3, "completion_tokens": self.tokens, "total_tokens": 8}
        if wanted.get("model") == "nobody":
            error = {"message": "no such model", "type": "invalid_request_error", "code": "x"}
            return JSONResponse({"error": error}, 404)
        if not wanted.get("stream"):
            message = {"role": "assistant", "content": "words"}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            return JSONResponse(_chunk(choices=choices, usage=usage, object="chat.completion"))
        include = (wanted.get("stream_options") or {}).get("include_usage")
        events = self._events(usage if include else None)
        return StreamingResponse(events, headers={"Content-Type": "text/event-stream"})

    async def _events(self, usage: dict[str, int] | None) -> Any:
        try:
            for number in range(self.tokens):
                if number == self.cut_after:
                    return
                delta = {"role": "assistant", "content": f"é{number} "}
                yield _event(_chunk(choices=[{"index": 0, "delta": delta}]))
                await asyncio.sleep(self.pause_s)
            if usage:
                yield _event(_chunk(choices=[], usage=usage))
            yield b"data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.left.set()
            raise

    async def _state(self, request: Request) -> Response:
        pins = [{"name": name, "path": path, "digest": ""} for name, path in self.loaded.items()]
        return JSONResponse({"model": "base", "adapters": pins, "requests": 0})

    async def _applications(self, request: Request) -> Response:
        """Serve's controller: this server is its own only replica."""
        name, port = "SERVE_REPLICA::appliance#model#only", request.url.port
        target = {"name": name, "ip": request.url.hostname, "port": port, "instance_id": ""}
        group = {"targets": [target], "protocol": "HTTP", "route_prefix": "/"}
        return JSONResponse({"target_groups": [group]})

    async def _adapter(self, request: Request) -> Response:
        name = request.path_params["name"]
        if request.method == "DELETE":
            self.loaded.pop(name, None)
        else:
            self.loaded[name] = (await request.json())["path"]
        return Response(status_code=204)

    async def _dashboard(self, request: Request) -> Response:
        self.seen.append({"path": request.url.path, "headers": request.headers, "body": b""})
        if request.headers.get("authorization") != f"Bearer {RAY_TOKEN}":
            return Response("Unauthorized", 401)
        headers = {"Server": "aiohttp", "Set-Cookie": "ray=1", "X-Frame-Options": "ALLOW"}
        return Response(f"<html>{request.url.path}", 200, headers, "text/html")


class ScriptedJobs:
    """Ray's jobs as a table: a test says how each one goes on."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.folders: dict[str, Path] = {}
        self.cancelled: list[str] = []

    def submit(self, argv: Any, *, run_dir: Path, submission_id: str, **_rest: Any) -> str:
        self.states[submission_id] = "RUNNING"
        self.folders[submission_id] = run_dir
        return submission_id

    def status(self, job_id: str) -> RayJob:
        if job_id not in self.states:
            raise JobUnknown(job=job_id)
        status: Any = self.states[job_id]
        return RayJob(job_id, status, "", "it ended", {}, None, None)

    def cancel(self, job_id: str) -> bool:
        self.cancelled.append(job_id)
        self.states[job_id] = "STOPPED"
        return True

    def tail(self, job_id: str, lines: int) -> str:
        return "a line\n"


@dataclass
class Stand:
    """What a test holds of a running gateway."""

    home: Home
    registry: Registry
    url: str
    serve: StandIn
    jobs: ScriptedJobs
    keys: dict[str, str]
    beside: Neighbours

    @cached_property
    def trusted(self) -> ssl.SSLContext:
        """Trust in the site's CA and nothing else."""
        return ssl.create_default_context(cafile=self.home.tls / "ca.pem")

    def client(self, role: str | None = None, **more: Any) -> httpx.Client:
        """An HTTPS client that trusts the site's CA, with the key of ``role``."""
        headers = {"Authorization": f"Bearer {self.keys[role]}"} if role else {}
        return httpx.Client(
            base_url=self.url,
            verify=self.trusted,
            headers=headers,
            trust_env=False,
            **more,
        )

    @contextmanager
    def successor(self) -> Iterator[str]:
        """A second gateway for the same home, as after a restart; yields its address."""
        with _gateway(self.home, self.registry, self.beside) as url:
            yield url

    def ledger(self, action: str) -> list[dict[str, Any]]:
        """The entries of that action, from the files."""
        files = LedgerFiles(self.home.ledger)
        size = int(files.checkpoint().split(b"\n")[1])
        entries = (json.loads(entry) for _index, entry in files.walk(0, size))
        return [entry for entry in entries if entry["action"] == action]


@contextmanager
def stand(
    root: Path,
    *,
    allowance: Allowance | None = None,
    change: Callable[[Neighbours], Neighbours] = lambda beside: beside,
) -> Iterator[Stand]:
    """A home, a stand-in and a gateway, running in a thread until the block ends."""
    home = Home(root)
    pki.ensure(home)
    Ledger.create(home, "test.example/appliance")
    for name, value in (("serve.key", SERVE_KEY), ("ray.token", RAY_TOKEN)):
        (home.secrets / name).write_text(value)
    serve, jobs = StandIn(), ScriptedJobs()
    with Registry.open(home) as registry, _running(serve.app()) as upstream:
        keys = {role.value: registry.api_keys.create(role.value, role)[1] for role in Role}
        beside = Neighbours(
            serve=upstream,
            ray=upstream,
            jobs=jobs,
            register=lambda folder, job: _register(registry, folder, job),
            bring=lambda release, name: bring(home, registry, release, name),
            promote=lambda name: registry.adapters.set_status(name, AdapterStatus.PROMOTED),
            retire=lambda name: registry.adapters.set_status(name, AdapterStatus.RETIRED),
            allowance=allowance or Allowance(),
        )
        with _gateway(home, registry, change(beside)) as url:
            (home.secrets / "operator.key").write_text(keys["operator"])
            home.run.mkdir(exist_ok=True)
            (home.run / "supervisor.json").write_text(json.dumps({"endpoint": url}))
            yield Stand(home, registry, url, serve, jobs, keys, beside)


def _register(registry: Registry, folder: RunFolder, job: Job) -> Adapter:
    run = folder.load()
    digest = "sha256:" + job.id.removeprefix("ftjob-").ljust(64, "0")
    return registry.adapters.add(
        Adapter(
            name=run.spec.name,
            base=run.base.name,
            base_digest=run.base.digest,
            dataset_digest=run.dataset.digest,
            job_id=job.id,
            digest=digest,
            path=str(folder.result),
            status=AdapterStatus.EVALUATED,
            card_path=str(folder.result / "card.json"),
            created=datetime.now(UTC),
        )
    )


@contextmanager
def _gateway(home: Home, registry: Registry, beside: Neighbours) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    running: dict[str, Any] = {}

    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def serve() -> None:
        async with assembled(home, registry, beside) as app:
            running["server"] = server(app, context(home))
            await running["server"].serve(sockets=[listener])

    with _thread(serve, running):
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def _running(app: Any) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    running: dict[str, Any] = {}

    async def serve() -> None:
        config = uvicorn.Config(app, log_level="warning", lifespan="off")
        running["server"] = uvicorn.Server(config)
        await running["server"].serve(sockets=[listener])

    with _thread(serve, running):
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def _thread(serve: Callable[[], Any], running: dict[str, Any]) -> Iterator[None]:
    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    for _turn in range(500):
        if "server" in running and running["server"].started:
            break
        thread.join(0.01)
        assert thread.is_alive(), "the server ended"
    try:
        yield
    finally:
        running["server"].should_exit = True
        thread.join(20)


def _chunk(**more: Any) -> dict[str, Any]:
    usual = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "base"}
    return {**usual, **more}


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"
