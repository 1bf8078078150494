"""Run by test_serving_serve.py inside a network namespace of its own: Ray, Serve, and a caller.

    python serving_in_namespace.py HOME

Prints one JSON object of what it saw.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai

from appliance.cluster import environment, ports

MESSAGES = [{"role": "user", "content": "hello"}]


def eventually(check, seconds):
    """The first truthy value of ``check``, or the last value."""
    deadline = time.monotonic() + seconds
    while not (value := check()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return value


def main(home: Path) -> None:
    """Start everything, use it as an application would, break it, use it again."""
    start_ray(home)
    deploy = [sys.executable, "-m", "appliance.serving.deploy", "--home", str(home)]
    seen = {"broken": deployed_without_weights(home, deploy)}
    subprocess.run(deploy, check=True, stdout=sys.stderr)

    key = (home / "secrets" / "serve.key").read_text().strip()
    headers = {"X-Appliance-Gateway": key}
    raw = httpx.Client(base_url=ports.SERVE_URL, headers=headers, timeout=60)
    client = openai.OpenAI(
        base_url=f"{ports.SERVE_URL}/v1", api_key="unused", default_headers=headers, max_retries=0
    )
    seen |= asked(client) | left(client, raw) | killed(client, raw)
    print(json.dumps(seen))


def start_ray(home):
    """A head on this namespace's loopback, with Serve's settings as the appliance has them."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.environ.update(environment.serve())
    ray = [str(Path(sys.executable).with_name("ray"))]
    ray += ["start", "--head", "--node-ip-address=127.0.0.1", "--port", str(ports.GCS)]
    ray += ["--num-cpus=2", "--object-store-memory=100000000", "--disable-usage-stats"]
    ray += ["--include-dashboard=false", f"--temp-dir={home}/ray"]
    subprocess.run(ray, check=True, stdout=sys.stderr)


def deployed_without_weights(home, deploy):
    """Exit status, code and reason of a deployment whose model cannot load."""
    weights = next((home / "current/models").glob("*/model.safetensors"))
    aside = weights.rename(weights.with_suffix(".aside"))
    broken = subprocess.run(deploy, check=False, capture_output=True, text=True)
    aside.rename(weights)
    told = json.loads(next(line for line in broken.stderr.splitlines() if line.startswith("{")))
    return [broken.returncode, told["code"], told["why"]]


def state(raw):
    """The server's own account of itself, or None while it has none to give."""
    try:
        answer = raw.get("/internal/state")
    except httpx.HTTPError:
        return None
    return answer.json() if answer.status_code == 200 else None


def whole(client):
    """A greedy answer in one piece."""
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, max_tokens=8
    )
    return answer.choices[0].message.content


def asked(client):
    """Answers whole and streamed, and what is refused."""
    seen = {"models": [m.id for m in client.models.list()], "whole": whole(client)}
    stream = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        temperature=0,
        max_tokens=8,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    seen["streamed"] = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    seen["usage"] = chunks[-1].usage.completion_tokens
    seen["without_key"] = httpx.get(f"{ports.SERVE_URL}/v1/models").status_code
    try:
        client.chat.completions.create(model="tiny", messages=MESSAGES, n=2)
    except openai.BadRequestError as error:
        seen["refused"] = error.param
    return seen


def left(client, raw):
    """A caller who goes in the middle of an answer frees the engine."""
    leaving = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=450, stream=True
    )
    next(iter(leaving))
    during = state(raw)["requests"]
    leaving.close()
    after = eventually(lambda: state(raw)["requests"] == 0, 10)
    return {"while_streaming": during, "after_leaving": after}


def killed(client, raw):
    """The replica dies, and another answers in its place."""
    pid = state(raw)["pid"]
    os.kill(pid, signal.SIGKILL)
    recovered = eventually(lambda: (now := state(raw)) and now["pid"] != pid, 60)
    return {"recovered": bool(recovered), "again": whole(client)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
