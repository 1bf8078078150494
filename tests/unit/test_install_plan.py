"""What is decided from facts: the plan's phases, and whether a machine is fit."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.errors import SealUnavailable
from appliance.install import preflight
from appliance.install.plan import BundleFacts, Installed, Phase, Plan, Wish, make_plan
from appliance.install.preflight import Machine, Needs
from appliance.manifests.bundle import Platform
from appliance.store.space import Files, FileSystem

BUNDLE = BundleFacts(release="demo-2", digest="sha256:22", blobs=3, size=700, wheels=100)
BARE = Installed(
    missing_blobs=3,
    missing_bytes=700,
    runtime_bytes=400,
    release_ready=False,
    runtime_ready=False,
    secrets_ready=False,
    current=None,
    running=None,
    healthy=False,
)
DONE = Installed(
    missing_blobs=0,
    missing_bytes=0,
    runtime_bytes=0,
    release_ready=True,
    runtime_ready=True,
    secrets_ready=True,
    current="demo-2",
    running="demo-2",
    healthy=True,
)


def runs(plan: Plan) -> set[Phase]:
    return {step.phase for step in plan.pending}


def test_on_a_bare_machine_everything_runs_in_order() -> None:
    plan = make_plan(BUNDLE, BARE, Wish())
    assert [step.phase for step in plan.steps] == list(Phase)
    assert runs(plan) == set(Phase)
    assert plan.size == 1100
    assert plan.replaces is None


def test_where_everything_is_true_nothing_runs_not_even_the_checks() -> None:
    plan = make_plan(BUNDLE, DONE, Wish())
    assert runs(plan) == set()
    assert not plan.changes


@pytest.mark.parametrize(
    ("here", "expected"),
    [
        (replace(DONE, running=None, healthy=False), {Phase.START, Phase.HEALTH}),
        (replace(DONE, healthy=False), {Phase.START, Phase.HEALTH}),
        (replace(DONE, runtime_ready=False), {Phase.RUNTIME}),
        (replace(DONE, missing_blobs=1, missing_bytes=5), {Phase.BLOBS}),
        (
            replace(DONE, current="demo-1", running="demo-1"),
            {Phase.ACTIVATE, Phase.START, Phase.HEALTH},
        ),
    ],
)
def test_only_what_is_not_true_yet_runs(here: Installed, expected: set[Phase]) -> None:
    assert runs(make_plan(BUNDLE, here, Wish())) == expected | {Phase.PREFLIGHT}


def test_no_start_leaves_it_stopped() -> None:
    assert Phase.START not in runs(make_plan(BUNDLE, BARE, Wish(start=False)))


def test_a_resumed_plan_still_knows_what_to_go_back_to_and_keeps_its_name() -> None:
    begun = make_plan(BUNDLE, replace(DONE, current="demo-1", running="demo-1"), Wish())
    resumed = make_plan(
        BUNDLE, replace(DONE, running=None, healthy=False, replaces="demo-1"), Wish()
    )
    assert begun.replaces == resumed.replaces == "demo-1"
    assert begun.id == resumed.id


# --- preflight ------------------------------------------------------------------------------------

LINUX = Platform(python="3.11", system="linux", machine="x86_64")
MADE = datetime(2026, 11, 1, tzinfo=UTC)
NEEDS = Needs(
    platform=LINUX,
    created=MADE,
    space=(Files(Path("/a"), (600,)), Files(Path("/b"), (500,))),
    port=8443,
    seal_wanted=True,
    may_start=True,
)
FIT = Machine(
    platform=LINUX,
    python=Path("/usr/bin/python3.11"),
    memory=16 << 30,
    cores=2,
    cpu_flags=frozenset({"avx2"}),
    seal_error=None,
    port_free=True,
    now=MADE + timedelta(days=3),
    file_systems=(
        FileSystem(1, Path("/a"), free=600, block=1),
        FileSystem(2, Path("/b"), free=500, block=1),
    ),
)


def failed(needs: Needs, machine: Machine) -> set[str]:
    findings = preflight.judge(needs, machine)
    assert all(finding.remedy for finding in findings if finding.level != "pass")
    return {finding.check for finding in findings if finding.level == "fail"}


def test_a_fit_machine_passes() -> None:
    assert failed(NEEDS, FIT) == set()


@pytest.mark.parametrize(
    ("machine", "check"),
    [
        (replace(FIT, platform=LINUX.model_copy(update={"machine": "aarch64"})), "platform"),
        (replace(FIT, python=None), "interpreter"),
        (replace(FIT, seal_error=SealUnavailable(reason="no", remedy="yes")), "seal"),
        (replace(FIT, memory=1 << 30), "memory"),
        (replace(FIT, port_free=False), "port"),
        (replace(FIT, now=MADE - timedelta(days=400)), "clock"),
    ],
)
def test_each_lack_is_found_with_a_remedy(machine: Machine, check: str) -> None:
    assert failed(NEEDS, machine) == {check}


def test_space_is_counted_to_the_byte_and_per_file_system() -> None:
    one_disk = FileSystem(1, Path("/"), free=1100, block=1)
    assert failed(NEEDS, replace(FIT, file_systems=(one_disk, one_disk))) == set()
    short = replace(one_disk, free=1099)
    assert failed(NEEDS, replace(FIT, file_systems=(short, short))) == {"disk"}


def test_unsealed_is_a_warning_and_needs_no_namespaces() -> None:
    needs = replace(NEEDS, seal_wanted=False)
    findings = {f.check: f.level for f in preflight.judge(needs, FIT)}
    assert findings["seal"] == "warn"
