"""The first schema: logs, items and responses of conversations; files and vector stores."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _create_conversations()
    _create_knowledge()


def _create_conversations() -> None:
    op.create_table(
        "logs",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("is_conversation", sa.Boolean, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("head", sa.Integer, nullable=False),
        sa.Column("parent_id", sa.String(80)),
        sa.Column("parent_seq", sa.Integer),
    )
    op.create_index("logs_by_parent", "logs", ["parent_id"])
    op.create_table(
        "items",
        sa.Column("log_id", sa.String(80), primary_key=True),
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("item_id", sa.String(80), nullable=False),
        sa.Column("idempotency_key", sa.String(300), nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("body", sa.JSON),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["log_id"], ["logs.id"], ondelete="CASCADE"),
    )
    op.create_index("items_by_id", "items", ["log_id", "item_id"], unique=True)
    op.create_index("items_by_idempotency_key", "items", ["log_id", "idempotency_key"], unique=True)
    op.create_table(
        "responses",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("log_id", sa.String(80), nullable=False),
        sa.Column("first_seq", sa.Integer, nullable=False),
        sa.Column("input_count", sa.Integer, nullable=False),
        sa.Column("last_seq", sa.Integer, nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["log_id"], ["logs.id"], ondelete="CASCADE"),
    )
    op.create_index("responses_by_idempotency_key", "responses", ["idempotency_key"], unique=True)
    op.create_index("responses_by_log", "responses", ["log_id"])


def _create_knowledge() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("filename", sa.String(1024), nullable=False),
        sa.Column("media_type", sa.String(100), nullable=False),
        sa.Column("purpose", sa.String(40), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
    )
    op.create_table(
        "vector_stores",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("name", sa.String(512)),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("encoder", sa.String(255), nullable=False),
        sa.Column("chunking_strategy", sa.JSON, nullable=False),
        sa.Column("expires_after", sa.JSON),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("last_active_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "vector_store_files",
        sa.Column("store_id", sa.String(80), primary_key=True),
        sa.Column("file_id", sa.String(80), primary_key=True),
        sa.Column("batch_id", sa.String(80)),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("error_code", sa.String(40)),
        sa.Column("error_message", sa.Text),
        sa.Column("attributes", sa.JSON, nullable=False),
        sa.Column("chunking_strategy", sa.JSON, nullable=False),
        sa.Column("usage_bytes", sa.BigInteger, nullable=False),
        sa.Column("passages", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("lease_until", sa.Float, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(["store_id"], ["vector_stores.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["file_id"], ["files.id"], ondelete="CASCADE"),
    )
    op.create_index("vector_store_files_by_status", "vector_store_files", ["status", "lease_until"])
    op.create_index("vector_store_files_by_batch", "vector_store_files", ["batch_id"])
    op.create_table(
        "file_batches",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("store_id", sa.String(80), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["store_id"], ["vector_stores.id"], ondelete="CASCADE"),
    )
