"""Stores that move to another encoder: several tables of a store, each of one encoder."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    with op.batch_alter_table("vector_stores") as stores:
        stores.add_column(sa.Column("table_suffix", sa.String(20), nullable=False, server_default=""))
    with op.batch_alter_table("store_versions") as versions:
        versions.add_column(sa.Column("table_suffix", sa.String(20), nullable=False, server_default=""))
        versions.add_column(sa.Column("encoder", sa.String(255), nullable=False, server_default=""))
    _set_encoders()
    op.create_table(
        "reembeddings",
        sa.Column("store_id", sa.String(80), primary_key=True),
        sa.Column("encoder", sa.String(255), nullable=False),
        sa.Column("table_suffix", sa.String(20), nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("error_code", sa.String(40)),
        sa.Column("error_message", sa.Text),
        sa.Column("files_done", sa.Integer, nullable=False),
        sa.Column("files_total", sa.Integer, nullable=False),
        sa.Column("seconds_left", sa.Integer),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("lease_until", sa.Float, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(["store_id"], ["vector_stores.id"], ondelete="CASCADE"),
    )


def _set_encoders() -> None:
    """Until now a store had one encoder all its life."""
    stores = sa.table("vector_stores", sa.column("id", sa.String), sa.column("encoder", sa.String))
    versions = sa.table("store_versions", sa.column("store_id", sa.String), sa.column("encoder", sa.String))
    encoder = sa.select(stores.c.encoder).where(stores.c.id == versions.c.store_id).scalar_subquery()
    op.get_bind().execute(sa.update(versions).values(encoder=encoder))
