"""The phases of installing a site, decided from what is known. Pure: values in, values out.

    plan = make_site_plan(facts)

The phases on this machine are skipped when their end state is true. Those on the hosts always run:
only asking the hosts tells whether something is to be done there, and asking is what they do first.
Each can be run again; none but ``configure`` touches what serves already.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from appliance.i18n import _
from appliance.install.plan import Plan, Step

# What was measured with two cores and a gigabit link, to estimate by; a plan promises nothing.
_LOAD_BYTES_PER_S = 700e6
_SEND_BYTES_PER_S = 100e6  # over all hosts: the controller's link
_CHECK_S = 5.0
_AGAIN_S = 45.0  # a run of the playbooks that finds all as it is
_FIRST_S = 240.0  # a run on a bare host
_RUNTIME_BYTES_PER_S = 12e6  # of compressed wheels, on each host


class SitePhase(StrEnum):
    """The steps of a site's installation, in their order."""

    CHECK = "check"
    BLOBS = "blobs"
    RELEASE = "release"
    CREDENTIALS = "credentials"
    DELIVER = "deliver"
    CONFIGURE = "configure"
    HEALTH = "health"
    PROVE = "prove"


@dataclass(frozen=True, slots=True)
class SiteFacts:
    """What the plan needs to know. Sizes in bytes.

    ``hosts`` is how many there are, ``bare`` how many have not got the release; ``missing_blobs``
    and ``missing_bytes`` are of this machine's store; ``wheels`` are compressed.
    """

    site: str
    release: str
    digest: str
    hosts: int
    bare: int
    blobs: int
    size: int
    wheels: int
    missing_blobs: int
    missing_bytes: int
    release_ready: bool
    open_phases: frozenset[str] = frozenset()


def make_site_plan(facts: SiteFacts) -> Plan:
    """Decide every phase."""
    steps = (
        Step(SitePhase.CHECK, "run", _("check all {n} hosts").format(n=facts.hosts), 0, _CHECK_S),
        _reopened(_blobs(facts), facts),
        _reopened(_release(facts), facts),
        Step(SitePhase.CREDENTIALS, "run", _("make missing keys and certificates"), 0, 1),
        _deliver(facts),
        _configure(facts),
        Step(SitePhase.HEALTH, "run", _("wait until the gateway answers"), 0, 10),
        Step(SitePhase.PROVE, "run", _("prove that nothing gets out"), 0, 15),
    )
    name = hashlib.sha256(f"{facts.digest}\n{facts.site}".encode()).hexdigest()[:16]
    return Plan(name, facts.release, None, steps)


def _reopened(step: Step, facts: SiteFacts) -> Step:
    if step.action == "skip" and step.phase in facts.open_phases:
        return Step(step.phase, "run", _("make sure of what was interrupted"))
    return step


def _blobs(facts: SiteFacts) -> Step:
    if not facts.missing_blobs:
        text = _("all {n} files are in this machine's store").format(n=facts.blobs)
        return Step(SitePhase.BLOBS, "skip", text)
    text = _("verify and store {missing} of {all} files here")
    return Step(
        SitePhase.BLOBS,
        "run",
        text.format(missing=facts.missing_blobs, all=facts.blobs),
        size=facts.missing_bytes,
        seconds=facts.missing_bytes / _LOAD_BYTES_PER_S,
    )


def _release(facts: SiteFacts) -> Step:
    if facts.release_ready:
        text = _("{release} is laid out here").format(release=facts.release)
        return Step(SitePhase.RELEASE, "skip", text)
    text = _("lay out {release} here").format(release=facts.release)
    return Step(SitePhase.RELEASE, "run", text, seconds=0.5)


def _deliver(facts: SiteFacts) -> Step:
    if not facts.bare:
        text = _("see that all {n} hosts have the release").format(n=facts.hosts)
        return Step(SitePhase.DELIVER, "run", text, seconds=2)
    size = facts.bare * facts.size
    text = _("copy the release to {n} hosts, what they have not got").format(n=facts.bare)
    return Step(SitePhase.DELIVER, "run", text, size, 2 + size / _SEND_BYTES_PER_S)


def _configure(facts: SiteFacts) -> Step:
    text = _("configure {n} hosts with Ansible").format(n=facts.hosts)
    seconds = _FIRST_S + facts.wheels / _RUNTIME_BYTES_PER_S if facts.bare else _AGAIN_S
    return Step(SitePhase.CONFIGURE, "run", text, seconds=seconds)
