"""The gateway over real TLS: who is let in, what passes, and what the ledger says of it.

Serve and Ray are a stand-in here (``gateway_stand.py`` says what it is).
"""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from gateway_stand import RAY_TOKEN, SERVE_KEY, Stand, stand

from appliance.gateway.limits import Allowance
from appliance.gateway.routes import ROUTES, Access, Route
from appliance.gateway.sessions import COOKIE
from appliance.registry import Role, permits

CHAT = "/v1/chat/completions"
QUESTION = {"model": "base", "messages": [{"role": "user", "content": "a secret question"}]}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("gateway") / "home") as running:
        yield running


def _ask(client: httpx.Client, route: Route) -> httpx.Response:
    path = route.pattern.replace("{path*}", "").replace("{id}", "nothing")
    path = path.replace("{model}", "base").replace("{name}", "nothing")
    body = {} if route.method == "POST" else None
    return client.request(route.method, path, json=body)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_every_route_refuses_whom_it_must(shared: Stand, route: Route) -> None:
    """Deny by default: the whole table, without a key, with a wrong one, and with every role."""
    if route.access is Access.PUBLIC:
        assert route.role is None
        assert route.pattern in ("/healthz", "/", "/login", "/logout")
        return
    with shared.client() as stranger:
        assert _ask(stranger, route).status_code == 401
        stranger.headers["Authorization"] = f"Bearer {'sov-' + '0' * 16 + '-' + '0' * 64}"
        assert _ask(stranger, route).status_code == 401
    assert route.role is not None
    for role in Role:
        with shared.client(role.value) as client:
            status = _ask(client, route).status_code
        if route.access is Access.SESSION:
            assert status == 401, "an API key does not open the console"
        elif permits(role, route.role):
            assert status not in (401, 403), role
        else:
            assert status == 403, role


def test_what_is_not_in_the_table_is_refused(shared: Stand) -> None:
    hidden = ("/internal/state", "/v1/embeddings", "/admin", "/admin/v1/", "/docs", "/metrics")
    for path in hidden:
        with shared.client() as stranger, shared.client("operator") as operator:
            assert stranger.get(path).status_code == 401
            assert operator.get(path).status_code == 404
            assert operator.put("/v1/models").status_code == 404


def test_the_official_client_streams_through(shared: Stand) -> None:
    trusted = httpx.Client(verify=shared.trusted, trust_env=False)
    client = openai.OpenAI(
        base_url=f"{shared.url}/v1", api_key=shared.keys["user"], http_client=trusted
    )
    stream = client.chat.completions.create(**QUESTION, stream=True)
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "é0 é1 é2 é3 é4 "
    whole = client.chat.completions.create(**QUESTION)
    assert whole.choices[0].message.content == "words"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=[])
    client.api_key = "wrong"
    with pytest.raises(openai.AuthenticationError, match="does not know this API key"):
        client.models.list()


def test_usage_is_passed_on_only_to_who_asked_for_it(shared: Stand) -> None:
    with shared.client("user") as client:
        plain = client.post(CHAT, json={**QUESTION, "stream": True}).text
        options = {"stream": True, "stream_options": {"include_usage": True}}
        asked = client.post(CHAT, json={**QUESTION, **options}).text
    assert "prompt_tokens" not in plain
    assert asked.count("prompt_tokens") == 1
    assert plain.endswith("data: [DONE]\n\n") and asked.endswith("data: [DONE]\n\n")


def test_the_ledger_has_every_call_by_digest_and_never_its_text(tmp_path: Path) -> None:
    with stand(tmp_path / "home") as running:
        with running.client("user") as client:
            body = json.dumps({**QUESTION, "stream": True}).encode()
            answer = client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
            # Durable before the answer was complete: it is there at once.
            (entry,) = running.ledger("inference")
            client.post(CHAT, json={"model": "nobody", "messages": []})
            client.post(CHAT, json={"model": "white space", "messages": []})
        assert entry["subject"]["request"] == f"sha256:{hashlib.sha256(body).hexdigest()}"
        told = hashlib.sha256(answer.content).hexdigest()
        assert entry["subject"]["response"] == f"sha256:{told}"
        assert entry["subject"]["prompt_tokens"] == "3"
        assert entry["subject"]["completion_tokens"] == "5"
        assert [e["outcome"] for e in running.ledger("inference")] == ["ok", "refused", "ok"]
        everything = b"".join(p.read_bytes() for p in running.home.ledger.rglob("*") if p.is_file())
        assert b"secret question" not in everything


def test_headers_are_passed_by_allow_list(shared: Stand) -> None:
    forged = {
        "X-Appliance-Gateway": "forged",
        "X-Appliance-Caller": "root",
        "X-Forwarded-For": "192.0.2.1",
        "Cookie": "a=b",
        "Connection": "X-Appliance-Gateway, close",
        "TE": "trailers",
    }
    with shared.client("user") as client:
        answer = client.post(CHAT, json=QUESTION, headers=forged)
    assert answer.status_code == 200
    seen = shared.serve.seen[-1]["headers"]
    assert seen["x-appliance-gateway"] == SERVE_KEY
    assert len(seen["x-appliance-caller"]) == 16
    assert {"authorization", "cookie", "x-forwarded-for", "te"}.isdisjoint(seen.keys())
    assert "server" not in answer.headers
    assert answer.headers["strict-transport-security"]


def _raw(shared: Stand, request: bytes) -> bytes:
    """Send bytes as they are, as no well-behaved client would; return the status line."""
    port = int(shared.url.rpartition(":")[2])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        shared.trusted.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        secure.sendall(request)
        return secure.recv(4096).split(b"\r\n")[0]


@pytest.mark.parametrize(
    "path",
    [
        "/ray//api/jobs/",
        "/ray/../admin/v1/keys",
        "/ray/%2e%2e/admin/v1/keys",
        "/ray/static/..%2f..%2fetc",
        "/v1/%2e%2e/internal/state",
        "/v1/models/%252e%252e",
        "/v1/models/a%5cb",
        "/v1/models/%00",
        "/v1/models/a%0d%0aX-Evil:%201",
        "/v1/models/\xff",
        "//evil.example/v1/models",
        "/v1/./models",
        "/v1/models/a;b=c",
    ],
)
def test_ambiguous_paths_are_refused_before_anything_else(shared: Stand, path: str) -> None:
    before = len(shared.serve.seen)
    key = shared.keys["operator"]
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n"
    assert _raw(shared, request.encode("latin-1")).split(b" ")[1] == b"400"
    assert len(shared.serve.seen) == before


def test_smuggled_framing_is_refused(shared: Stand) -> None:
    both = (
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
        "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n\r\n"
    )
    assert _raw(shared, both.encode()).split(b" ")[1] in (b"400", b"401")


def test_old_tls_is_refused(shared: Stand) -> None:
    port = int(shared.url.rpartition(":")[2])
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(shared.home.tls / "ca.pem")
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", port)) as plain, pytest.raises(ssl.SSLError):
        old.wrap_socket(plain, server_hostname="localhost")


def test_bodies_are_bounded(shared: Stand) -> None:
    with shared.client("user") as client:
        announced = client.post(CHAT, content=b"x" * (9 << 20))
        assert announced.status_code == 413
        streamed = client.post(CHAT, content=(b"x" * (1 << 20) for _piece in range(9)))
        assert streamed.status_code == 413
        for nonsense in (b"[]", b"{", b"[" * 100_000, b"\xff"):
            assert client.post(CHAT, content=nonsense).status_code == 400


def test_a_client_that_leaves_stops_the_model(tmp_path: Path) -> None:
    with stand(tmp_path / "home") as running:
        running.serve.tokens, running.serve.pause_s = 1000, 0.02
        with (
            running.client("user") as client,
            client.stream("POST", CHAT, json={**QUESTION, "stream": True}) as answer,
        ):
            next(answer.iter_lines())
        assert running.serve.left.wait(5), "Serve went on generating"
        assert _within(3, lambda: [e["outcome"] for e in running.ledger("inference")] == ["failed"])


def test_a_stream_that_breaks_is_not_taken_for_whole(tmp_path: Path) -> None:
    with stand(tmp_path / "home") as running:
        running.serve.cut_after = 2
        with running.client("user") as client, pytest.raises(httpx.RemoteProtocolError):
            client.post(CHAT, json={**QUESTION, "stream": True})
        assert _within(3, lambda: [e["outcome"] for e in running.ledger("inference")] == ["failed"])


def test_an_unwritable_ledger_stops_service_until_it_can_be_written(tmp_path: Path) -> None:
    with stand(tmp_path / "home") as running, running.client("user") as client:
        lock = running.home.ledger / "checkpoint"
        good = lock.read_bytes()
        lock.write_bytes(b"damaged")
        first = client.post(CHAT, json=QUESTION)
        assert first.status_code == 503
        assert first.json()["error"]["code"] == "audit-unavailable"
        assert "words" not in first.text
        asked = len(running.serve.seen)
        assert client.post(CHAT, json=QUESTION).status_code == 503
        assert len(running.serve.seen) == asked, "refused before Serve was asked"
        with running.client("operator") as operator:
            made = operator.post("/admin/v1/keys", json={"name": "x", "role": "user"})
            assert made.status_code == 503
        lock.write_bytes(good)
        assert _within(5, lambda: client.post(CHAT, json=QUESTION).status_code == 200)
        assert len(running.ledger("inference")) >= 2, "what was owed is on the record"


def test_a_key_may_only_ask_so_much(tmp_path: Path) -> None:
    slow = Allowance(rate=0.5, burst=3, together=2)
    with stand(tmp_path / "home", allowance=slow) as running, running.client("user") as client:
        statuses = [client.get("/v1/models").status_code for _turn in range(5)]
        assert statuses == [200, 200, 200, 429, 429]
        refused = client.get("/v1/models")
        assert int(refused.headers["retry-after"]) >= 1
        with running.client("tuner") as other:
            assert other.get("/v1/models").status_code == 200, "each key has its own"


def test_a_revoked_key_ends_at_once(shared: Stand) -> None:
    with shared.client("operator") as operator:
        made = operator.post("/admin/v1/keys", json={"name": "ward", "role": "user"}).json()
        with shared.client() as client:
            client.headers["Authorization"] = f"Bearer {made['key']}"
            assert client.get("/v1/models").status_code == 200
            assert operator.delete(f"/admin/v1/keys/{made['id']}").status_code == 200
            assert client.get("/v1/models").status_code == 401
        listed = operator.get("/admin/v1/keys").json()["data"]
    assert made["key"] not in json.dumps(listed)


# --- people and Ray's dashboard ------------------------------------------------------------------


def test_the_console_is_reached_by_login_only(shared: Stand) -> None:
    with shared.client() as browser:
        page = browser.get("/ray/", headers={"Accept": "text/html"})
        assert (page.status_code, page.headers["location"]) == (303, "/login")
        form = browser.get("/login", headers={"Accept-Language": "fr-FR"})
        assert 'lang="fr"' in form.text
        assert "http" not in form.text.replace("http-equiv", ""), "no external asset"
        assert "default-src 'none'" in form.headers["content-security-policy"]

        wrong = browser.post("/login", data={"key": shared.keys["user"]})
        assert wrong.status_code == 403
        right = browser.post("/login", data={"key": shared.keys["operator"]})
        assert (right.status_code, right.headers["location"]) == (303, "/ray/")
        cookie = right.headers["set-cookie"].lower()
        assert all(word in cookie for word in ("httponly", "secure", "samesite=strict", "path=/"))

        page = browser.get("/ray/")
        assert page.status_code == 200
        assert page.text.startswith("<html>/")
        assert shared.serve.seen[-1]["headers"]["authorization"] == f"Bearer {RAY_TOKEN}"
        assert "cookie" not in shared.serve.seen[-1]["headers"]
        assert {"server", "x-frame-options"}.isdisjoint(page.headers)
        assert "ray=1" not in page.headers.get("set-cookie", "")
        assert browser.get("/admin/v1/status").status_code == 401, "a cookie opens /ray/ only"

        browser.post("/logout")
        assert browser.get("/ray/").status_code == 401


def test_ray_can_be_read_and_not_changed(shared: Stand) -> None:
    with shared.client() as browser:
        browser.post("/login", data={"key": shared.keys["operator"]})
        assert browser.get("/ray/api/jobs/").status_code == 200
        assert browser.get("/ray/api/v0/nodes?limit=1").status_code == 200
        before = len(shared.serve.seen)
        refused = [
            browser.post("/ray/api/jobs/", json={"entrypoint": "id"}),
            browser.put("/ray/api/serve/applications/", json={}),
            browser.delete("/ray/api/jobs/x"),
            browser.get("/ray/api/packages/gcs/x.zip"),
            browser.get("/ray/worker/gpu_profile?pid=1"),
            browser.get("/ray/test/dump"),
        ]
        assert all(answer.status_code in (401, 404) for answer in refused)
        assert len(shared.serve.seen) == before


def test_a_stolen_or_forged_cookie_of_an_ended_session_opens_nothing(shared: Stand) -> None:
    with shared.client() as browser:
        browser.post("/login", data={"key": shared.keys["operator"]})
        stolen = browser.cookies[COOKIE]
        browser.post("/logout")
        for value in (stolen, "", "x" * 43, stolen[:-1], "a=b; c"):
            with shared.client(cookies={COOKIE: value}) as thief:
                assert thief.get("/ray/").status_code == 401


def test_another_site_cannot_log_a_browser_in(shared: Stand) -> None:
    with shared.client() as browser:
        key = {"key": shared.keys["operator"]}
        answer = browser.post("/login", data=key, headers={"Origin": "https://evil.example"})
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers


def test_failed_logins_wait_longer_and_longer(tmp_path: Path) -> None:
    with stand(tmp_path / "home") as running, running.client() as browser:
        took = []
        for _turn in range(3):
            start = time.monotonic()
            browser.post("/login", data={"key": "wrong"})
            took.append(time.monotonic() - start)
    assert took[0] < took[1] < took[2]
    assert took[2] >= 1.0


def test_healthz_tells_strangers_nothing(shared: Stand) -> None:
    with shared.client() as stranger:
        assert stranger.get("/healthz").json() == {"status": "ok"}


def test_many_streams_at_once_are_kept_apart(shared: Stand) -> None:
    texts: list[str] = []

    def ask() -> None:
        with shared.client("user") as client:
            texts.append(client.post(CHAT, json={**QUESTION, "stream": True}).text)

    threads = [threading.Thread(target=ask) for _stream in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 8
    assert len(set(texts)) == 1


def _within(seconds: float, holds: Any) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.05)
    return False
