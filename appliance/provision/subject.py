"""One host as the checks see it: what the site wants, what the bundle needs, what was found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from appliance.provision.finding import HostFinding

if TYPE_CHECKING:
    from appliance.errors import ApplianceError
    from appliance.manifests.site import Host, Site
    from appliance.provision.facts import Address, HostFacts
    from appliance.provision.needs import HostNeeds


@dataclass(frozen=True, slots=True)
class Meeting:
    """How the controller met the host.

    ``skew_ms`` is how far the host's clock is ahead of the controller's, give or take
    ``doubt_ms`` (half a round trip); ``client`` is the controller's address as the host sees it;
    ``sudo`` is why the user could not become root, None if it could.
    """

    skew_ms: int | None = None
    doubt_ms: int = 0
    client: Address | None = None
    sudo: ApplianceError | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """What every check of one host is given. ``sealed`` are the hosts whose seal is closed."""

    site: Site
    host: Host
    needs: HostNeeds
    facts: HostFacts
    meeting: Meeting
    check: str = ""
    sealed: frozenset[str] = frozenset()

    def under(self, check: str) -> Subject:
        """The same for the check of that name, which its findings will bear."""
        return replace(self, check=check)

    def passed(self, text: str) -> HostFinding:
        """All is well; ``text`` says with what."""
        return HostFinding(self.host.name, self.check, "pass", text)

    def warned(self, text: str, remedy: str) -> HostFinding:
        """It can be used like that, and had better not be."""
        return HostFinding(self.host.name, self.check, "warn", text, remedy)

    def failed(self, text: str, remedy: str) -> HostFinding:
        """It cannot be used like that."""
        return HostFinding(self.host.name, self.check, "fail", text, remedy)

    def untold(self, what: str, remedy: str, fact: str = "") -> HostFinding:
        """The host could not say: a warning, since nobody looked.

        ``fact`` is what it was asked for, by the name in :attr:`HostFacts.unknown`.
        """
        return self.warned(self.with_reason(what, fact), remedy)

    def with_reason(self, what: str, fact: str) -> str:
        """``what``, and why the host could not tell, where it says so."""
        reason = self.facts.unknown.get(fact)
        return f"{what} ({reason})" if reason else what
