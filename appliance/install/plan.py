"""What is to be done to get from what is here to what the bundle says. Pure: values in, values out.

    plan = make_plan(bundle, installed, wish)
    plan.pending                      # the phases with something to do, in order

A phase whose end state is already true is a ``skip`` with the reason. The order is fixed and each
phase needs the ones before it; all up to ``secrets`` prepare next to a running release and leave
it alone, ``activate`` is the first that touches it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from appliance.i18n import _

# What a 2-core machine does, to estimate by; a plan shows the estimate and promises nothing.
_LOAD_BYTES_PER_S = 700e6
_UNPACK_BYTES_PER_S = 12e6  # of compressed wheels
_START_S = 45.0


class Phase(StrEnum):
    """The steps of an installation, in their order."""

    PREFLIGHT = "preflight"
    BLOBS = "blobs"
    RELEASE = "release"
    RUNTIME = "runtime"
    SECRETS = "secrets"
    ACTIVATE = "activate"
    START = "start"
    HEALTH = "health"


Action = Literal["run", "skip"]


@dataclass(frozen=True, slots=True)
class Step:
    """One phase of a plan: whether it runs, why, bytes to write and guessed seconds.

    A phase is a :class:`Phase`, or one of a site's (:mod:`appliance.install.site_plan`).
    """

    phase: StrEnum
    action: Action
    reason: str
    size: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class BundleFacts:
    """What the plan needs of a manifest. Sizes in bytes; ``wheels`` are compressed."""

    release: str
    digest: str
    blobs: int
    size: int
    wheels: int


@dataclass(frozen=True, slots=True)
class Installed:
    """What is on this machine. ``current`` is the active release, ``running`` the one whose
    processes live (None: stopped), ``replaces`` what an interrupted plan had begun to replace and
    ``open_phases`` the phases it had begun and not recorded as done."""

    missing_blobs: int
    missing_bytes: int
    runtime_bytes: int
    release_ready: bool
    runtime_ready: bool
    secrets_ready: bool
    current: str | None
    running: str | None
    healthy: bool
    replaces: str | None = None
    open_phases: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Wish:
    """What the operator asked for besides the bundle."""

    start: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """The phases to go through to have ``release`` installed.

    ``replaces`` is the release to go back to if the new one does not work. The same work has the
    same ``id``, so a resumed plan carries on under its name.
    """

    id: str
    release: str
    replaces: str | None
    steps: tuple[Step, ...]

    @property
    def pending(self) -> tuple[Step, ...]:
        """The steps that do something."""
        return tuple(step for step in self.steps if step.action == "run")

    @property
    def changes(self) -> bool:
        """Whether anything but the checks is to be done."""
        return any(step.phase is not Phase.PREFLIGHT for step in self.pending)

    @property
    def size(self) -> int:
        """Bytes to be written."""
        return sum(step.size for step in self.pending)

    @property
    def seconds(self) -> float:
        """Guessed duration in seconds."""
        return sum(step.seconds for step in self.pending)


def make_plan(bundle: BundleFacts, installed: Installed, wish: Wish) -> Plan:
    """Decide every phase."""
    before = installed.current if installed.current != bundle.release else installed.replaces
    prepared = (
        _blobs(bundle, installed),
        _release(bundle, installed),
        _runtime(bundle, installed),
        _secrets(installed),
        _activate(bundle, installed),
    )
    steps = (
        *(_reopened(step, installed) for step in prepared),
        *_running(bundle, installed, wish),
    )
    anything = any(step.action == "run" for step in steps)
    preflight = (
        Step(Phase.PREFLIGHT, "run", _("check this machine"), seconds=0.5)
        if anything
        else Step(Phase.PREFLIGHT, "skip", _("nothing is to change"))
    )
    name = hashlib.sha256(f"{bundle.digest}\n{before or ''}".encode()).hexdigest()[:16]
    return Plan(name, bundle.release, before, (preflight, *steps))


def _reopened(step: Step, installed: Installed) -> Step:
    if step.action == "skip" and step.phase in installed.open_phases:
        return Step(step.phase, "run", _("make sure of what was interrupted"))
    return step


def _blobs(bundle: BundleFacts, installed: Installed) -> Step:
    if not installed.missing_blobs:
        return Step(Phase.BLOBS, "skip", _("all {n} files are in the store").format(n=bundle.blobs))
    return Step(
        Phase.BLOBS,
        "run",
        _("verify and store {missing} of {all} files").format(
            missing=installed.missing_blobs, all=bundle.blobs
        ),
        size=installed.missing_bytes,
        seconds=installed.missing_bytes / _LOAD_BYTES_PER_S,
    )


def _release(bundle: BundleFacts, installed: Installed) -> Step:
    if installed.release_ready:
        return Step(
            Phase.RELEASE, "skip", _("{release} is laid out").format(release=bundle.release)
        )
    return Step(
        Phase.RELEASE, "run", _("lay out {release}").format(release=bundle.release), seconds=0.5
    )


def _runtime(bundle: BundleFacts, installed: Installed) -> Step:
    if installed.runtime_ready:
        return Step(Phase.RUNTIME, "skip", _("the runtime is installed"))
    return Step(
        Phase.RUNTIME,
        "run",
        _("install the runtime from the bundle's wheels, offline"),
        size=installed.runtime_bytes,
        seconds=1 + bundle.wheels / _UNPACK_BYTES_PER_S,
    )


def _secrets(installed: Installed) -> Step:
    if installed.secrets_ready:
        return Step(Phase.SECRETS, "skip", _("keys, certificates and registry exist"))
    return Step(
        Phase.SECRETS, "run", _("make this site's keys, certificates and registry"), seconds=1
    )


def _activate(bundle: BundleFacts, installed: Installed) -> Step:
    if installed.current == bundle.release:
        return Step(Phase.ACTIVATE, "skip", _("it is the current release"))
    if installed.running:
        reason = _("stop {old}, then make {new} the current release")
        text = reason.format(old=installed.running, new=bundle.release)
        return Step(Phase.ACTIVATE, "run", text, seconds=10)
    return Step(Phase.ACTIVATE, "run", _("make it the current release"))


def _running(bundle: BundleFacts, installed: Installed, wish: Wish) -> tuple[Step, Step]:
    if not wish.start:
        reason = _("--no-start was given")
        return Step(Phase.START, "skip", reason), Step(Phase.HEALTH, "skip", reason)
    is_this = installed.running == bundle.release == installed.current
    if is_this and installed.healthy:
        reason = _("it runs and is healthy")
        return Step(Phase.START, "skip", reason), Step(Phase.HEALTH, "skip", reason)
    start = _("start it again: it runs but is not healthy") if is_this else _("start it")
    return (
        Step(Phase.START, "run", start, seconds=_START_S),
        Step(Phase.HEALTH, "run", _("wait until it answers"), seconds=5),
    )
