"""Documents and versions: keys of files, and the versions of a store."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    with op.batch_alter_table("vector_stores") as stores:
        stores.add_column(sa.Column("retention", sa.JSON))
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
        files.add_column(sa.Column("version", sa.Integer))
        files.add_column(sa.Column("since_version", sa.Integer))
        files.add_column(sa.Column("until_version", sa.Integer))
        files.add_column(sa.Column("same_as", sa.String(80)))
        files.add_column(sa.Column("completed_at", sa.Float))
    _set_keys()
    with op.batch_alter_table("vector_store_files") as files:
        files.alter_column("key", existing_type=sa.String(1024), nullable=False)
        files.alter_column("version", existing_type=sa.Integer, nullable=False)
        files.create_index("vector_store_files_by_key", ["store_id", "key"])
        files.create_index("vector_store_files_by_completion", ["completed_at"])


def _set_keys() -> None:
    """A file that was there before is known by its path, or is a document of its own: nothing replaces it unasked."""
    files = sa.table(
        "vector_store_files",
        sa.column("store_id", sa.String),
        sa.column("file_id", sa.String),
        sa.column("attributes", sa.JSON),
        sa.column("key", sa.String),
        sa.column("version", sa.Integer),
    )
    connection = op.get_bind()
    connection.execute(sa.update(files).values(key=files.c.file_id, version=1))
    for row in connection.execute(sa.select(files)).mappings().all():
        path = row["attributes"].get("path")
        if isinstance(path, str) and path:
            is_file = (files.c.store_id == row["store_id"]) & (files.c.file_id == row["file_id"])
            connection.execute(sa.update(files).where(is_file).values(key=path))
