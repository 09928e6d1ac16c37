"""What of the database a backup holds."""

import pytest

from serve_app.backup.snapshot import is_backed_up
from serve_app.storage.schema import metadata


@pytest.mark.parametrize("stores", [None, ("vs_1",)])
def test_what_only_the_running_processes_can_go_on_with_is_left_out(stores: tuple[str, ...] | None) -> None:
    left_out = {"backup_jobs", "runners", "response_jobs", "response_journal", "message_facts"}

    kept = {table.name for table in metadata.sorted_tables if is_backed_up(table, stores)}

    assert not kept & left_out
    assert {"files", "vector_stores"} <= kept
    assert stores or kept | left_out == set(metadata.tables)
