"""Responses that survive: who answers them, what their streams were, and background ones as durable jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("responses", sa.Column("runner_id", sa.String(80)))
    op.add_column("responses", sa.Column("recording", sa.JSON))
    op.create_table(
        "runners",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("heartbeat_at", sa.Float, nullable=False),
    )
    op.create_table(
        "response_jobs",
        sa.Column("response_id", sa.String(80), primary_key=True),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("lease_until", sa.Float, nullable=False),
        sa.ForeignKeyConstraint(["response_id"], ["responses.id"], ondelete="CASCADE"),
    )
    op.create_index("response_jobs_by_lease", "response_jobs", ["lease_until", "created_at"])
    op.create_table(
        "response_journal",
        sa.Column("response_id", sa.String(80), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("events", sa.JSON, nullable=False),
        sa.Column("raw_text", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(["response_id"], ["response_jobs.response_id"], ondelete="CASCADE"),
    )
