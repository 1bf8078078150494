"""Install a verified bundle on this machine: the plan's facts, and what each phase does.

    with admit(path, home, fingerprint) as bundle, lock.hold(home, "install …"):
        installation = Installation(home, bundle, request, cluster)
        plan = installation.plan()                           # reads the disk, changes nothing
        installation.carry_out(plan, progress)

Blobs are read only when one is missing from the store, so installing what is here costs one
``stat`` for each blob and hashes nothing again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.bundle.load import RESERVE
from appliance.bundle.revoked import refuse_revoked
from appliance.errors import (
    ApplianceError,
    BundleWithoutRuntime,
    InterpreterMissing,
    PortTaken,
    PreflightFailed,
    ReleaseDamaged,
    WrongPlatform,
)
from appliance.i18n import _
from appliance.install import break_glass, preflight
from appliance.install.bundle_in import Admitted
from appliance.install.execute import Act, execute
from appliance.install.home import claim
from appliance.install.journal import Journal
from appliance.install.plan import BundleFacts, Installed, Phase, Plan, Wish, make_plan
from appliance.install.preflight import Finding, Needs
from appliance.install.runtime import (
    Interpreter,
    Pick,
    install_runtime,
    is_complete,
    pick,
)
from appliance.install.secrets import ensure_secrets, has_secrets, record
from appliance.manifests.bundle import BlobRef, Platform
from appliance.manifests.environment import UNPACK_FACTOR
from appliance.store.blobs import Store
from appliance.store.releases import Release, Releases
from appliance.store.space import Files

if TYPE_CHECKING:
    from appliance.install.local import Cluster
    from appliance.layout import Home
    from appliance.progress import Progress

DEFAULT_PORT = 8443


@dataclass(frozen=True, slots=True)
class Request:
    """What the operator asked for. ``port`` None: 8443, or the next one that is free."""

    bundle: Path
    port: int | None = None
    sealed: bool = True
    start: bool = True


def journal_of(home: Home) -> Journal:
    """The journal of installations under ``home``."""
    return Journal(home.journal / "install.jsonl")


class Installation:
    """One verified bundle meeting one installation.

    Raises :class:`WrongPlatform` at once if the bundle is not for this kind of machine, and
    :class:`BundleWithoutRuntime` if it is an addition to another.
    """

    def __init__(
        self,
        home: Home,
        bundle: Admitted,
        request: Request,
        cluster: Cluster,
    ) -> None:
        self._home = home
        self._bundle = bundle
        self._manifest = bundle.content.manifest
        self._request = request
        self._cluster = cluster
        self._store = Store(home.store)
        self._releases = Releases(home)
        self._journal = journal_of(home)
        if not self._manifest.of_kind("wheelhouse"):
            content = ", ".join(f"{a.kind} {a.name}" for a in self._manifest.artefacts)
            raise BundleWithoutRuntime(bundle=bundle.path, content=content or _("nothing"))
        here, wanted = Platform.of_this_machine(), self._runtime_platform
        if (here.system, here.machine) != (wanted.system, wanted.machine):
            raise WrongPlatform(wanted=wanted, actual=here)

    @property
    def release_id(self) -> str:
        """The release this makes."""
        return self._manifest.release_id

    # --- what is, and what is to be done ----------------------------------------------------------

    def plan(self) -> Plan:
        """Look at the disk and decide. Changes nothing."""
        return make_plan(self._facts(), self._survey(), Wish(start=self._request.start))

    def findings(self) -> tuple[Finding, ...]:
        """Whether this machine is fit for what the plan would do."""
        needs = self._needs()
        python = self._interpreter.path if self._interpreter else None
        return preflight.judge(needs, preflight.look(needs, python))

    def _facts(self) -> BundleFacts:
        blobs = self._manifest.blobs()
        return BundleFacts(
            release=self.release_id,
            digest=self._manifest.digest,
            blobs=len(blobs),
            size=sum(blob.size for blob in blobs),
            wheels=self._wheel_bytes,
        )

    def _survey(self) -> Installed:
        missing = self._missing
        release = self._releases.find(self.release_id)
        current = self._releases.current()
        runs = self._cluster.port() is not None
        unfinished = self._journal.unfinished()
        same = unfinished is not None and unfinished.release == self.release_id
        runtime_ready = release is not None and is_complete(release)
        return Installed(
            missing_blobs=len(missing),
            missing_bytes=sum(blob.size for blob in missing),
            runtime_bytes=0 if runtime_ready else self._runtime_estimate,
            release_ready=release is not None,
            runtime_ready=runtime_ready,
            secrets_ready=has_secrets(self._home),
            current=current.id if current else None,
            running=current.id if current and runs else None,
            healthy=runs and self._cluster.healthy(),
            replaces=unfinished.replaces if unfinished and same else None,
            open_phases=unfinished.open_phases if unfinished and same else frozenset(),
        )

    @property
    def _missing(self) -> list[BlobRef]:
        """The blobs that are not in the store."""
        return [b for b in self._manifest.blobs() if not self._store.has(b.digest, b.size)]

    @property
    def _wheel_bytes(self) -> int:
        return sum(artefact.size for artefact in self._manifest.of_kind("wheelhouse"))

    @property
    def _runtime_estimate(self) -> int:
        return int(self._wheel_bytes * UNPACK_FACTOR)

    @cached_property
    def _interpreter(self) -> Interpreter | None:
        return self._runtime_pick.interpreter if self._runtime_pick else None

    @cached_property
    def _runtime_pick(self) -> Pick | None:
        return pick(self._manifest)

    @property
    def _runtime_platform(self) -> Platform:
        """What the runtime is for: the environment that was picked, or the manifest's default."""
        found = self._runtime_pick
        return found.environment.platform if found else self._manifest.platform

    def _needs(self) -> Needs:
        release = self._releases.find(self.release_id)
        runtime = 0 if release and is_complete(release) else self._runtime_estimate
        space = (
            self._store.files_of([(b.digest, b.size) for b in self._missing]),
            Files(self._home.releases, (runtime,), reserve=RESERVE),
        )
        runs = self._cluster.port() is not None
        return Needs(
            platform=self._runtime_platform,
            created=datetime.fromisoformat(self._manifest.created),
            space=space,
            port=None if runs else self._request.port,
            seal_wanted=self._request.sealed,
            may_start=self._request.start,
        )

    # --- doing it ---------------------------------------------------------------------------------

    def carry_out(self, plan: Plan, progress: Progress) -> None:
        """Run the plan; the caller holds the lock. See :func:`appliance.install.execute.execute`.

        Raises :class:`HomeNotOurs` before anything is written to a folder that is not ours.
        """
        claim(self._home)
        if not plan.pending:
            self._pin()
            self._break_glass()
        execute(plan, self._acts(), self._go_back, self._journal, progress)
        self._bundle.remember()

    def _acts(self) -> Mapping[str, Act]:
        return {
            Phase.PREFLIGHT: self._preflight,
            Phase.BLOBS: self._blobs,
            Phase.RELEASE: self._lay_out,
            Phase.RUNTIME: self._runtime,
            Phase.SECRETS: lambda _progress: ensure_secrets(self._home),
            Phase.ACTIVATE: self._activate,
            Phase.START: self._start,
            Phase.HEALTH: lambda _progress: self._cluster.check(),
        }

    def _preflight(self, progress: Progress) -> None:
        findings = self.findings()
        for finding in findings:
            if finding.level == "warn":
                progress.say(f"{finding.check}: {finding.text}. {finding.remedy}")
        problem = as_error(findings, self._request, self._manifest.platform.python)
        if problem is not None:
            raise problem
        self._pin()
        self._break_glass()
        self._store.clean()

    def _pin(self) -> None:
        """Trust whom the operator named; not before this machine is known to be fit."""
        if self._bundle.newly_pinned:
            self._bundle.pin()
            record(self._home, "trust.pin", {"root": self._bundle.verified.fingerprint.hex})

    def _break_glass(self) -> None:
        """Put it on the ledger that something expired is let in, before any of it is loaded."""
        given, expired = self._bundle.verified.emergency, self._bundle.verified.expired
        if given is not None and expired:
            subject = break_glass.subject(self._manifest.digest, given, expired)
            record(self._home, "trust.break-glass", subject)
            break_glass.remember(self._home, self.release_id, given, expired)

    def _blobs(self, progress: Progress) -> None:
        self._bundle.load(progress)
        self._bundle.remember()
        record(
            self._home, "bundle.load", {"bundle": self._manifest.digest, "release": self.release_id}
        )

    def _lay_out(self, progress: Progress) -> None:
        self._releases.materialise(self._bundle.content, self._store, progress)

    def _runtime(self, progress: Progress) -> None:
        if self._interpreter is None:
            raise InterpreterMissing(python=self._manifest.platform.python)
        release = self._releases.get(self.release_id)
        install_runtime(release, self._interpreter, self._home, progress)
        record(self._home, "release.install", {"release": self.release_id})

    def _activate(self, progress: Progress) -> None:
        refuse_revoked(self._home, self._releases.get(self.release_id).folder)
        self._cluster.stop(progress)
        self._releases.activate(self.release_id)
        subject = {"release": self.release_id}
        plan = self._journal.unfinished()  # this one: what it replaces survives a kill
        if plan is not None and plan.replaces:
            subject["replaces"] = plan.replaces
        record(self._home, "release.activate", subject)

    def _start(self, progress: Progress) -> None:
        if self._cluster.port() is not None and not self._cluster.healthy():
            self._cluster.stop(progress)
        self._cluster.start(self._releases.get(self.release_id).folder, self._port(), progress)

    def _go_back(self, release_id: str, progress: Progress) -> None:
        self._cluster.stop(progress)
        refuse_revoked(self._home, self._releases.get(release_id).folder)
        release = self._releases.activate(release_id)
        record(self._home, "release.activate", {"release": release_id, "replaces": self.release_id})
        if self._request.start:
            self._cluster.start(release.folder, self._port(), progress)

    def _port(self) -> int:
        if self._request.port is not None:
            return self._request.port
        free = preflight.next_free_port(DEFAULT_PORT)
        return DEFAULT_PORT if free is None else free  # taken: said by who tries to listen


def as_error(findings: tuple[Finding, ...], request: Request, python: str) -> ApplianceError | None:
    """The error for what failed: the particular one where there is just one. Pure."""
    failed = [finding for finding in findings if finding.level == "fail"]
    if not failed:
        return None
    first = failed[0]
    if len(failed) == 1 and first.check == "interpreter":
        return InterpreterMissing(python=python)
    if len(failed) == 1 and first.check == "port" and request.port is not None:
        return PortTaken(port=request.port)
    return PreflightFailed(
        bundle=request.bundle,
        findings=" ".join(f"{finding.check}: {finding.text}." for finding in failed),
        remedy=" ".join(finding.remedy for finding in failed),
    )


def damaged(release: Release) -> ReleaseDamaged | None:
    """Why ``release`` cannot be started as it lies on the disk; None if it can."""
    try:
        release.manifest()
    except ReleaseDamaged as error:
        return error
    if not is_complete(release):
        return ReleaseDamaged(release=release.id, reason="Its runtime is not complete.")
    return None
