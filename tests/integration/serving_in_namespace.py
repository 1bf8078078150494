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
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.environ.update(environment.serve())
    ray = [str(Path(sys.executable).with_name("ray"))]
    ray += ["start", "--head", "--node-ip-address=127.0.0.1", "--port", str(ports.GCS)]
    ray += ["--num-cpus=2", "--object-store-memory=100000000", "--disable-usage-stats"]
    ray += ["--include-dashboard=false", f"--temp-dir={home}/ray"]
    subprocess.run(ray, check=True, stdout=sys.stderr)
    deploy = [sys.executable, "-m", "appliance.serving.deploy", "--home", str(home)]
    weights = next((home / "current/models").glob("*/model.safetensors"))
    aside = weights.rename(weights.with_suffix(".aside"))
    broken = subprocess.run(deploy, check=False, capture_output=True, text=True)
    told = json.loads(next(line for line in broken.stderr.splitlines() if line.startswith("{")))
    aside.rename(weights)
    subprocess.run(deploy, check=True, stdout=sys.stderr)

    key = (home / "secrets" / "serve.key").read_text().strip()
    headers = {"X-Appliance-Gateway": key}
    raw = httpx.Client(base_url=ports.SERVE_URL, headers=headers, timeout=60)
    client = openai.OpenAI(
        base_url=f"{ports.SERVE_URL}/v1", api_key="unused", default_headers=headers, max_retries=0
    )

    def state():
        try:
            answer = raw.get("/internal/state")
        except httpx.HTTPError:
            return None
        return answer.json() if answer.status_code == 200 else None

    def whole():
        answer = client.chat.completions.create(
            model="tiny", messages=MESSAGES, temperature=0, max_tokens=8
        )
        return answer.choices[0].message.content

    seen = {"models": [m.id for m in client.models.list()], "whole": whole()}
    seen["broken"] = [broken.returncode, told["code"], told["why"]]
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

    leaving = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=450, stream=True
    )
    next(iter(leaving))
    seen["while_streaming"] = state()["requests"]
    leaving.close()
    seen["after_leaving"] = eventually(lambda: state()["requests"] == 0, 10)

    pid = state()["pid"]
    os.kill(pid, signal.SIGKILL)
    seen["recovered"] = bool(eventually(lambda: (now := state()) and now["pid"] != pid, 60))
    seen["again"] = whole()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
