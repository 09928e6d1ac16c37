"""`swap`: one commit that removes rows and adds others, so that every search sees both changes or neither.

LanceDB itself has this only as `merge_insert`, which joins the whole table: measured at 190 ms for 100,000 rows, where
this takes 13 ms. So it is done with the operations of Lance, below LanceDB.
"""

from typing import Any

import lance
import pyarrow as pa
from lance.fragment import write_fragments
from tenacity import retry, retry_if_exception_message, stop_after_attempt, wait_random_exponential

_ROWS_OF_A_FRAGMENT = 32
"""A row's address is its fragment's number and, in the lower 32 bits, its place there."""

is_conflict = retry_if_exception_message(match=r"(?s).*(Retryable commit conflict|Commit conflict)")

# Whoever commits first wins; the other looks at the table again.
retry_conflicts = retry(
    retry=is_conflict,
    wait=wait_random_exponential(multiplier=0.05, max=2),
    stop=stop_after_attempt(10),
    reraise=True,
)


# LanceDB's tables are not typed here.
@retry_conflicts
def swap(table: Any, where: str, rows: pa.Table) -> None:
    """Remove the rows that satisfy `where`, and add `rows` (there may be none), in one commit."""
    dataset = table.to_lance()
    found = dataset.scanner(columns=[], filter=where, with_row_address=True).to_table()["_rowaddr"]
    emptied, updated = [], []
    for fragment_id in sorted({address >> _ROWS_OF_A_FRAGMENT for address in found.to_pylist()}):
        left = dataset.get_fragment(fragment_id).delete(where)
        if left is None:
            emptied.append(fragment_id)
        else:
            updated.append(left)
    added = write_fragments(rows, dataset.uri, schema=dataset.schema) if rows.num_rows else []
    if emptied or updated or added:
        change = lance.LanceOperation.Update(
            removed_fragment_ids=emptied, updated_fragments=updated, new_fragments=added
        )
        lance.LanceDataset.commit(dataset, change, read_version=dataset.version)
