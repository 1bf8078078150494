"""The registry on a real SQLite file: keys, states, migrations, several processes."""

import os
import sqlite3
import traceback
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect

from appliance.errors import (
    NameTaken,
    RecordInvalid,
    RecordMissing,
    RegistryBusy,
    RegistryDamaged,
    RegistryNewer,
    TransitionRefused,
)
from appliance.layout import Home
from appliance.registry import (
    Adapter,
    AdapterStatus,
    Dataset,
    JobStatus,
    Model,
    Registry,
    Role,
    permits,
    store,
)
from appliance.registry.states import adapter_may_become, job_may_become
from appliance.registry.tables import HEAD, Base

NOW = datetime(2026, 11, 24, tzinfo=UTC)
DATASET = Dataset("icd10", "sha256:aa", "datasets/aa", 5936, "prompt-completion", NOW, "key:1")
ADAPTER = Adapter(
    name="icd10-r16",
    base="smollm2",
    base_digest="sha256:bb",
    dataset_digest="sha256:aa",
    job_id=None,
    digest="sha256:cc",
    path="adapters/cc",
    status=AdapterStatus.EVALUATED,
    card_path="adapters/cc/card.json",
    created=NOW,
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def registry(home: Home):
    with Registry.open(home) as registry:
        yield registry


def test_a_key_is_known_until_it_is_revoked(registry: Registry):
    key, plaintext = registry.api_keys.create("ward-3", Role.USER)
    assert registry.api_keys.authenticate(plaintext) == key
    assert registry.api_keys.list() == [key]
    revoked = registry.api_keys.revoke(key.id)
    assert revoked.revoked is not None
    assert registry.api_keys.revoke(key.id) == revoked
    assert registry.api_keys.authenticate(plaintext) is None
    with pytest.raises(RecordMissing):
        registry.api_keys.revoke("0" * 16)


def test_only_the_very_key_is_known(registry: Registry):
    _one, plaintext = registry.api_keys.create("one", Role.OPERATOR)
    other, _two = registry.api_keys.create("two", Role.USER)
    secret = plaintext.rpartition("-")[2]
    for wrong in (
        "",
        plaintext[:-1],
        plaintext + "0",
        plaintext + "\n",
        plaintext.upper(),
        plaintext[:-1] + ("0" if plaintext[-1] != "0" else "1"),
        f"sov-{other.id}-{secret}",
        f"sov-{'0' * 16}-{secret}",
        "sov-' OR 1=1 --",
        "\ud800",
    ):
        assert registry.api_keys.authenticate(wrong) is None


def test_the_file_does_not_hold_a_secret(registry: Registry, home: Home):
    _key, plaintext = registry.api_keys.create("ward-3", Role.USER)
    registry.close()
    secret = plaintext.rpartition("-")[2]
    for path in home.registry.parent.iterdir():
        whole = path.read_bytes()
        assert secret.encode() not in whole
        assert bytes.fromhex(secret) not in whole
    assert home.registry.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "-x", "name\n", "é"])
def test_a_key_needs_a_plain_name(registry: Registry, name: str):
    with pytest.raises(RecordInvalid):
        registry.api_keys.create(name, Role.USER)


def test_roles_reach_as_far_as_the_architecture_says():
    allowed = {(role, needed) for role, needed in product(Role, Role) if permits(role, needed)}
    assert allowed == {
        (Role.USER, Role.USER),
        (Role.TUNER, Role.USER),
        (Role.TUNER, Role.TUNER),
        (Role.AUDITOR, Role.AUDITOR),
        *((Role.OPERATOR, needed) for needed in Role),
    }


def test_nothing_leads_out_of_an_end():
    for status in JobStatus:
        assert job_may_become(status, status)
    for end, other in product((JobStatus.SUCCEEDED, JobStatus.FAILED), JobStatus):
        assert job_may_become(end, other) == (end is other)
    for other in AdapterStatus:
        assert adapter_may_become(AdapterStatus.REVOKED, other) == (other is AdapterStatus.REVOKED)


def test_a_name_keeps_its_meaning(registry: Registry):
    assert registry.datasets.add(DATASET) == DATASET
    assert registry.datasets.add(DATASET) == DATASET
    with pytest.raises(NameTaken, match="icd10"):
        registry.datasets.add(replace(DATASET, digest="sha256:other"))
    assert registry.datasets.get("icd10") == DATASET
    assert registry.datasets.list() == [DATASET]
    with pytest.raises(RecordMissing):
        registry.datasets.get("none")


def test_models_follow_the_release(registry: Registry):
    registry.models.replace("one", [Model("a", "sha256:1", "one"), Model("b", "sha256:2", "one")])
    registry.models.replace("two", [Model("b", "sha256:3", "two")])
    assert registry.models.list() == [Model("b", "sha256:3", "two")]
    with pytest.raises(RecordMissing):
        registry.models.get("a")


def test_a_job_runs_once(registry: Registry):
    spec = {"base": "smollm2", "lora": {"rank": 16}}
    job = registry.jobs.add(spec=spec, actor="key:1", base="smollm2", dataset="icd10")
    assert (job.status, job.spec, job.started) == (JobStatus.QUEUED, spec, None)
    running = registry.jobs.update(job.id, submission_id="ray-1", status=JobStatus.RUNNING)
    assert running.started is not None
    done = registry.jobs.update(job.id, status=JobStatus.SUCCEEDED, adapter="icd10-r16")
    assert done.finished >= done.started >= done.created
    assert registry.jobs.get(job.id) == done
    with pytest.raises(TransitionRefused, match=job.id):
        registry.jobs.update(job.id, status=JobStatus.RUNNING, error="late")
    assert registry.jobs.get(job.id) == done
    second = registry.jobs.add(spec={}, actor="key:1", base="b", dataset="d")
    assert [each.id for each in registry.jobs.list()] == [second.id, job.id]


def test_an_adapter_is_promoted_retired_and_revoked(registry: Registry):
    assert registry.adapters.add(ADAPTER) == ADAPTER
    assert registry.adapters.add(ADAPTER) == ADAPTER
    for clash in (replace(ADAPTER, digest="sha256:dd"), replace(ADAPTER, name="same-bytes")):
        with pytest.raises(NameTaken):
            registry.adapters.add(clash)
    for status in (AdapterStatus.PROMOTED, AdapterStatus.RETIRED, AdapterStatus.PROMOTED):
        assert registry.adapters.set_status(ADAPTER.name, status).status is status
    registry.adapters.set_status(ADAPTER.name, AdapterStatus.REVOKED)
    with pytest.raises(TransitionRefused):
        registry.adapters.set_status(ADAPTER.name, AdapterStatus.PROMOTED)
    with pytest.raises(RecordMissing):
        registry.adapters.set_status("none", AdapterStatus.PROMOTED)


def test_records_are_values(registry: Registry):
    record = registry.datasets.add(DATASET)
    with pytest.raises(FrozenInstanceError):
        record.name = "x"
    assert record.as_json()["created"] == "2026-11-24T00:00:00Z"


def test_migrations_build_the_tables_the_code_uses(registry: Registry, home: Home, tmp_path: Path):
    """Column by column: a table changed without a migration fails here."""
    declared = create_engine(f"sqlite:///{tmp_path}/declared.sqlite")
    Base.metadata.create_all(declared)
    migrated, wanted = inspect(create_engine(f"sqlite:///{home.registry}")), inspect(declared)
    assert set(migrated.get_table_names()) == {*wanted.get_table_names(), "alembic_version"}
    for table in wanted.get_table_names():
        for of in ("get_columns", "get_indexes", "get_foreign_keys", "get_unique_constraints"):
            left, right = (
                sorted(map(str, getattr(side, of)(table))) for side in (migrated, wanted)
            )
            assert left == right, (table, of)
        assert migrated.get_pk_constraint(table) == wanted.get_pk_constraint(table)


def test_opening_again_keeps_what_is_there(registry: Registry, home: Home):
    registry.datasets.add(DATASET)
    with Registry.open(home) as again:
        assert again.datasets.list() == [DATASET]


def test_what_cannot_be_opened_says_why(home: Home, monkeypatch: pytest.MonkeyPatch):
    Registry.open(home).close()
    raw = sqlite3.connect(home.registry)
    raw.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(store, "_BUSY_TIMEOUT_S", 0.05)
    with Registry.open(home) as registry, pytest.raises(RegistryBusy):
        registry.api_keys.create("x", Role.USER)
    raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.commit()
    raw.close()
    with pytest.raises(RegistryNewer, match="newer"):
        Registry.open(home)
    home.registry.write_bytes(b"not a database" * 100)
    with pytest.raises(RegistryDamaged):
        Registry.open(home)


def test_processes_open_an_empty_registry_and_write_together(home: Home):
    """Four at once: one migrates, none loses a row."""
    home.root.mkdir(parents=True)
    start, go = os.pipe()
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            try:
                os.close(go)
                os.read(start, 1)
                with Registry.open(home) as registry:
                    job = registry.jobs.add(spec={}, actor="key:1", base="b", dataset="d")
                    for n in range(10):
                        registry.api_keys.create(f"p{number}-{n}", Role.USER)
                        registry.jobs.update(job.id, error=str(n))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(70)
        children.append(child)
    os.close(go)  # wakes all four
    os.close(start)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    with Registry.open(home) as registry:
        assert len(registry.api_keys.list()) == 40
        assert [job.error for job in registry.jobs.list()] == ["9"] * 4


def test_the_newest_migration_is_the_one_the_code_expects():
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(store.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD
