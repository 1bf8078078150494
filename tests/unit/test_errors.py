"""Promises every error keeps, whoever wrote it."""

import json
import re
from pathlib import Path

import pytest

from appliance.cli.main import _COMMANDS, main
from appliance.errors import ApplianceError, ExitCode, NotInstalled
from appliance.errors_page import _MEANING, page

ERRORS = [
    error
    for _code, error in sorted(ApplianceError.catalogue.items())
    if error.__module__ == "appliance.errors"
]
PAGE = Path(__file__).parents[2] / "docs" / "errors.md"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
def test_an_error_says_what_why_and_what_to_do(error: type[ApplianceError]):
    assert re.fullmatch(r"[a-z]+(-[a-z0-9]+)*", error.code)
    assert error.exit_code not in (ExitCode.OK, ExitCode.VERDICT)
    values = {name: f"<{name}>" for name in error.fields()}
    sentences = error(**values).sentences()
    for sentence in sentences:
        assert sentence.strip()
        assert not re.search(r"\{\w+\}", sentence)
    assert json.loads(json.dumps(error(**values).as_json()))["code"] == error.code


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
def test_a_remedy_names_commands_that_exist(error: type[ApplianceError]):
    for command in re.findall(r"'sovctl ([a-z-]+)", f"{error.why} {error.fix}"):
        assert command in _COMMANDS


def test_a_missing_field_is_noticed_at_once():
    with pytest.raises(TypeError, match="home"):
        NotInstalled()


def test_a_code_is_taken_once():
    with pytest.raises(TypeError, match="already taken"):
        type("Again", (ApplianceError,), {"code": "not-installed"})


def test_every_exit_status_has_a_meaning():
    assert set(_MEANING) == set(ExitCode)


def test_the_page_is_fresh():
    fresh = page({error.code: error for error in ERRORS})
    assert PAGE.read_text("utf-8") == fresh, "python -m appliance.errors_page > docs/errors.md"


def test_a_defect_is_one_calm_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys):
    monkeypatch.setenv("SOVCTL_HOME", str(tmp_path))
    (tmp_path / "logs").mkdir()
    monkeypatch.setattr("appliance.cli.main.cli.main", lambda **_: 1 / 0)
    assert main(["status"]) == ExitCode.INTERNAL
    shown = capsys.readouterr().err
    assert "internal-error" in shown
    assert "Traceback" not in shown
    assert "ZeroDivisionError" in (tmp_path / "logs" / "sovctl.log").read_text()
