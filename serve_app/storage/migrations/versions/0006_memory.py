"""Running summaries, and what the model read and wrote in place of an item's own text."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "summaries",
        sa.Column("log_id", sa.String(80), primary_key=True),
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("tokens", sa.Integer, nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(
            ["log_id", "seq"], ["items.log_id", "items.seq"], onupdate="CASCADE", ondelete="CASCADE"
        ),
    )
    op.create_table(
        "prompt_texts",
        sa.Column("log_id", sa.String(80), primary_key=True),
        sa.Column("item_id", sa.String(80), primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(
            ["log_id", "item_id"], ["items.log_id", "items.item_id"], onupdate="CASCADE", ondelete="CASCADE"
        ),
    )
