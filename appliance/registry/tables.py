"""The tables, as SQLAlchemy sees them. Only this room knows them; others get records.

A change here needs a migration under ``migrations/versions`` and a new :data:`HEAD`; a test
compares the two.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, Dialect, ForeignKey, LargeBinary, MetaData, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

HEAD = "0001"  # the newest revision under migrations/versions


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time. SQLite has no time zones, so a naive value is refused on the way in."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("the registry keeps aware times only")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """Constraint names are fixed, so that a later migration can name them on any database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it from the class
        datetime: UtcDateTime,
        dict[str, Any]: JSON,
    }


class ApiKeyRow(Base):
    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    role: Mapped[str] = mapped_column(String(16))
    salt: Mapped[bytes] = mapped_column(LargeBinary(16))
    digest: Mapped[bytes] = mapped_column(LargeBinary(32))
    created: Mapped[datetime]
    revoked: Mapped[datetime | None]


class DatasetRow(Base):
    __tablename__ = "datasets"

    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    digest: Mapped[str] = mapped_column(String(80), index=True)
    path: Mapped[str]
    rows: Mapped[int]
    schema: Mapped[str] = mapped_column(String(32))
    created: Mapped[datetime]
    actor: Mapped[str] = mapped_column(String(160))


class ModelRow(Base):
    __tablename__ = "models"

    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    digest: Mapped[str] = mapped_column(String(80))
    release: Mapped[str] = mapped_column(String(160))


class JobRow(Base):
    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    submission_id: Mapped[str | None] = mapped_column(String(128), unique=True)
    spec: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(String(16), index=True)
    created: Mapped[datetime] = mapped_column(index=True)
    started: Mapped[datetime | None]
    finished: Mapped[datetime | None]
    actor: Mapped[str] = mapped_column(String(160))
    base: Mapped[str] = mapped_column(String(128))
    dataset: Mapped[str] = mapped_column(String(128))
    adapter: Mapped[str | None] = mapped_column(String(128))
    error: Mapped[str | None]


class AdapterRow(Base):
    __tablename__ = "adapters"

    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    base: Mapped[str] = mapped_column(String(128))
    base_digest: Mapped[str] = mapped_column(String(80))
    dataset_digest: Mapped[str] = mapped_column(String(80))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    digest: Mapped[str] = mapped_column(String(80), unique=True)
    path: Mapped[str]
    status: Mapped[str] = mapped_column(String(16))
    card_path: Mapped[str]
    created: Mapped[datetime]
