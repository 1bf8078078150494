"""Data sets, jobs, adapters and the commands that use them, through the running gateway.

Ray's jobs are a table the test writes (``ScriptedJobs``); the registry, the ledger, the run folders
and ``sovctl`` are real.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openai
import pytest
from gateway_stand import Stand, stand
from small_bundle import Supplier

from appliance.egress.probe import ProbeResult
from appliance.manifests.tuning import TuningSpec
from appliance.registry import Model
from appliance.tuning import adapters
from appliance.tuning.card import Figures, Training, describe
from appliance.tuning.run import Resolved, Run, RunFolder, line

SPEC = {"name": "icd10", "base": "base", "dataset": "rows", "steps": 4, "warmup_steps": 1}
SOVCTL = Path(sys.executable).with_name("sovctl")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Stand]:
    with stand(tmp_path / "home") as found:
        found.registry.models.replace("r-1", [Model("base", "sha256:" + "b" * 64, "r-1")])
        yield found


def sovctl(running: Stand, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SOVCTL_HOME": str(running.home.root), "LANGUAGE": "en"}
    command = [SOVCTL, *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=60, **more
    )


def rows(folder: Path) -> Path:
    """A data set of 200 rows; some 5 % of them will be held out."""
    path = folder / "rows.jsonl"
    content = [{"prompt": f"row {n}", "completion": f" {n * 7}"} for n in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def import_rows(running: Stand, folder: Path) -> None:
    done = sovctl(running, "data", "import", str(rows(folder)), "--name", "rows")
    assert done.returncode == 0, done.stderr


def end(running: Stand, state: str) -> RunFolder:
    """Let the newest job end as a real one would."""
    submission = list(running.jobs.states)[-1]
    folder = RunFolder(running.jobs.folders[submission])
    folder.report(line("train", 4, 4, loss=1.5, eta_seconds=0.0))
    folder.report(line("done", 4, 4))
    running.jobs.states[submission] = state
    return folder


def settled(running: Stand, job: str) -> dict[str, Any]:
    with running.client("operator") as client:
        for _turn in range(600):
            found: dict[str, Any] = client.get(f"/admin/v1/jobs/{job}").json()
            if found["finished"]:
                return found
            time.sleep(0.1)
    raise AssertionError("the job did not end")


def test_data_is_imported_through_the_staging_folder(running: Stand, tmp_path: Path) -> None:
    import_rows(running, tmp_path)
    shown = json.loads(sovctl(running, "data", "show", "rows", "--json").stdout)
    assert 150 < shown["rows"] < 200
    assert not list((running.home.datasets / "staging").iterdir()), "nothing stays staged"
    (entry,) = running.ledger("dataset.import")
    assert entry["subject"]["digest"] == shown["digest"]

    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": 1}\n')
    refused = sovctl(running, "data", "import", str(bad), "--name", "bad")
    assert refused.returncode == 2
    assert "dataset" in refused.stderr and "Traceback" not in refused.stderr
    missing = sovctl(running, "data", "import", str(tmp_path / "none"), "--name", "none")
    assert missing.returncode == 2


@pytest.mark.parametrize(
    "path", ["../../secrets/operator.key", "../../x", "/etc/passwd", ".", "link"]
)
def test_only_what_is_staged_can_be_imported(running: Stand, path: str) -> None:
    staging = running.home.datasets / "staging"
    staging.mkdir(parents=True)
    (staging / "link").symlink_to(running.home.secrets / "operator.key")
    with running.client("operator") as client:
        answer = client.post("/admin/v1/datasets", json={"name": "x", "path": path})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "request-malformed"


def test_an_adapter_from_another_site_is_registered_here(running: Stand, tmp_path: Path) -> None:
    made = adapter_files(tmp_path / "made")
    adapters.ensure_signing_key(running.home)
    supplier = Supplier.at(tmp_path / "supplier")
    bundle = supplier.addition("icd10", "adapter", made)
    assert "trust-not-pinned" in sovctl(running, "adapters", "import", str(bundle)).stderr
    assert sovctl(running, "trust", "pin", supplier.fingerprint).returncode == 0
    assert "bundle-without-runtime" in sovctl(running, "plan", str(bundle)).stderr
    for _twice in range(2):
        done = sovctl(running, "adapters", "import", str(bundle), "--json")
        assert done.returncode == 0, done.stderr
        (record,) = json.loads(done.stdout)
        assert (record["name"], record["status"]) == ("icd10", "evaluated")
    assert adapters.promote(running.home, running.registry, "icd10").status.value == "promoted"
    entry = running.ledger("adapter.register")[0]
    assert entry["subject"]["release"].startswith("addition-icd10-1-")

    rows_only = supplier.addition("mine", "dataset", made)
    assert "nothing-to-import" in sovctl(running, "adapters", "import", str(rows_only)).stderr
    misnamed = supplier.addition("other", "adapter", made)
    refused = sovctl(running, "adapters", "import", str(misnamed))
    assert (refused.returncode, "adapter-refused" in refused.stderr) == (3, True)


def adapter_files(folder: Path) -> Path:
    """An adapter as a tuning run leaves it, without having been trained."""
    digest = "sha256:" + "b" * 64
    run = Run(
        spec=TuningSpec.model_validate(SPEC),
        base=Resolved(name="base", path=folder, digest=digest),
        dataset=Resolved(name="rows", path=folder, digest=digest),
        threads=1,
    )
    training = Training(
        rows_trained_on=1, rows_left_out=0, precision="float32", device="cpu", threads=1,
        no_way_out=True,
    )  # fmt: skip
    figures = Figures(rows=1, loss=1.0)
    folder.mkdir()
    card = describe(run, training, figures, figures, datetime(2026, 11, 24, tzinfo=UTC))
    (folder / "card.json").write_bytes(card.to_bytes())
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def test_a_job_from_submission_to_a_served_adapter(running: Stand, tmp_path: Path) -> None:
    import_rows(running, tmp_path)
    spec = tmp_path / "tuning.yaml"
    spec.write_text("".join(f"{name}: {value}\n" for name, value in SPEC.items()))
    environment = {**os.environ, "SOVCTL_HOME": str(running.home.root)}
    command = [SOVCTL, "tune", "submit", str(spec), "--follow"]
    follow = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _turn in range(1200):
        if running.jobs.states:
            break
        time.sleep(0.05)
    folder = end(running, "SUCCEEDED")
    out, told = follow.communicate(timeout=120)
    assert follow.returncode == 0, told
    assert "icd10" in out
    assert "loss 1.500" in told
    assert folder.load().base.digest == "sha256:" + "b" * 64

    for verb in ("promote", "load"):
        done = sovctl(running, "adapters", verb, "icd10")
        assert done.returncode == 0, done.stderr
    assert running.serve.loaded == {"icd10": str(folder.result)}
    listed = json.loads(sovctl(running, "adapters", "list", "--json").stdout)
    assert [(each["name"], each["loaded"]) for each in listed] == [("icd10", True)]
    assert sovctl(running, "adapters", "retire", "icd10").returncode == 0
    assert running.serve.loaded == {}, "retired means no longer served"
    actions = ("tune.submit", "tune.finish", "adapter.register", "adapter.promote", "adapter.load")
    assert all(running.ledger(action) for action in actions)

    again = sovctl(running, "tune", "submit", str(spec), "--detach")
    assert again.returncode == 2
    assert "name-taken" in again.stderr


def test_a_failed_job_says_why_wherever_it_is_asked(running: Stand, tmp_path: Path) -> None:
    import_rows(running, tmp_path)
    with running.client("operator") as client:
        job = client.post("/admin/v1/jobs", json=SPEC).json()
        folder = RunFolder(next(iter(running.jobs.folders.values())))
        from appliance.errors import TuneLossNotFinite

        folder.fail(TuneLossNotFinite(step=3, loss="nan", learning_rate=0.1))
        end(running, "FAILED")
        found = settled(running, job["id"])
    assert found["status"] == "failed"
    assert found["error"]["code"] == "tune-loss-not-finite"
    shown = sovctl(running, "tune", "logs", "--follow", job["id"])
    assert shown.returncode == 7
    assert "the loss is nan" in shown.stderr


def test_a_job_that_is_cancelled_first_saves_its_step(running: Stand, tmp_path: Path) -> None:
    import_rows(running, tmp_path)
    with running.client("operator") as client:
        job = client.post("/admin/v1/jobs", json=SPEC).json()
        second = client.post("/admin/v1/jobs", json=SPEC)
        assert second.json()["error"]["code"] == "run-in-progress"
        for _turn in range(600):
            if client.get(f"/admin/v1/jobs/{job['id']}").json()["status"] == "running":
                break
            time.sleep(0.1)
        client.post(f"/admin/v1/jobs/{job['id']}/cancel")
        folder = RunFolder(next(iter(running.jobs.folders.values())))
        assert folder.stop.exists()
        assert running.jobs.cancelled == [], "Ray is not told to kill it at once"
        end(running, "FAILED")
        assert settled(running, job["id"])["status"] == "cancelled"


def test_jobs_are_watched_by_the_next_gateway_too(tmp_path: Path) -> None:
    """A gateway that starts finds the job of its predecessor and registers what it made."""
    with stand(tmp_path / "home") as running:
        running.registry.models.replace("r-1", [Model("base", "sha256:" + "b" * 64, "r-1")])
        import_rows(running, tmp_path)
        with running.client("operator") as client:
            job = client.post("/admin/v1/jobs", json=SPEC).json()
        with running.successor():
            end(running, "SUCCEEDED")
            assert settled(running, job["id"])["status"] == "succeeded"
            assert running.registry.adapters.get("icd10").job_id == job["id"]


def test_openais_fine_tuning_api(running: Stand, tmp_path: Path) -> None:
    import httpx

    import_rows(running, tmp_path)
    client = openai.OpenAI(
        base_url=f"{running.url}/v1",
        api_key=running.keys["tuner"],
        http_client=httpx.Client(verify=running.trusted, trust_env=False),
    )
    with client:
        (file,) = client.files.list().data
        job = client.fine_tuning.jobs.create(
            model="base", training_file=file.id, suffix="icd10", hyperparameters={"n_epochs": 1}
        )
        assert client.fine_tuning.jobs.retrieve(job.id).status in ("queued", "running")
        end(running, "SUCCEEDED")
        settled(running, job.id)
        done = client.fine_tuning.jobs.retrieve(job.id)
        assert done.fine_tuned_model == "base:icd10"
        events = client.fine_tuning.jobs.list_events(job.id)
        assert [event.data["step"] for event in events if event.type == "metrics"] == [4]
        assert [each.id for each in client.fine_tuning.jobs.list()] == [job.id]
        with pytest.raises(openai.BadRequestError):
            client.fine_tuning.jobs.create(
                model="base", training_file=file.id, hyperparameters={"n_epochs": 10**9}
            )
        with pytest.raises(openai.NotFoundError):
            client.fine_tuning.jobs.retrieve("ftjob-none")


def _probes(outcome: Any) -> list[ProbeResult]:
    return [
        ProbeResult("control-tcp", "127.0.0.1:1", "control-ok", "connected"),
        ProbeResult("tcp", "192.0.2.1", outcome, "?"),
    ]


def test_the_proof_gathers_every_place_and_is_never_better_than_the_worst(tmp_path: Path) -> None:
    places = {"gateway": lambda: _probes("blocked"), "ray-task": lambda: _probes("reached")}
    with (
        stand(tmp_path / "home", change=lambda b: replace(b, probes=places)) as running,
        running.client("operator") as client,
    ):
        verdict = client.post("/admin/v1/egress/prove", json={}).json()
        assert verdict["answer"] == "open"
        answers = {place["name"]: place["answer"] for place in verdict["places"]}
        assert answers["gateway"] == "closed"
        # The stand-in's Serve has no probe: a place that cannot be asked proves nothing.
        assert answers["serve-replica"] == "inconclusive"
        assert running.ledger("egress.prove")[0]["outcome"] == "failed"


def test_commands_a_person_types(running: Stand) -> None:
    made = json.loads(sovctl(running, "keys", "create", "ward-3", "--json").stdout)
    assert made["key"].startswith("sov-")
    assert "ward-3" in sovctl(running, "keys", "list").stdout
    assert sovctl(running, "keys", "revoke", made["id"]).returncode == 0
    assert sovctl(running, "keys", "revoke", "nothing").returncode == 5
    said = sovctl(running, "chat", "base", "-m", "hello")
    assert said.stdout == "é0 é1 é2 é3 é4 \n"
    piped = sovctl(running, "chat", "base", "--json", input="hello")
    assert json.loads(piped.stdout)["usage"]["completion_tokens"] == 5
    refused = sovctl(running, "chat", "nobody", "-m", "hello")
    assert refused.returncode == 5
    assert "sovctl models list" in refused.stderr
    models = json.loads(sovctl(running, "models", "list", "--json").stdout)
    assert [(each["name"], each["served"]) for each in models] == [("base", True)]
    assert sovctl(running, "adapters", "show", "nothing").returncode == 5


def test_what_does_not_run_says_how_to_start_it(running: Stand) -> None:
    (running.home.run / "supervisor.json").write_text('{"endpoint": "https://127.0.0.1:1"}')
    done = sovctl(running, "chat", "base", "-m", "hello")
    assert done.returncode == 7
    assert "sovctl start" in done.stderr
    assert "Traceback" not in done.stderr
