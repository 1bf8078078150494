"""Install a verified bundle on the hosts of a site: the plan's facts, and what each phase does.

    with lock.hold(place, "…"), admit(path, home, fingerprint) as bundle:
        trust_hosts(site, place, accept, ask)                 # host keys, never blindly
        with connections(site, place) as remotes, SiteInstallation(…) as installation:
            plan = installation.plan()
            installation.carry_out(plan, progress)

This machine is the controller: it keeps the store, the release and the site's authorities, and
does nothing of what it configures itself. Everything can be cut off at any point, here or there,
and the same command goes on where it stopped; the hosts' locks keep another controller away from
the first change on a host until the end.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from appliance.bundle.load import RESERVE
from appliance.cluster.ports import at
from appliance.egress.verdict import Verdict, judge
from appliance.errors import (
    ApplianceError,
    HostsNotReady,
    SiteGatewaySilent,
    SiteSealUnproven,
    SiteUpgradeLater,
)
from appliance.i18n import _
from appliance.install import break_glass, lock, site_credentials, site_nodes
from appliance.install.execute import Act, execute
from appliance.install.home import claim as claim_home
from appliance.install.journal import Journal
from appliance.install.local import ask
from appliance.install.plan import Plan
from appliance.install.secrets import operator, record
from appliance.install.site_endpoint import Endpoint
from appliance.install.site_plan import SiteFacts, SitePhase, make_site_plan
from appliance.manifests.site import Site
from appliance.provision import driver, host_lock, proof
from appliance.provision.delivery import Sent, Shipment, deliver
from appliance.provision.finding import HostFinding
from appliance.provision.host_keys import Ask, Trusted, establish
from appliance.provision.host_lock import Claim
from appliance.provision.inventory import Deployment, inventory
from appliance.provision.outcome import Outcome
from appliance.provision.several import try_each
from appliance.store.blobs import Store
from appliance.store.releases import Releases

if TYPE_CHECKING:
    from appliance.egress.probe import ProbeResult
    from appliance.install.bundle_in import Admitted
    from appliance.layout import SitePlace
    from appliance.progress import Progress
    from appliance.provision.ssh import Remote

_HEALTH_S = 300.0  # a first start compiles and loads models
_HEALTH_PAUSE_S = 1.0


Examine = Callable[["Mapping[str, Remote]", "Progress"], Sequence[HostFinding]]
"""Looks at every host and changes nothing (:mod:`appliance.provision.preflight`)."""


def trust_hosts(
    site: Site, place: SitePlace, accept: Mapping[str, frozenset[str]], ask_person: Ask | None
) -> tuple[Trusted, ...]:
    """Have a trusted host key of every host; what is new goes on the ledger.

    Raises what :func:`appliance.provision.host_keys.establish` raises.
    """
    fresh = establish(site, place, accept, ask_person)
    for each in fresh:
        subject = {"site": site.name, "host": each.host, "key": each.key.fingerprint}
        record(place.home, "site.trust-host", subject)
    return fresh


def claim_of(place: SitePlace) -> Claim:
    """Who holds the hosts' locks: this operator, from this controller."""
    marker = json.loads(place.home.marker.read_bytes())
    name = operator().partition(":")[2]
    return Claim.of(f"{name}@{socket.gethostname()}", str(marker["id"]))


class SiteInstallation:
    """One verified bundle meeting one site. A context manager: it holds the hosts' locks from the
    first change on.

    Raises :class:`SiteUpgradeLater` at once if the site runs another release.
    """

    def __init__(
        self,
        site: Site,
        place: SitePlace,
        bundle: Admitted,
        remotes: Mapping[str, Remote],
        examine: Examine,
    ) -> None:
        self._site = site
        self._place = place
        self._home = place.home
        self._bundle = bundle
        self._manifest = bundle.content.manifest
        self._remotes = remotes
        self._examine = examine
        self._store = Store(self._home.store)
        self._releases = Releases(self._home)
        self._journal = Journal(place.journal)
        self._locks = contextlib.ExitStack()
        self._claim: Claim | None = None
        self.sent: Mapping[str, Sent] = {}
        self.outcome: Outcome | None = None
        self.verdict: Verdict | None = None
        installed = Endpoint.read(place)
        if installed is not None and installed.release not in {"", self.release_id}:
            raise SiteUpgradeLater(
                site=site.name, installed=installed.release, release=self.release_id
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._locks.close()

    @property
    def release_id(self) -> str:
        """The release this makes."""
        return self._manifest.release_id

    # --- what is, and what is to be done ----------------------------------------------------------

    def plan(self) -> Plan:
        """Look here and at the hosts, and decide. Changes nothing."""
        blobs = self._manifest.blobs()
        missing = [b for b in blobs if not self._store.has(b.digest, b.size)]
        unfinished = self._journal.unfinished()
        same = unfinished is not None and unfinished.release == self.release_id
        return make_site_plan(
            SiteFacts(
                site=self._site.name,
                release=self.release_id,
                digest=self._manifest.digest,
                hosts=len(self._remotes),
                bare=self._bare(),
                blobs=len(blobs),
                size=sum(blob.size for blob in blobs),
                wheels=sum(a.size for a in self._manifest.of_kind("wheelhouse")),
                missing_blobs=len(missing),
                missing_bytes=sum(blob.size for blob in missing),
                release_ready=self._releases.find(self.release_id) is not None,
                open_phases=unfinished.open_phases if unfinished and same else frozenset(),
            )
        )

    def _bare(self) -> int:
        """How many hosts have not got the release, as far as they can be asked."""
        path = f"{self._site.folder}/releases/{self.release_id}/bundle.json"
        found, _failed = try_each(self._remotes, lambda remote: remote.run(["test", "-e", path]))
        return len(self._remotes) - sum(done.status == 0 for done in found.values())

    def findings(self, progress: Progress) -> Sequence[HostFinding]:
        """Whether the hosts are fit for it."""
        return self._examine(self._remotes, progress)

    def foretell(self, progress: Progress) -> Outcome:
        """What Ansible would change on each host (check mode). Makes credentials here if missing.

        Raises what :func:`appliance.provision.driver.run` raises.
        """
        self._credentials(progress)
        return driver.run(
            self._place, self._remotes, self._inventory(), progress, mode=driver.CHECK
        )

    # --- doing it ---------------------------------------------------------------------------------

    def carry_out(self, plan: Plan, progress: Progress) -> None:
        """Run the plan; the caller holds the site's lock.

        Raises what the phases raise, each recorded in the journal.
        """
        claim_home(self._home)
        self._tell_of_a_kill()
        try:
            execute(plan, self._acts(), _never_back, self._journal, progress)
        except BaseException as error:
            # What it did to the hosts is done. A ledger that cannot take it hides no error.
            with contextlib.suppress(ApplianceError, OSError):
                self._tell_of_failure(_code(error))
            raise
        self._bundle.remember()
        record(self._home, "site.install", self._subject())

    def _tell_of_a_kill(self) -> None:
        """The run before had no time to say that it ended."""
        left = self._journal.unfinished()
        if left is not None and not left.reason and left.release == self.release_id:
            self._tell_of_failure("cut-off")

    def _tell_of_failure(self, reason: str) -> None:
        entries = self._journal.entries()
        phase = {"phase": entries[-1].phase} if entries and entries[-1].phase else {}
        subject = {**self._subject(), **phase, "reason": reason}
        record(self._home, "site.install", subject, "failed")

    def _subject(self) -> dict[str, str]:
        hosts = str(len(self._remotes))
        return {"site": self._site.name, "release": self.release_id, "hosts": hosts}

    def _acts(self) -> Mapping[str, Act]:
        return {
            SitePhase.CHECK: self._check,
            SitePhase.BLOBS: self._blobs,
            SitePhase.RELEASE: self._lay_out,
            SitePhase.CREDENTIALS: self._credentials,
            SitePhase.DELIVER: self._deliver,
            SitePhase.CONFIGURE: self._configure,
            SitePhase.HEALTH: self._health,
            SitePhase.PROVE: self._prove,
        }

    def _check(self, progress: Progress) -> None:
        findings = self.findings(progress)
        for finding in findings:
            if finding.level == "warn":
                text = f"{finding.host} {finding.check}: {finding.text}. {finding.remedy}"
                progress.say(text)
        problem = not_ready(self._site.name, findings)
        if problem is not None:
            raise problem
        claim = claim_of(self._place)
        self._claim = self._locks.enter_context(
            host_lock.hold(self._remotes, self._site.folder, claim)
        )
        self._pin()

    def _pin(self) -> None:
        """Trust whom the operator named, and say if glass was broken; not before all is fit."""
        if self._bundle.newly_pinned:
            self._bundle.pin()
            record(self._home, "trust.pin", {"root": self._bundle.verified.fingerprint.hex})
        given, expired = self._bundle.verified.emergency, self._bundle.verified.expired
        if given is not None and expired:
            subject = break_glass.subject(self._manifest.digest, given, expired)
            record(self._home, "trust.break-glass", subject)

    def _blobs(self, progress: Progress) -> None:
        with lock.hold(self._home, _("a bundle for site {name}").format(name=self._site.name)):
            self._store.clean()
            self._bundle.load(progress)
            self._bundle.remember()
            subject = {"bundle": self._manifest.digest, "release": self.release_id}
            record(self._home, "bundle.load", subject)

    def _lay_out(self, progress: Progress) -> None:
        with lock.hold(self._home, _("a release for site {name}").format(name=self._site.name)):
            self._releases.materialise(self._bundle.content, self._store, progress)

    def _credentials(self, _progress: Progress) -> None:
        site_credentials.issue(self._site, self._place, self.release_id)

    def _deliver(self, progress: Progress) -> None:
        assert self._claim is not None  # check is never skipped
        self.sent = deliver(
            self._remotes,
            Shipment.of(self._bundle.content, RESERVE),
            self._store,
            progress,
            home=self._site.folder,
            run=self._claim.run,
        )

    def _inventory(self) -> Mapping[str, object]:
        packages = self._manifest.of_kind("packages")
        return inventory(
            self._site,
            Deployment(
                release_id=self.release_id,
                files=self._place.root,
                apt_repository=packages[0].folder if packages else "",
                serving_replicas=site_nodes.serving_replicas(self._site),
            ),
        )

    def _configure(self, progress: Progress) -> None:
        self.outcome = driver.run(self._place, self._remotes, self._inventory(), progress)

    def _health(self, progress: Progress) -> None:
        ca, key = self._place.callers_ca, self._place.operator_key
        urls = [
            f"https://{at(address, self._site.gateway.port)}"
            for address in site_nodes.gateway_addresses(self._site)
        ]
        deadline = time.monotonic() + _HEALTH_S
        with progress.task(_("Waiting for the gateway"), None, "steps") as task:
            while True:
                for url in urls:
                    try:
                        ask(f"{url}/admin/v1/status", ca, key)
                    except (OSError, ValueError) as error:
                        reason = f"{error}"
                    else:
                        Endpoint(url, ca, key, self.release_id).write(self._place)
                        return
                if time.monotonic() > deadline:
                    raise self._silent(urls[0], reason)
                task.note(reason)
                time.sleep(_HEALTH_PAUSE_S)

    def _silent(self, url: str, reason: str) -> SiteGatewaySilent:
        remote = self._remotes[self._site.gateway_host.name]
        return SiteGatewaySilent(
            site=self._site.name, url=url, reason=reason, user=remote.user, address=remote.address
        )

    def _prove(self, progress: Progress) -> None:
        with progress.task(_("Proving that nothing gets out"), None, "steps"):
            places = proof.examine(self._site, self._remotes)
            self.verdict = judge({**places, **self._gateway_places()})
        closed = self.verdict.answer == "closed"
        subject = {"site": self._site.name, "verdict": self.verdict.answer}
        record(self._home, "egress.prove", subject, "ok" if closed else "failed")
        if not closed:
            raise SiteSealUnproven(
                site=self._site.name, answer=self.verdict.answer, reason=doubts(self.verdict)
            )

    def _gateway_places(self) -> dict[str, tuple[ProbeResult, ...]]:
        endpoint = Endpoint.read(self._place)
        assert endpoint is not None  # health wrote it
        url = f"{endpoint.url}/admin/v1/egress/prove"
        try:
            answer = ask(url, endpoint.ca, endpoint.operator_key, b"{}")
        except (OSError, ValueError) as error:
            answer = {"error": f"{error}"}
        return proof.gateway_places(answer if isinstance(answer, dict) else {})


def _code(error: BaseException) -> str:
    """Why a run failed, as the ledger holds it: no sentence, which could name anybody."""
    if isinstance(error, ApplianceError):
        return error.code
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "internal-error"


def _never_back(_release: str, _progress: Progress) -> None:
    """A site has no release to go back to: replacing one comes with upgrades."""


def not_ready(site: str, findings: Sequence[HostFinding]) -> HostsNotReady | None:
    """The error for what failed on which host. Pure."""
    failed = [finding for finding in findings if finding.level == "fail"]
    if not failed:
        return None
    hosts = tuple(dict.fromkeys(finding.host for finding in failed))
    return HostsNotReady(
        count=len(hosts),
        site=site,
        hosts=", ".join(hosts),
        findings="\n  ".join(f"{f.host} {f.check}: {f.text.rstrip('.')}." for f in failed),
        remedy="\n    ".join(dict.fromkeys(f"{f.host}: {f.remedy}" for f in failed if f.remedy)),
    )


def doubts(verdict: Verdict) -> str:
    """What keeps a verdict from being closed, a few of it. Pure."""
    good = {"blocked", "control-ok"}
    bad = [
        f"{place.name}: {result.probe} {result.target} {result.outcome} ({result.detail})"
        for place in verdict.places
        if place.answer != "closed"
        for result in place.results
        if result.outcome not in good
    ]
    more = f" (+{len(bad) - 5})" if len(bad) > 5 else ""
    return "; ".join(bad[:5]) + more if bad else _("No place gave an answer.")


def keep_site_file(place: SitePlace, given: Path) -> None:
    """Keep a copy of the ``site.yaml`` that is planned or installed."""
    place.root.mkdir(parents=True, exist_ok=True)
    place.root.chmod(0o700)  # the lock, which was there first, makes folders for everybody
    if given.resolve() != place.site_file.resolve():
        fresh = place.site_file.with_name(".site.yaml.new")
        shutil.copyfile(given, fresh)
        fresh.replace(place.site_file)
