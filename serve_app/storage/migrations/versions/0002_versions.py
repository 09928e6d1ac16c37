"""Documents and versions: keys of files, and the versions of a store."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    with op.batch_alter_table("vector_stores") as stores:
        stores.add_column(sa.Column("retention", sa.JSON))
        stores.add_column(sa.Column("table_version", sa.BigInteger, nullable=False, server_default="0"))
    # Apart, or SQLite's copy of the table would have no default for the rows that it copies.
    with op.batch_alter_table("vector_stores") as stores:
        stores.alter_column("table_version", server_default=None)
    op.create_table(
        "store_versions",
        sa.Column("store_id", sa.String(80), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("table_version", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("files", sa.Integer, nullable=False),
        sa.Column("passages", sa.Integer, nullable=False),
        sa.Column("pinned", sa.Boolean, nullable=False),
        sa.ForeignKeyConstraint(["store_id"], ["vector_stores.id"], ondelete="CASCADE"),
    )
    with op.batch_alter_table("vector_store_files") as files:
        files.add_column(sa.Column("key", sa.String(1024)))
        files.add_column(sa.Column("since_version", sa.Integer))
        files.add_column(sa.Column("until_version", sa.Integer))
        files.add_column(sa.Column("same_as", sa.String(80)))
        files.add_column(sa.Column("completed_at", sa.Float))
    # A file that was there before is a document of its own, by its id: nothing replaces it by accident.
    op.execute("UPDATE vector_store_files SET key = file_id, since_version = 1 WHERE status = 'completed'")
    op.execute("UPDATE vector_store_files SET key = file_id WHERE status <> 'completed'")
    with op.batch_alter_table("vector_store_files") as files:
        files.alter_column("key", existing_type=sa.String(1024), nullable=False)
        files.create_index("vector_store_files_by_key", ["store_id", "key"])
