"""The training loop on a tiny model: resume to the bit, stops, failures, what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tuning_fixtures import make_dataset, make_run

from appliance.errors import (
    ApplianceError,
    DiskFull,
    TuneInputChanged,
    TuneLossNotFinite,
    TuneNoRows,
    TuneOutOfMemory,
    TuneRunInvalid,
    TuneStopped,
    TuneTemplateUnfit,
)
from appliance.tuning.encode import TemplateUnfit, encode
from appliance.tuning.evaluate import same_category, same_chapter
from appliance.tuning.failures import explained
from appliance.tuning.files import file_digest
from appliance.tuning.job import check_inputs, finish, main
from appliance.tuning.loop import train
from appliance.tuning.model import load_tokenizer
from appliance.tuning.outcome import Outcome
from appliance.tuning.rows import ChatRow, parse
from appliance.tuning.run import ProgressLine, RunFolder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inputs")


class Killed(BaseException):
    """Ends a run the way a signal does: at once, past every handler."""


def killed_at(step: int):
    def report(metrics: dict[str, float]) -> None:
        if metrics["step"] == step:
            raise Killed

    return report


def nothing(_metrics: dict[str, float]) -> None:
    pass


def lines(folder: RunFolder) -> list[ProgressLine]:
    text = folder.progress.read_text().splitlines()
    return [ProgressLine.model_validate_json(line) for line in text]


def adapter(folder: RunFolder) -> str:
    return file_digest(folder.result / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = make_run(tmp_path_factory.mktemp("whole"), inputs)
    train(folder, nothing)
    return folder


def test_a_run_learns_and_tells(uninterrupted: RunFolder) -> None:
    outcome = Outcome.model_validate_json((uninterrupted.result / "outcome.json").read_bytes())
    assert outcome.after.loss < 0.8 * outcome.before.loss
    assert outcome.before.chapter_accuracy is not None
    told = lines(uninterrupted)
    assert [line.step for line in told if line.phase == "train"] == list(range(1, 13))
    assert all(line.eta_seconds is not None for line in told if line.phase == "train")
    phases = list(dict.fromkeys(line.phase for line in told))
    assert phases == ["load", "evaluate-base", "train", "evaluate-adapter", "save"]


@pytest.mark.parametrize("step", [3, 5, 9, 12])
def test_a_killed_run_goes_on_to_the_same_bits(
    step: int, inputs: Path, tmp_path: Path, uninterrupted: RunFolder
) -> None:
    folder = make_run(tmp_path / "run", inputs)
    with pytest.raises(Killed):
        train(folder, killed_at(step))
    before = len(lines(folder))
    train(folder, nothing)
    assert adapter(folder) == adapter(uninterrupted)
    resumed = lines(folder)[before:]
    assert [line.step for line in resumed if line.phase == "train"] == list(
        range(step // 5 * 5 + 1 if step < 12 else 13, 13)
    )
    assert not any(line.phase == "evaluate-base" for line in resumed)


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing"])
def test_a_damaged_checkpoint_is_passed_over(
    damage: str, inputs: Path, tmp_path: Path, uninterrupted: RunFolder
) -> None:
    folder = make_run(tmp_path / "run", inputs)
    with pytest.raises(Killed):
        train(folder, killed_at(11))
    weights = sorted(folder.checkpoints.glob("step-*"))[-1] / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    if damage == "missing":
        weights.unlink()
    else:
        weights.write_bytes(content if damage == "flip" else content[:-8])
    train(folder, nothing)
    assert adapter(folder) == adapter(uninterrupted)


def test_a_checkpoint_of_another_run_is_not_used(inputs: Path, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", inputs)
    with pytest.raises(Killed):
        train(folder, killed_at(6))
    make_run(tmp_path / "run", inputs, seed=2)
    before = len(lines(folder))
    train(folder, nothing)
    assert next(line.step for line in lines(folder)[before:] if line.phase == "train") == 1


def test_asked_to_stop_it_saves_and_stops(
    inputs: Path, tmp_path: Path, uninterrupted: RunFolder
) -> None:
    folder = make_run(tmp_path / "run", inputs)
    folder.stop.touch()
    with pytest.raises(TuneStopped, match="tune-stopped"):
        train(folder, nothing)
    assert lines(folder)[-1].phase == "stopped"
    folder.stop.unlink()
    train(folder, nothing)
    assert adapter(folder) == adapter(uninterrupted)


def test_the_result_names_no_path_of_this_machine(inputs: Path, uninterrupted: RunFolder) -> None:
    text = (uninterrupted.result / "adapter_config.json").read_text()
    assert json.loads(text)["base_model_name_or_path"] == "tiny"
    assert str(inputs) not in text


def test_nan_stops_before_it_is_saved(inputs: Path, tmp_path: Path) -> None:
    folder = make_run(
        tmp_path / "run", inputs, learning_rate=0.1, max_gradient_norm=1000.0, alpha=1024, rank=1
    )
    spec = json.loads(folder.spec.read_bytes())
    assert spec["spec"]["alpha"] == 1024

    def poison(_metrics: dict[str, float]) -> None:
        raise AssertionError("a step was reported")

    original = torch.nn.functional.cross_entropy
    try:
        torch.nn.functional.cross_entropy = lambda *a, **k: original(*a, **k) * float("nan")
        with pytest.raises(TuneLossNotFinite, match="nan"):
            train(folder, poison)
    finally:
        torch.nn.functional.cross_entropy = original
    assert not list(folder.checkpoints.glob("step-*"))


def test_rows_that_are_all_too_long(inputs: Path, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", inputs, max_length=8)
    with pytest.raises(TuneNoRows) as caught:
        train(folder, nothing)
    assert caught.value.values["left_out"] == "64"


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (MemoryError(), TuneOutOfMemory),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), TuneOutOfMemory),
        (OSError(28, "No space left on device"), DiskFull),
        (RuntimeError("PytorchStreamWriter failed: No space left on device"), DiskFull),
        (KeyError("something else"), KeyError),
    ],
)
def test_failures_are_explained(
    raised: Exception, told: type[Exception], inputs: Path, tmp_path: Path
) -> None:
    spec = make_run(tmp_path / "run", inputs).load().spec
    with pytest.raises(told), explained(tmp_path, spec):
        raise raised


def test_a_changed_base_is_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", tmp_path)
    run = folder.load()
    check_inputs(run)
    config = run.base.path / "config.json"
    config.write_text(config.read_text().replace("silu", "gelu"))
    with pytest.raises(TuneInputChanged):
        check_inputs(run)
    assert main([str(folder.root)]) == 3
    recorded = json.loads(folder.error.read_bytes())
    assert recorded["code"] == "tune-input-changed"
    assert recorded["fix"]


@pytest.mark.parametrize("text", ["", "{", '{"spec": {}}'])
def test_a_run_that_is_none_says_so(text: str, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(text)
    with pytest.raises(TuneRunInvalid):
        RunFolder(tmp_path).load()
    assert main([str(tmp_path)]) == 2


def test_a_finished_job_ends_at_once(uninterrupted: RunFolder) -> None:
    finish(uninterrupted, uninterrupted.load())
    card = (uninterrupted.result / "card.json").read_bytes()
    assert main([str(uninterrupted.root)]) == 0
    assert (uninterrupted.result / "card.json").read_bytes() == card


def test_conversations_learn_the_answers(inputs: Path) -> None:
    make_run(inputs / "run", inputs)
    tokenizer = load_tokenizer(inputs / "model")
    line = {
        "messages": [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": "three"},
            {"role": "assistant", "content": "four"},
        ]
    }
    row = parse(json.dumps(line).encode())
    assert isinstance(row, ChatRow)
    # The tiny template writes "[assistant]" as a generation prompt and before each answer.
    (example,) = encode([row], tokenizer)
    learnt = [t for t, is_learnt in zip(example.tokens, example.learnt, strict=True) if is_learnt]
    assert tokenizer.decode(learnt) == "twofour"
    tokenizer.chat_template = "{{ messages | length }}" + tokenizer.chat_template
    with pytest.raises(TemplateUnfit):
        list(encode([row], tokenizer))


def test_conversations_without_a_template_are_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", tmp_path)
    (tmp_path / "model" / "chat_template.jinja").unlink()
    row = '{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}\n'
    for name in ("train.jsonl", "heldout.jsonl"):
        (tmp_path / "data" / name).write_text(row)
    with pytest.raises(TuneTemplateUnfit):
        train(folder, nothing)


@pytest.mark.parametrize(
    ("answer", "wanted", "chapter", "category"),
    [
        (" S66", " S66", True, True),
        ("S66.3", " S66", True, True),
        (" s6", " S66", True, False),
        ("", " S66", False, False),
        (" T66", " S66", False, False),
        (" S67", " S66", True, False),
    ],
)
def test_answers_are_judged(answer: str, wanted: str, chapter: bool, category: bool) -> None:
    assert (same_chapter(answer, wanted), same_category(answer, wanted)) == (chapter, category)


def test_every_error_of_the_room_can_be_told() -> None:
    for kind in (TuneStopped, TuneNoRows, TuneOutOfMemory, TuneLossNotFinite):
        error: ApplianceError = kind(**dict.fromkeys(kind.fields(), "x"))
        assert all(error.sentences())


def test_datasets_of_the_fixture_are_learnable(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "d")
    assert len((data / "train.jsonl").read_text().splitlines()) == 64
