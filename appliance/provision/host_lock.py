"""One operator at a time on every host of a site, however many controllers there are.

    with hold(remotes, site.folder, Claim.of(operator, controller)) as claim:
        …

The lock is a file on the host (:mod:`appliance.provision.lock_there`) that names operator and time.
It is given back at the end, also of a run that fails; a kill leaves it, and then the same
controller goes on under it while every other one has to break it knowingly.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Self

from appliance.errors import ApplianceError, HostBusy
from appliance.i18n import _
from appliance.provision.several import one_error, try_each
from appliance.provision.ssh import Remote
from appliance.provision.there import COMMAND, program


@dataclass(frozen=True, slots=True)
class Claim:
    """Who holds a lock: shown to whoever waits. ``run`` is new for every command."""

    operator: str
    controller: str
    run: str
    since: str

    @classmethod
    def of(cls, operator: str, controller: str) -> Self:
        """A claim of now."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(operator, controller, secrets.token_hex(16), since)


@contextlib.contextmanager
def hold(remotes: Mapping[str, Remote], home: str, claim: Claim) -> Iterator[Claim]:
    """Hold every host's lock for the ``with`` block. Raises :class:`HostBusy`, and holds none."""
    taken, failures = try_each(remotes, lambda remote: _take(remote, home, claim))
    try:
        if failures:
            raise _refusal(failures)
        yield claim
    finally:
        ours = {name: remote for name, remote in remotes.items() if name in taken}
        # A host that is gone keeps its lock, which does not hinder this controller.
        try_each(
            ours, lambda remote: _ask(remote, {"do": "give-back", "home": home, "run": claim.run})
        )


def break_locks(
    remotes: Mapping[str, Remote], home: str
) -> tuple[dict[str, Mapping[str, Any] | None], dict[str, ApplianceError]]:
    """Take the lock of each host away from whoever has it; return who had it, and what failed.

    Both, because a lock that was broken is to be recorded whatever another host says.
    """
    return try_each(remotes, lambda remote: _ask(remote, {"do": "break", "home": home}))


def _take(remote: Remote, home: str, claim: Claim) -> None:
    held = _ask(remote, {"do": "take", "home": home, **asdict(claim)})
    if held is not None:
        raise HostBusy(
            host=remote.name, operator=held.get("operator", "?"), since=held.get("since", "?")
        )


def _ask(remote: Remote, request: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """One request to the host's lock. Raises :class:`ApplianceError`."""
    line = json.dumps(request).encode() + b"\n"
    done = remote.check(COMMAND, stdin=program("lock_there") + line, sudo=True)
    try:
        answer = json.loads(done.stdout.splitlines()[-1])  # a login script may have greeted first
        held = None if "error" in answer else answer["held"]
    except (IndexError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise remote.failed(["lock"], _("It did not say who holds the lock.")) from error
    if "error" in answer:
        raise remote.failed(["lock"], str(answer["error"]))
    if held is not None and not isinstance(held, dict):
        raise remote.failed(["lock"], _("It did not say who holds the lock."))
    return held


def _refusal(failures: Mapping[str, ApplianceError]) -> ApplianceError:
    """Hosts that one operator holds are one fact, with one thing to do about it."""
    busy = [error for error in failures.values() if isinstance(error, HostBusy)]
    holders = {error.values["operator"] for error in busy}
    if len(busy) < len(failures) or len(holders) != 1:
        return one_error(failures)
    since = min(error.values["since"] for error in busy)
    return HostBusy(host=" ".join(failures), operator=holders.pop(), since=since)
