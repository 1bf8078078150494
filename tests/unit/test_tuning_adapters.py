"""Registered adapters: signed, verified in full, refused for anything that is not as it was."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.errors import (
    AdapterKeyUnusable,
    AdapterRefused,
    AdapterRunIncomplete,
    NameTaken,
    RecordMissing,
    TransitionRefused,
    TrustStateDamaged,
)
from appliance.layout import Home
from appliance.manifests.tuning import TuningSpec
from appliance.registry import AdapterStatus, Registry
from appliance.trust.model_signature import key_id_of_pem
from appliance.trust.revocations import Revocation, Revocations
from appliance.tuning import adapters
from appliance.tuning.adapters import Purpose
from appliance.tuning.card import AdapterCard, Code, Figures, Named, Training, describe
from appliance.tuning.files import folder_files, write_atomically
from appliance.tuning.run import Resolved, Result, Run, RunFolder

BASE = "sha256:" + "ab" * 32
OTHER = "sha256:" + "cd" * 32
NOW = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)
SPEC = TuningSpec(name="icd10", base="tiny", dataset="dx", steps=10)
TRAINING = Training(
    rows_trained_on=64,
    rows_left_out=1,
    precision="float32",
    device="cpu",
    threads=1,
    no_way_out=True,
)
BEFORE = Figures(rows=8, loss=7.5, chapter_accuracy=0.0, category_accuracy=0.0)
AFTER = Figures(rows=8, loss=1.25, chapter_accuracy=0.5, category_accuracy=0.125)


def finished_run(root: Path, weights: bytes = b"weights") -> Path:
    """What a job leaves behind, without having trained."""
    run = Run(
        spec=SPEC,
        base=Resolved(name="tiny", path=root / "model", digest=BASE),
        dataset=Resolved(name="dx", path=root / "data", digest=OTHER),
        threads=1,
    )
    folder = RunFolder(root)
    folder.create(run)
    folder.result.mkdir()
    (folder.result / "adapter_model.safetensors").write_bytes(weights)
    (folder.result / "adapter_config.json").write_text("{}")
    card = describe(run, TRAINING, BEFORE, AFTER, NOW)
    (folder.result / "card.json").write_bytes(card.to_bytes())
    result = Result(run=run.digest(), files=folder_files(folder.result))
    write_atomically(folder.result_file, result.model_dump_json().encode())
    return root


@dataclass
class Site:
    home: Home
    registry: Registry

    def verify(self, base: str = BASE, purpose: Purpose = Purpose.SERVE) -> Path:
        return adapters.verify(self.home, self.registry, "icd10", base, purpose)


@pytest.fixture
def site(tmp_path: Path):
    home = Home(tmp_path / "home")
    adapters.ensure_signing_key(home)
    with Registry.open(home) as registry:
        yield Site(home, registry)


@pytest.fixture
def promoted(site: Site, tmp_path: Path) -> Site:
    adapters.register(site.home, site.registry, finished_run(tmp_path / "run"))
    adapters.promote(site.home, site.registry, "icd10")
    return site


def test_the_key_is_made_once_and_private(site: Site) -> None:
    key = site.home.secrets / "adapter-signing.key"
    content = key.read_bytes()
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.parent.stat().st_mode & 0o777 == 0o700
    public = adapters.ensure_signing_key(site.home)
    assert key.read_bytes() == content
    assert b"PUBLIC KEY" in public.read_bytes()
    key.write_text("damaged")
    with pytest.raises(AdapterKeyUnusable):
        adapters.ensure_signing_key(site.home)


def test_register_promote_verify(promoted: Site) -> None:
    folder = promoted.verify()
    assert sorted(p.name for p in folder.iterdir()) == [
        "adapter.oms.json",
        "adapter_config.json",
        "adapter_model.safetensors",
        "card.json",
    ]
    record = promoted.registry.adapters.get("icd10")
    assert (record.base_digest, record.dataset_digest) == (BASE, OTHER)
    assert record.path == str(folder)
    assert record.created == NOW


def test_registering_twice_changes_nothing(promoted: Site, tmp_path: Path) -> None:
    signature = (promoted.verify() / "adapter.oms.json").read_bytes()
    again = adapters.register(promoted.home, promoted.registry, tmp_path / "run")
    assert again.status is AdapterStatus.PROMOTED
    assert (promoted.verify() / "adapter.oms.json").read_bytes() == signature


def test_a_name_stands_for_one_adapter(promoted: Site, tmp_path: Path) -> None:
    other = finished_run(tmp_path / "other", weights=b"other weights")
    with pytest.raises(NameTaken):
        adapters.register(promoted.home, promoted.registry, other)


def test_evaluated_is_for_preview_only(site: Site, tmp_path: Path) -> None:
    adapters.register(site.home, site.registry, finished_run(tmp_path / "run"))
    with pytest.raises(AdapterRefused, match="adapter-refused"):
        site.verify()
    assert site.verify(purpose=Purpose.PREVIEW).is_dir()


@pytest.mark.parametrize("status", [AdapterStatus.RETIRED, AdapterStatus.REVOKED])
def test_out_of_service_is_refused(promoted: Site, status: AdapterStatus) -> None:
    promoted.registry.adapters.set_status("icd10", status)
    for purpose in Purpose:
        with pytest.raises(AdapterRefused) as caught:
            promoted.verify(purpose=purpose)
        assert status.value in caught.value.values["reason"]


def test_retired_may_come_back_and_revoked_not(promoted: Site) -> None:
    adapters.retire(promoted.home, promoted.registry, "icd10")
    adapters.promote(promoted.home, promoted.registry, "icd10")
    assert promoted.verify().is_dir()
    promoted.registry.adapters.set_status("icd10", AdapterStatus.REVOKED)
    with pytest.raises(TransitionRefused):
        adapters.promote(promoted.home, promoted.registry, "icd10")


def test_another_base_is_refused(promoted: Site) -> None:
    with pytest.raises(AdapterRefused) as caught:
        promoted.verify(base=OTHER)
    assert "another base" in caught.value.values["reason"]


@pytest.mark.parametrize("what", ["adapter", "weights", "base", "key"])
def test_what_a_supplier_took_back_is_refused(promoted: Site, what: str) -> None:
    """By what any bundle said that this site has seen; a list that cannot be read says no too."""
    record = promoted.registry.adapters.get("icd10")
    weights = folder_files(Path(record.path))["adapter_model.safetensors"]
    key = key_id_of_pem(adapters.public_key(promoted.home).read_bytes())
    identity = {"adapter": record.digest, "weights": weights, "base": BASE, "key": key}[what]
    kind = "key" if what == "key" else "content"
    entry = Revocation(kind=kind, id=identity, reason="it leaks", at="2026-11-24T03:00:00Z")
    seen = promoted.home.trust / "bundles" / "hospital"
    seen.mkdir(parents=True)
    (seen / "revocations.json").write_bytes(Revocations().adding(entry).canonical())
    with pytest.raises(AdapterRefused, match="adapter-refused") as caught:
        promoted.verify()
    assert "it leaks" in caught.value.sentences()[1]
    (seen / "revocations.json").write_bytes(b"{")
    with pytest.raises(TrustStateDamaged):
        promoted.verify()


def test_an_unknown_name_is_refused(site: Site) -> None:
    with pytest.raises(RecordMissing):
        site.verify()


def test_any_changed_byte_is_refused(promoted: Site) -> None:
    folder = promoted.verify()
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for place in range(0, len(content), max(1, len(content) // 40)):
            changed = bytearray(content)
            changed[place] ^= 0x01
            path.write_bytes(changed)
            if path.name == "adapter.oms.json" and _same_meaning(content, bytes(changed)):
                continue
            with pytest.raises(AdapterRefused):
                promoted.verify()
        path.write_bytes(content)
    assert promoted.verify() == folder


def _same_meaning(one: bytes, two: bytes) -> bool:
    """Whether two signature files differ only in what carries no trust (the key's hint)."""
    try:
        first, second = json.loads(one), json.loads(two)
    except ValueError:
        return False
    for bundle in (first, second):
        bundle.pop("verificationMaterial", None)
        bundle.get("dsseEnvelope", {"signatures": [{}]}).get("signatures", [{}])[0].pop("keyid", 0)
    return first == second


@pytest.mark.parametrize("kind", ["extra", "missing", "link", "folder", "unsigned", "gone"])
def test_other_than_exactly_its_files_is_refused(promoted: Site, kind: str, tmp_path: Path) -> None:
    folder = promoted.verify()
    weights = folder / "adapter_model.safetensors"
    if kind == "extra":
        (folder / "modeling_evil.py").write_text("import os")
    elif kind == "missing":
        weights.unlink()
    elif kind == "link":
        weights.rename(tmp_path / "elsewhere")
        weights.symlink_to(tmp_path / "elsewhere")
    elif kind == "folder":
        (folder / "sub").mkdir()
    elif kind == "unsigned":
        (folder / "adapter.oms.json").unlink()
    else:
        shutil.rmtree(folder)
    with pytest.raises(AdapterRefused):
        promoted.verify()


def test_a_signature_by_another_key_is_refused(promoted: Site) -> None:
    key = promoted.home.secrets / "adapter-signing.key"
    key.unlink()
    adapters.ensure_signing_key(promoted.home)
    with pytest.raises(AdapterRefused) as caught:
        promoted.verify()
    assert "signature" in caught.value.values["reason"]


def test_a_registry_row_cannot_lend_another_adapters_files(promoted: Site, tmp_path: Path) -> None:
    """Somebody who can write the registry points a name at files signed for another."""
    record = promoted.registry.adapters.get("icd10")
    with Registry.open(Home(tmp_path / "second")) as registry:
        registry.adapters.add(replace(record, name="cleared"))
        with pytest.raises(AdapterRefused) as caught:
            adapters.verify(promoted.home, registry, "cleared", BASE)
    assert "another adapter" in caught.value.values["reason"]


@pytest.mark.parametrize("kind", ["no result", "changed", "no card", "other run"])
def test_an_unfinished_run_is_not_registered(site: Site, tmp_path: Path, kind: str) -> None:
    run = finished_run(tmp_path / "run")
    if kind == "no result":
        (run / "result.json").unlink()
    elif kind == "changed":
        (run / "result" / "adapter_model.safetensors").write_bytes(b"x")
    elif kind == "no card":
        (run / "result" / "card.json").unlink()
    else:
        spec = json.loads((run / "spec.json").read_bytes())
        spec["spec"]["seed"] = 99
        (run / "spec.json").write_text(json.dumps(spec))
    with pytest.raises(AdapterRunIncomplete):
        adapters.register(site.home, site.registry, run)
    assert site.registry.adapters.list() == []


def test_the_card_has_one_form() -> None:
    card = AdapterCard(
        name="icd10",
        base=Named(name="tiny", digest=BASE),
        dataset=Named(name="dx", digest=OTHER),
        code=Code(version="0.1.0", digest=BASE),
        config=SPEC,
        config_digest=OTHER,
        seed=1,
        training=TRAINING,
        before=BEFORE,
        after=AFTER,
        libraries={"python": "3.11.7", "torch": "2.13.0"},
        created=NOW,
    )
    golden = Path(__file__).parent / "golden" / "adapter-card.json"
    assert card.to_bytes() == golden.read_bytes()
    assert AdapterCard.model_validate_json(golden.read_bytes()) == card
