"""What the registry hands out: frozen values, free of any database session.

Times are aware and in UTC. Digests are ``sha256:<64 hex>``. Paths are as the caller gave them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import Enum
from typing import Any

from appliance.registry.roles import Role
from appliance.registry.states import AdapterStatus, JobStatus


class _Record:
    """Adds a JSON form to the records below."""

    def as_json(self) -> dict[str, Any]:
        """The record with times in RFC 3339 and enumerations as their names."""
        return {name: _plain(value) for name, value in asdict(self).items()}  # type: ignore[call-overload]


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return value.value if isinstance(value, Enum) else value


@dataclass(frozen=True, slots=True)
class ApiKey(_Record):
    """An identity at the gateway. The secret itself is not kept, only a digest of it."""

    id: str
    name: str
    role: Role
    created: datetime
    revoked: datetime | None


@dataclass(frozen=True, slots=True)
class Dataset(_Record):
    """An imported data set. ``schema`` names the form of its rows: ``messages``, for instance."""

    name: str
    digest: str
    path: str
    rows: int
    schema: str
    created: datetime
    actor: str


@dataclass(frozen=True, slots=True)
class Model(_Record):
    """A base model and the release that brought it."""

    name: str
    digest: str
    release: str


@dataclass(frozen=True, slots=True)
class Job(_Record):
    """A tuning job. ``spec`` is the :class:`TuningSpec` as JSON values."""

    id: str
    submission_id: str | None
    spec: Mapping[str, Any]
    status: JobStatus
    created: datetime
    started: datetime | None
    finished: datetime | None
    actor: str
    base: str
    dataset: str
    adapter: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Adapter(_Record):
    """A signed adapter. It is served only while ``status`` allows it and its digest matches."""

    name: str
    base: str
    base_digest: str
    dataset_digest: str
    job_id: str | None
    digest: str
    path: str
    status: AdapterStatus
    card_path: str
    created: datetime
