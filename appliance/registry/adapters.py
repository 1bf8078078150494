"""Tuned adapters and how far each is trusted."""

from __future__ import annotations

from sqlalchemy import select

from appliance.errors import NameTaken, RecordMissing, TransitionRefused
from appliance.registry.records import Adapter
from appliance.registry.sessions import Sessions
from appliance.registry.states import AdapterStatus, adapter_may_become
from appliance.registry.tables import AdapterRow


class Adapters:
    """Registered adapters. A name stands for one digest and never changes its meaning."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def add(self, adapter: Adapter) -> Adapter:
        """Record an adapter. The same name with the same digest again changes nothing.

        Raises:
            NameTaken: the name stands for another digest, or the digest has another name.
        """
        with self._sessions.write() as session:
            same_name = session.get(AdapterRow, adapter.name)
            same_digest = session.scalar(
                select(AdapterRow).where(AdapterRow.digest == adapter.digest)
            )
            for other in (same_name, same_digest):
                if other is not None and (other.name, other.digest) != (
                    adapter.name,
                    adapter.digest,
                ):
                    raise NameTaken(
                        kind="adapter", name=other.name, digest=other.digest, group="adapters"
                    )
            row = same_name or _row(adapter)
            session.add(row)
            session.flush()
            return _record(row)

    def get(self, name: str) -> Adapter:
        """The adapter of that name.

        Raises:
            RecordMissing: there is none.
        """
        with self._sessions.read() as session:
            row = session.get(AdapterRow, name)
            if row is None:
                raise RecordMissing(kind="adapter", name=name, group="adapters")
            return _record(row)

    def list(self) -> list[Adapter]:
        """All adapters, newest first."""
        with self._sessions.read() as session:
            rows = session.scalars(
                select(AdapterRow).order_by(AdapterRow.created.desc(), AdapterRow.name)
            )
            return [_record(row) for row in rows]

    def set_status(self, name: str, status: AdapterStatus) -> Adapter:
        """Move an adapter along its life (:func:`appliance.registry.states.adapter_may_become`).

        Raises:
            RecordMissing: there is no such adapter.
            TransitionRefused: no way leads there from its present status.
        """
        with self._sessions.write() as session:
            row = session.get(AdapterRow, name)
            if row is None:
                raise RecordMissing(kind="adapter", name=name, group="adapters")
            if not adapter_may_become(AdapterStatus(row.status), status):
                raise TransitionRefused(
                    kind="adapter", name=name, now=row.status, wanted=status, group="adapters"
                )
            row.status = status.value
            return _record(row)


def _row(adapter: Adapter) -> AdapterRow:
    return AdapterRow(
        name=adapter.name,
        base=adapter.base,
        base_digest=adapter.base_digest,
        dataset_digest=adapter.dataset_digest,
        job_id=adapter.job_id,
        digest=adapter.digest,
        path=adapter.path,
        status=adapter.status.value,
        card_path=adapter.card_path,
        created=adapter.created,
    )


def _record(row: AdapterRow) -> Adapter:
    return Adapter(
        name=row.name,
        base=row.base,
        base_digest=row.base_digest,
        dataset_digest=row.dataset_digest,
        job_id=row.job_id,
        digest=row.digest,
        path=row.path,
        status=AdapterStatus(row.status),
        card_path=row.card_path,
        created=row.created,
    )
