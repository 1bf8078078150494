"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make every table. Written out, not taken from the models: a revision never changes."""
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("salt", sa.LargeBinary(16), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("created", sa.DateTime, nullable=False),
        sa.Column("revoked", sa.DateTime),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
    )
    op.create_table(
        "datasets",
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("digest", sa.String(80), nullable=False),
        sa.Column("path", sa.String, nullable=False),
        sa.Column("rows", sa.Integer, nullable=False),
        sa.Column("schema", sa.String(32), nullable=False),
        sa.Column("created", sa.DateTime, nullable=False),
        sa.Column("actor", sa.String(160), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_datasets"),
    )
    op.create_index("ix_datasets_digest", "datasets", ["digest"])
    op.create_table(
        "models",
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("digest", sa.String(80), nullable=False),
        sa.Column("release", sa.String(160), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_models"),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("submission_id", sa.String(128)),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("created", sa.DateTime, nullable=False),
        sa.Column("started", sa.DateTime),
        sa.Column("finished", sa.DateTime),
        sa.Column("actor", sa.String(160), nullable=False),
        sa.Column("base", sa.String(128), nullable=False),
        sa.Column("dataset", sa.String(128), nullable=False),
        sa.Column("adapter", sa.String(128)),
        sa.Column("error", sa.String),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("submission_id", name="uq_jobs_submission_id"),
    )
    op.create_index("ix_jobs_status", "jobs", ["status"])
    op.create_index("ix_jobs_created", "jobs", ["created"])
    op.create_table(
        "adapters",
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("base", sa.String(128), nullable=False),
        sa.Column("base_digest", sa.String(80), nullable=False),
        sa.Column("dataset_digest", sa.String(80), nullable=False),
        sa.Column("job_id", sa.String(64)),
        sa.Column("digest", sa.String(80), nullable=False),
        sa.Column("path", sa.String, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("card_path", sa.String, nullable=False),
        sa.Column("created", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_adapters"),
        sa.UniqueConstraint("digest", name="uq_adapters_digest"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_adapters_job_id_jobs"),
    )


def downgrade() -> None:
    """There is nothing before the first revision."""
    raise NotImplementedError("a registry is not migrated back; restore a backup")
