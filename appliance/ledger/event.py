"""One entry of the ledger: who did what to what, when, and how it ended.

An entry is RFC 8785 canonical JSON, so that the same event has one encoding only::

    {"action":"adapter.promote","actor":"operator:alice","at":"2026-11-24T03:01:39.123456Z",
     "outcome":"ok","subject":{"adapter":"icd10-r16","digest":"sha256:…"},"v":1}

It holds digests and identifiers, never prompts, answers or personal data: the record cannot be
erased, so what must be erasable does not belong in it. Values are therefore bounded and without
spaces, which a sentence or a full name does not survive.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal, Self, cast, get_args

Outcome = Literal["ok", "refused", "failed"]

MAX_ENTRY_BYTES = 8192
_MAX_FIELDS = 24
_VERSION = 1

_ACTOR = re.compile(r"[a-z][a-z0-9-]{0,31}:[!#-\[\]-~]{1,128}", re.ASCII)
_ACTION = re.compile(r"[a-z][a-z0-9-]{0,31}(\.[a-z][a-z0-9-]{0,31}){0,3}", re.ASCII)
_FIELD = re.compile(r"[a-z][a-z0-9_.-]{0,47}", re.ASCII)
# Printable ASCII without space, quote and backslash: nothing needs escaping, so 24 fields of it
# stay below MAX_ENTRY_BYTES.
_VALUE = re.compile(r"[!#-\[\]-~]{1,256}", re.ASCII)
_AT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)

# An event's strings are printable ASCII and its only number is a small integer; for those, RFC 8785
# is sorted keys without blanks, which the C encoder writes ten times faster than a general one.
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)

#: What is recorded today (docs/architecture.md, Ledger). A new action needs no new format.
ACTIONS = (
    "trust.pin",
    "trust.break-glass",
    "bundle.load",
    "release.install",
    "release.activate",
    "release.uninstall",
    "site.trust-host",
    "site.install",
    "site.break-lock",
    "appliance.start",
    "appliance.stop",
    "seal.closed",
    "egress.prove",
    "model.load",
    "inference",
    "dataset.import",
    "tune.submit",
    "tune.finish",
    "tune.cancel",
    "adapter.register",
    "adapter.promote",
    "adapter.load",
    "adapter.unload",
    "adapter.retire",
    "key.create",
    "key.revoke",
    "login",
    "access.refused",
)


class EventInvalid(ValueError):
    """The event cannot be recorded as it is. A defect of the caller, or a tampered entry."""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    Args:
        actor: ``kind:name``, for instance ``operator:alice``, ``key:<id>``, ``system:supervisor``.
        action: one of :data:`ACTIONS`.
        subject: identifiers and digests by name; printable ASCII without spaces, quotes and
            backslashes, 256 characters at most each, 24 fields at most.
        outcome: ``ok``, ``refused`` or ``failed``.
        at: an aware time; now, if not given.

    Raises:
        EventInvalid: one of them is not so.
    """

    actor: str
    action: str
    subject: Mapping[str, str]
    outcome: Outcome = "ok"
    at: datetime = field(default_factory=_now)

    def __post_init__(self) -> None:
        _demand(_ACTOR.fullmatch(self.actor), f"actor {self.actor!r} is not kind:name")
        _demand(_ACTION.fullmatch(self.action), f"action {self.action!r} is not word.word")
        _demand(self.outcome in get_args(Outcome), f"outcome {self.outcome!r} is unknown")
        _demand(self.at.tzinfo is not None, "the time has no time zone")
        _demand(len(self.subject) <= _MAX_FIELDS, f"more than {_MAX_FIELDS} subject fields")
        for name, value in self.subject.items():
            _demand(
                _FIELD.fullmatch(name), f"subject field {name!r} is not a short lower-case name"
            )
            _demand(
                isinstance(value, str) and _VALUE.fullmatch(value),
                f"subject field {name!r} is not 1 to 256 printable ASCII characters"
                " without space, quote or backslash",
            )
        object.__setattr__(self, "at", self.at.astimezone(UTC))
        object.__setattr__(self, "subject", MappingProxyType(dict(self.subject)))

    def encode(self) -> bytes:
        """The entry's bytes: RFC 8785 JSON, at most :data:`MAX_ENTRY_BYTES`."""
        return _CANONICAL.encode(self.as_json()).encode("ascii")

    def as_json(self) -> dict[str, Any]:
        """The entry as JSON values."""
        return {
            "action": self.action,
            "actor": self.actor,
            "at": self.at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "outcome": self.outcome,
            "subject": dict(self.subject),
            "v": _VERSION,
        }

    @classmethod
    def decode(cls, entry: bytes) -> Self:
        """Parse an entry. Any other encoding of the same event is refused.

        Raises:
            EventInvalid: it is not one.
        """
        _demand(len(entry) <= MAX_ENTRY_BYTES, f"longer than {MAX_ENTRY_BYTES} bytes")
        try:
            value = json.loads(entry)
        except (ValueError, RecursionError) as error:
            raise EventInvalid(f"not JSON: {error}") from error
        expected = {"action", "actor", "at", "outcome", "subject", "v"}
        _demand(isinstance(value, dict) and value.keys() == expected, "not an event's fields")
        _demand(value["v"] == _VERSION, f"version {value['v']!r} is unknown")
        _demand(isinstance(value["subject"], dict), "subject is not an object")
        texts = [value[name] for name in ("actor", "action", "outcome", "at")]
        _demand(all(isinstance(text, str) for text in texts), "a field is not a string")
        event = cls(
            actor=value["actor"],
            action=value["action"],
            subject=value["subject"],
            outcome=cast("Outcome", value["outcome"]),
            at=_parse_time(value["at"]),
        )
        _demand(event.encode() == entry, "not in canonical form (RFC 8785)")
        return event


def _parse_time(text: str) -> datetime:
    _demand(_AT.fullmatch(text), f"time {text[:40]!r} is not RFC 3339 in UTC with microseconds")
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise EventInvalid(f"time {text!r} does not exist") from error


def _demand(holds: object, reason: str) -> None:
    if not holds:
        raise EventInvalid(reason)
