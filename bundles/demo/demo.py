"""The whole job on this machine, narrated: build, install sealed, chat, tune, prove, audit.

Run by ``make demo``. Everything it does is a ``sovctl`` command you could type, or the official
``openai`` client; each command is printed before it runs. Nothing here is mocked.

State goes to ``.demo/`` in the checkout (keys, bundle, appliance), downloads to
``~/.cache/sovctl``.
The appliance is left running, unless ``CI=true``. Figures are also written to
``.demo/summary.json``.
"""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openai import OpenAI

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
SOVCTL = Path(sys.executable).with_name("sovctl")
BASE = "smollm2-135m-instruct"
ADAPTER = "icd10"
QUESTIONS = 5


@dataclass
class Demo:
    """One run: where its files are, and what was measured."""

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    step_number: int = 0

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SOVCTL_HOME": str(self.folder / "appliance")}

    @contextmanager
    def step(self, name: str, title: str) -> Iterator[None]:
        """Print a heading, time what follows, and keep the time under ``name``."""
        self.step_number += 1
        print(f"\n━━ {self.step_number}. {title}", flush=True)
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)
        print(f"   ({self.seconds[name]} s)", flush=True)

    def run(self, *arguments: str) -> None:
        """Run ``sovctl`` as an operator would, its output on this terminal; stop if it fails."""
        self._show(arguments)
        done = subprocess.run([SOVCTL, *arguments], env=self.environment, cwd=CHECKOUT, check=False)
        if done.returncode:
            sys.exit(f"\n'sovctl {arguments[0]}' ended with status {done.returncode}; see above.")

    def ask(self, *arguments: str) -> Any:
        """Run ``sovctl … --json`` and return what it answered."""
        self._show(arguments)
        done = subprocess.run(
            [SOVCTL, *arguments, "--json"],
            env=self.environment,
            cwd=CHECKOUT,
            check=False,
            stdout=subprocess.PIPE,
        )
        if done.returncode:
            sys.exit(f"\n'sovctl {arguments[0]}' ended with status {done.returncode}; see above.")
        return json.loads(done.stdout)

    def _show(self, arguments: tuple[str, ...]) -> None:
        words = [f"'{word}'" if " " in word else word for word in arguments]
        text = " ".join(["sovctl", *words]).replace(f"{CHECKOUT}/", "").replace("\n", "\\n")
        print(f"   $ {text}", flush=True)


def main() -> None:
    """Do the whole job; exit non-zero at the first step that fails."""
    demo = Demo(Path(os.environ.get("SOVCTL_DEMO", CHECKOUT / ".demo")))
    demo.folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    print(__doc__.splitlines()[0])
    fingerprint = make_keys(demo)
    bundle = build(demo)
    install(demo, bundle, fingerprint)
    chat(demo)
    tune(demo)
    side_by_side(demo)
    prove(demo)
    demo.seconds["total"] = round(time.monotonic() - began, 1)
    summarise(demo)
    if os.environ.get("CI") == "true":
        with demo.step("uninstall", "CI=true: removing the appliance again"):
            demo.run("uninstall", "--yes")


def make_keys(demo: Demo) -> str:
    """A 2-of-3 root and release keys: demo keys, without a passphrase, and labelled so."""
    keys = demo.folder / "keys"
    with demo.step(
        "trust", "A 2-of-3 root of trust (demo keys: no passphrase, never for real use)"
    ):
        if not keys.exists():
            demo.run("trust", "init", "--demo", "--out", str(keys))
        shown = demo.ask("trust", "show", "--keys", str(keys))
        print(f"   fingerprint to pin: {shown['fingerprint']}")
    fingerprint: str = shown["fingerprint"]
    return fingerprint


def build(demo: Demo) -> Path:
    """One signed file: model, runtime, data set, SBOM, licences."""
    bundle = demo.folder / "bundle.tar"
    with demo.step(
        "build", "Build the bundle: model, runtime wheelhouse, data set, SBOM, signatures"
    ):
        demo.run(
            "bundle", "build", str(HERE / "bundle.yaml"),
            "--keys", str(demo.folder / "keys"), "--out", str(bundle),
        )  # fmt: skip
        demo.run("bundle", "inspect", str(bundle))
    demo.figures["bundle_bytes"] = bundle.stat().st_size
    return bundle


def install(demo: Demo, bundle: Path, fingerprint: str) -> None:
    """Verify while loading, install offline, seal, start, wait until healthy; then again."""
    with demo.step(
        "install", "Install: verified in one read, offline, sealed, with a real Ray cluster"
    ):
        demo.run("install", str(bundle), "--trust", fingerprint)
    with demo.step(
        "install_again", "Install the same bundle again: everything is there, by digest"
    ):
        demo.run("install", str(bundle))


def chat(demo: Demo) -> None:
    """Ask the served model, with sovctl and with the official client."""
    with demo.step("chat", "Ask the model: sovctl, and the official openai client, streamed"):
        demo.run("chat", BASE, "-m", "What is the capital of France? Answer in one sentence.")
        key = demo.ask("keys", "create", f"demo-{int(time.time())}", "--role", "user")["key"]
        key_file = demo.folder / "api-key"
        key_file.touch(mode=0o600)
        key_file.write_text(key)
        asking = client(demo)
        print("   >>> client.chat.completions.create(model=…, stream=True)\n   ", end="")
        pieces = 0
        for chunk in asking.chat.completions.create(
            model=BASE,
            messages=[{"role": "user", "content": "Name three fruits."}],
            max_tokens=48,
            temperature=0,
            stream=True,
        ):
            text = (chunk.choices[0].delta.content or "") if chunk.choices else ""
            pieces += bool(text)
            print(text.replace("\n", "\n   "), end="", flush=True)
        print()
        if not pieces:
            sys.exit("The openai client got no text.")
        demo.figures["streamed_pieces"] = pieces


def client(demo: Demo) -> OpenAI:
    """The official client, trusting the appliance's own CA and nothing else."""
    import httpx
    from openai import OpenAI

    trusted = ssl.create_default_context(cafile=demo.folder / "appliance" / "tls" / "ca.pem")
    return OpenAI(
        base_url=f"{demo.ask('status')['endpoint']}/v1",
        api_key=(demo.folder / "api-key").read_text(),
        http_client=httpx.Client(verify=trusted, trust_env=False),
    )


def tune(demo: Demo) -> None:
    """LoRA on ICD-10-CM as a Ray job: live loss, evaluation before and after, a signed adapter."""
    with demo.step("tune", "Fine-tune on ICD-10-CM as a Ray job, and evaluate on held-out rows"):
        demo.run("tune", "submit", str(HERE / "tuning.yaml"), "--follow")
        adapter = demo.ask("adapters", "show", ADAPTER)
        demo.figures["adapter"] = adapter
    with demo.step("promote", "Promote the signed adapter, and load it without a restart"):
        demo.run("adapters", "promote", ADAPTER)
        demo.run("adapters", "load", ADAPTER)


def side_by_side(demo: Demo) -> None:
    """Held-out rows at even distances, chosen by nobody, asked of base and adapter.

    The rows are in the order of their letters, so these are of several chapters.
    """
    data = demo.folder / "appliance" / "current" / "datasets" / "icd10cm" / "heldout.jsonl"
    heldout = data.read_text().splitlines()
    rows = [json.loads(row) for row in heldout[:: len(heldout) // QUESTIONS][:QUESTIONS]]
    with demo.step("compare", f"The same {QUESTIONS} held-out questions to base and adapter"):
        asking = client(demo)

        def answer(model: str, prompt: str) -> str:
            done = asking.completions.create(
                model=model, prompt=prompt, max_tokens=8, temperature=0
            )
            return done.choices[0].text.strip().split("\n")[0]

        demo.figures["answers"] = []
        for row in rows:
            base, tuned = (answer(m, row["prompt"]) for m in (BASE, f"{BASE}:{ADAPTER}"))
            right = row["completion"].strip()
            print(f"   {row['prompt'].splitlines()[0]}")
            print(f"      right {right}   adapter {tuned or '-':6} base {base or '-'}")
            demo.figures["answers"].append({"right": right, "adapter": tuned, "base": base})


def prove(demo: Demo) -> None:
    """Nothing gets out, and everything above is on the ledger."""
    with demo.step(
        "prove", "Prove that nothing gets out: gateway, replica, Ray worker, tuning job"
    ):
        demo.run("egress", "prove")
    with demo.step("audit", "Check the ledger, from its files alone"):
        demo.run("audit", "verify")
        demo.run("audit", "log")


def summarise(demo: Demo) -> None:
    """What was done, figures, and where to look next."""
    status = demo.ask("status")
    figures = {"seconds": demo.seconds, **demo.figures, "status": status}
    (demo.folder / "summary.json").write_text(json.dumps(figures, indent=2) + "\n")
    usage = shutil.disk_usage(demo.folder)
    print("\n━━ Summary")
    for name, seconds in demo.seconds.items():
        print(f"   {name:14} {seconds:8.1f} s")
    print(f"   {'bundle':14} {demo.figures['bundle_bytes'] / 1e6:8.1f} MB")
    home = demo.folder / "appliance"
    print(f"""
   API             {status["endpoint"]}/v1
     key           {demo.folder / "api-key"}
     CA            {home / "tls/ca.pem"}
   Ray dashboard   {status["endpoint"]}/ray/
     log in with   {home / "secrets/operator.key"}
   free disk       {usage.free / 1e9:.1f} GB

   Look around:    export SOVCTL_HOME={home}
                   {SOVCTL} status | doctor | logs | audit log
   Stop it:        {SOVCTL} stop
   Remove it:      {SOVCTL} uninstall
""")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. 'make demo' goes on where it stopped.")
