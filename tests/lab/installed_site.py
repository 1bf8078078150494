"""A site in the making: a lab, its site file, and the operator's ``sovctl`` on the controller."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.lab import Lab
from tests.lab.site_bundle import SiteBundle

BASE = "smollm2-135m-instruct"
CHECKOUT = Path(__file__).resolve().parents[2]

TUNING: Mapping[str, Any] = {
    "name": "letters", "base": BASE, "dataset": "icd10cm", "workers": 2, "steps": 4,
    "batch_rows": 8, "warmup_steps": 1, "checkpoint_every": 2, "max_length": 64,
    "evaluation": {"heldout": 4},
}  # fmt: skip

_ASK = """
import httpx, openai, ssl, sys
url, ca, key, model = sys.argv[1:5]
trusted = ssl.create_default_context(cafile=ca)
client = openai.OpenAI(base_url=url + "/v1", api_key=open(key).read().strip(),
                       http_client=httpx.Client(verify=trusted, trust_env=False), max_retries=0)
for number in range(int(sys.argv[5])):
    answer = client.chat.completions.create(
        model=model, max_tokens=4, messages=[{"role": "user", "content": f"Say {number}."}])
    assert answer.usage.completion_tokens > 0, answer
stream = client.chat.completions.create(
    model=model, max_tokens=8, stream=True, messages=[{"role": "user", "content": "Count."}])
assert sum(1 for part in stream if part.choices and part.choices[0].delta.content) > 1
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended, and all that it said."""

    status: int
    said: str


@dataclass
class Attempt:
    """An installation under way, whose text an operator would see in a pipe."""

    process: subprocess.Popen[bytes]
    text: Path
    artifacts: Path
    before: frozenset[Path]

    @property
    def said(self) -> str:
        return self.text.read_text(errors="replace")

    def until(self, reached: Callable[[], bool], seconds: float = 300) -> None:
        """Wait for what can be seen from outside while it runs."""
        deadline = time.monotonic() + seconds
        while not reached():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)

    def until_task(self, task: str, seconds: float = 300) -> None:
        """Wait until Ansible begins a task: ``role : The beginning of its name``."""
        self.until(lambda: f"TASK [{task}" in self._log(), seconds)

    def end(self, seconds: float = 300) -> Ended:
        """Let it come to its end."""
        return Ended(self.process.wait(timeout=seconds), self.said)

    def kill(self) -> None:
        """The controller is gone: everything in its session ends at once and unheard."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def interrupt(self) -> None:
        """^C on its terminal."""
        os.killpg(self.process.pid, signal.SIGINT)

    def _log(self) -> str:
        """What Ansible has said since this began."""
        fresh = set(self.artifacts.glob("*/stdout")) - self.before
        return "".join(path.read_text(errors="replace") for path in fresh)


@dataclass
class InstalledSite:
    """A lab, a site file for it, and the operator's ``sovctl`` on the controller."""

    lab: Lab
    folder: Path
    file: Path
    bundle: SiteBundle

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def environment(self) -> dict[str, str]:
        return {"SOVCTL_HOME": str(self.home), "PYTHONPATH": str(CHECKOUT), "CI": "true"}

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "appliance.cli.main", *words]

    def sovctl(
        self, *words: str, check: bool = True, timeout: float = 1500
    ) -> subprocess.CompletedProcess[str]:
        return self.lab.controller.run(
            self.argv(*words), env=self.environment, check=check, timeout=timeout
        )

    def ask(self, *words: str) -> Any:
        return json.loads(self.sovctl(*words, "--json").stdout)

    @property
    def _install(self) -> tuple[str, ...]:
        bundle = str(self.bundle.path)
        return ("install", bundle, "--trust", self.bundle.fingerprint, "--site", str(self.file))

    def install(self, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.sovctl(*self._install, "--json", **options)

    def begin(self, operator: str = "alice") -> Attempt:
        """Start to install, and go on with the test. Another operator has another controller."""
        home = self.home if operator == "alice" else self.folder / operator
        artifacts = home / "sites/lab/ansible/artifacts"
        text = self.folder / f"{operator}-{time.monotonic_ns()}.txt"
        named = {**self.environment, "SOVCTL_HOME": str(home), "SUDO_USER": operator}
        with text.open("wb") as output:
            process = self.lab.controller.popen(
                # A test run in the background ignores ^C, and so would all that it starts.
                ["env", "--default-signal=INT", *self.argv(*self._install)],
                env=named, stdout=output, stderr=output,
            )  # fmt: skip
        return Attempt(process, text, artifacts, frozenset(artifacts.glob("*/stdout")))

    @property
    def endpoint(self) -> dict[str, str]:
        content: dict[str, str] = json.loads(
            (self.home / "sites/lab/endpoint.json").read_text(encoding="utf-8")
        )
        return content

    def openai(self, model: str, times: int = 1) -> None:
        """Ask as an application does: with the official client, over TLS, with a key."""
        at = self.endpoint
        command = [sys.executable, "-c", _ASK, at["url"], at["ca"], at["operator_key"], model]
        self.lab.controller.run([*command, str(times)], timeout=180)

    def await_replicas(self, wanted: int, adapter: str = "", seconds: float = 300) -> None:
        """Until so many replicas answer, each with the adapter."""
        deadline = time.monotonic() + seconds
        while True:
            done = self.sovctl("status", "--json", check=False)
            status = json.loads(done.stdout) if done.returncode == 0 else {}
            replicas = [r for r in status.get("serve", {}).get("replicas", ()) if r["ready"]]
            if sum(adapter in json.dumps(each["adapters"]) for each in replicas) >= wanted:
                return
            assert time.monotonic() < deadline, done.stdout + done.stderr
            time.sleep(2)
