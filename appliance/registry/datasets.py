"""Data sets and base models: named things with a digest."""

from __future__ import annotations

from sqlalchemy import delete, select

from appliance.errors import NameTaken, RecordMissing
from appliance.registry.records import Dataset, Model
from appliance.registry.sessions import Sessions
from appliance.registry.tables import DatasetRow, ModelRow


class Datasets:
    """Imported data sets. A name stands for one digest and never changes its meaning."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def add(self, dataset: Dataset) -> Dataset:
        """Record a data set. The same name with the same digest again changes nothing.

        Raises:
            NameTaken: the name stands for another digest.
        """
        with self._sessions.write() as session:
            row = session.get(DatasetRow, dataset.name)
            if row is not None and row.digest != dataset.digest:
                raise NameTaken(kind="data set", name=dataset.name, digest=row.digest, group="data")
            if row is None:
                row = DatasetRow(
                    name=dataset.name,
                    digest=dataset.digest,
                    path=dataset.path,
                    rows=dataset.rows,
                    schema=dataset.schema,
                    created=dataset.created,
                    actor=dataset.actor,
                )
                session.add(row)
                session.flush()
            return _dataset(row)

    def get(self, name: str) -> Dataset:
        """The data set of that name.

        Raises:
            RecordMissing: there is none.
        """
        with self._sessions.read() as session:
            row = session.get(DatasetRow, name)
            if row is None:
                raise RecordMissing(kind="data set", name=name, group="data")
            return _dataset(row)

    def list(self) -> list[Dataset]:
        """All data sets, by name."""
        with self._sessions.read() as session:
            return [
                _dataset(row)
                for row in session.scalars(select(DatasetRow).order_by(DatasetRow.name))
            ]


class Models:
    """The base models the current release serves."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def replace(self, release: str, models: list[Model]) -> None:
        """Make ``models`` the models there are, as ``release`` becomes the current one."""
        with self._sessions.write() as session:
            session.execute(delete(ModelRow))
            session.add_all(
                ModelRow(name=model.name, digest=model.digest, release=release) for model in models
            )

    def get(self, name: str) -> Model:
        """The model of that name.

        Raises:
            RecordMissing: there is none.
        """
        with self._sessions.read() as session:
            row = session.get(ModelRow, name)
            if row is None:
                raise RecordMissing(kind="model", name=name, group="models")
            return _model(row)

    def list(self) -> list[Model]:
        """All models, by name."""
        with self._sessions.read() as session:
            return [
                _model(row) for row in session.scalars(select(ModelRow).order_by(ModelRow.name))
            ]


def _dataset(row: DatasetRow) -> Dataset:
    return Dataset(
        name=row.name,
        digest=row.digest,
        path=row.path,
        rows=row.rows,
        schema=row.schema,
        created=row.created,
        actor=row.actor,
    )


def _model(row: ModelRow) -> Model:
    return Model(name=row.name, digest=row.digest, release=row.release)
