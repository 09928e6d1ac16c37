"""What the indexer measures at intervals: what waits for it, and what its indices do not hold yet."""

import time
from contextlib import suppress

from sqlalchemy import func, select

from serve_app.knowledge.index import IndexWriter
from serve_app.metrics import INGESTION_OLDEST_SECONDS, INGESTION_QUEUE_FILES, UNINDEXED_ROWS, Metrics
from serve_app.storage.database import Database
from serve_app.storage.schema import vector_store_files, vector_stores

_MAX_STORES = 100
"""A look at one takes about a millisecond."""


def measure(database: Database, index: IndexWriter, metrics: Metrics) -> None:
    """Set the gauges. Of the stores it looks at those used last: an index falls behind only where rows are added."""
    waiting = select(func.count(), func.min(vector_store_files.c.created_at)).where(
        vector_store_files.c.status == "in_progress"
    )
    name = vector_stores.c.id + vector_stores.c.table_suffix
    recent = select(name).order_by(vector_stores.c.last_active_at.desc()).limit(_MAX_STORES)
    with database.read() as connection:
        count, oldest = connection.execute(waiting).one()
        tables = connection.execute(recent).scalars().all()
    metrics.set(INGESTION_QUEUE_FILES, count)
    metrics.set(INGESTION_OLDEST_SECONDS, max(0.0, time.time() - oldest) if count else 0.0)

    unindexed = []
    for table in tables:
        # One that is damaged has no rows to wait for; who works with it says so.
        with suppress(ValueError, OSError, RuntimeError):
            unindexed.append(index.unindexed_rows(table))
    for column in ("text", "vector"):
        metrics.set(UNINDEXED_ROWS, max((rows.get(column, 0) for rows in unindexed), default=0), index=column)
