"""Lists of files that cost the same however many there are."""

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.create_index("files_by_creation", "files", ["created_at", "id"])
    op.create_index("vector_store_files_by_creation", "vector_store_files", ["store_id", "created_at", "file_id"])
