"""What an operator types before anything is installed, and what comes back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.cli import egress
from appliance.cli.main import main
from appliance.errors import ExitCode, PermissionRefused
from appliance.install import lock
from appliance.install.doctor import judge_account
from appliance.layout import Home


@pytest.fixture(autouse=True)
def _empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOVCTL_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize(
    ("typed", "status", "code"),
    [
        (["status"], ExitCode.NOT_FOUND, "not-installed"),
        (["start"], ExitCode.NOT_FOUND, "not-installed"),
        (["stop"], ExitCode.NOT_FOUND, "not-installed"),
        (["logs"], ExitCode.NOT_FOUND, "not-installed"),
        (["uninstall", "--yes"], ExitCode.NOT_FOUND, "not-installed"),
        (["install", "/nonexistent.tar"], ExitCode.USAGE, "file-unreadable"),
        (["install", "/dev/null"], ExitCode.USAGE, "not-a-bundle"),
        (["plan", "b.tar", "--site", "/nonexistent.yaml"], ExitCode.USAGE, "file-unreadable"),
        (
            ["install", "/dev/null", "--site", "manifests/single.yaml"],
            ExitCode.USAGE,
            "not-a-bundle",
        ),
        (["install", "b.tar", "--trust", "zz"], ExitCode.USAGE, "fingerprint-malformed"),
        (["status", "--site", "clinic"], ExitCode.NOT_FOUND, "site-not-installed"),
        (["keys", "list", "--site", "clinic"], ExitCode.NOT_FOUND, "site-not-installed"),
        (["keys", "list", "--site", "../x"], ExitCode.USAGE, "file-unreadable"),
        (["status", "--site", "manifests/single.yaml"], ExitCode.NOT_FOUND, "site-not-installed"),
        (["egress", "prove", "--site", "clinic"], ExitCode.NOT_FOUND, "site-not-installed"),
    ],
)
def test_each_refusal_has_its_code_and_status(
    typed: list[str],
    status: ExitCode,
    code: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert main([*typed, "--json"]) == status
    assert json.loads(capsys.readouterr().err)["error"]["code"] == code
    assert not (tmp_path / "home").exists()


def test_doctor_says_what_is_missing_and_ends_with_a_verdict(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", "--json"]) == ExitCode.VERDICT
    checks = {check["check"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["installation"]["level"] == "fail"
    assert "sovctl install" in checks["installation"]["remedy"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_code_that_asks_sovctl(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    assert "_SOVCTL_COMPLETE" in capsys.readouterr().out


def test_a_home_that_cannot_be_made_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOVCTL_HOME", "/proc/none")
    with pytest.raises(PermissionRefused), lock.hold(Home.from_environment(), "install"):
        pass


def test_the_gateways_account_is_not_taken_for_healthy_by_silence() -> None:
    def levels(account: dict[str, object]) -> dict[str, str]:
        return {finding.check: finding.level for finding in judge_account(account)}

    good = {
        "nodes": [{"name": "a", "alive": True}],
        "serve": {"model": "m"},
        "seal": {"sealed": True, "no_way_out": True},
    }
    assert levels(good) == {"ray": "pass", "serve": "pass"}
    assert levels({}) == {"ray": "fail", "serve": "fail"}
    assert levels({**good, "nodes": [{"alive": True}, {"alive": False}]})["ray"] == "fail"
    assert levels({**good, "seal": {"sealed": True, "no_way_out": False}})["way out"] == "fail"


@pytest.mark.parametrize("verb", ["prove", "status"])
def test_a_site_that_the_environment_names_is_proven_as_a_whole(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not only its gateway, which knows nothing of the hosts' firewalls."""
    asked: list[str] = []
    monkeypatch.setattr(egress, "_site_verdict", lambda _console, name, **_how: asked.append(name))
    monkeypatch.setenv("SOVCTL_SITE", "clinic")
    assert main(["egress", verb, "--json"]) == 0
    assert asked == ["clinic"]
