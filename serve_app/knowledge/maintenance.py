"""What keeps a store fast and small: its text index, its fragments, old versions, and what killed writers left behind.

LanceDB does all of it beside searches and appends, which go on meanwhile.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from tenacity import retry, retry_if_exception_message, stop_after_attempt, wait_random_exponential

from serve_app.types import IndexState, Optimization, TableState

MAX_UNINDEXED_ROWS = 1000
"""Each thousand passages that the text index does not hold yet cost a text search about 20 ms."""
MAX_SMALL_FRAGMENTS = 100
"""Each commit leaves a fragment, and a vector search opens all of them."""
KEEP_VERSIONS_FOR = timedelta(hours=1)
"""A search that is under way reads the version it began with; younger versions are never cleaned up."""

_PROBES = 5
_TEMPORARY = "data/.tmp*"


# LanceDB's tables are not typed here.
def needs_maintenance(table: Any) -> bool:
    """Whether searches would notice what `merge` can mend."""
    unindexed: int = table.index_stats("text_idx").num_unindexed_rows
    small_fragments: int = table.stats()["fragment_stats"]["num_small_fragments"]
    return unindexed > MAX_UNINDEXED_ROWS or small_fragments > MAX_SMALL_FRAGMENTS


@retry(
    # A deletion that commits first wins over a compaction, which is then to be done again.
    retry=retry_if_exception_message(match=".*Retryable commit conflict"),
    wait=wait_random_exponential(multiplier=0.05, max=2),
    stop=stop_after_attempt(10),
    reraise=True,
)
def merge(table: Any, folder: Path) -> None:
    """Bring the indices up to date, merge small fragments, and remove old versions and leftovers from the disk."""
    table.optimize(cleanup_older_than=KEEP_VERSIONS_FOR)
    sweep(folder, KEEP_VERSIONS_FOR)


def sweep(folder: Path, older_than: timedelta) -> None:
    """Remove the files that a writer who was killed in mid-append has left, and that LanceDB itself never removes."""
    newest_s = time.time() - older_than.total_seconds()
    for path in folder.glob(_TEMPORARY):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < newest_s:
                path.unlink()


def optimize(table: Any, folder: Path, remove_duplicates: Callable[[], int]) -> Optimization:
    """Do at once all that there is to do, and measure what it did. Takes seconds, for a million passages minutes."""
    started = time.monotonic()
    before = _state(table, folder)
    duplicates = remove_duplicates()
    merge(table, folder)
    after = _state(table, folder)
    return Optimization(
        duplicates_removed=duplicates,
        fragments=(before[0], after[0]),
        size_bytes=(before[1], after[1]),
        search_ms=(before[2], after[2]),
        elapsed_ms=1e3 * (time.monotonic() - started),
    )


def describe(table: Any, folder: Path) -> TableState:
    """What there is, and what its indices hold. Looks at every file of the table, so not for each search."""
    rows = table.count_rows()
    indices = index_states(table)
    return TableState(
        passages=rows,
        fragments=table.stats()["fragment_stats"]["num_fragments"],
        size_bytes=_bytes_under(folder),
        vector=indices.get("vector", IndexState(unindexed_rows=rows)),
        text=indices.get("text", IndexState(unindexed_rows=rows)),
    )


def index_states(table: Any) -> dict[str, IndexState]:
    """By column, of those that have an index."""
    return {
        index.columns[0]: IndexState(index.index_type, index.num_indexed_rows, index.num_unindexed_rows)
        for index in table.list_indices()
    }


def superseded(table: Any) -> list[tuple[str, int]]:
    """Files whose passages were written by more than one claim, each with the fence of the last."""
    fences = table.search().select(["file_id", "fence"]).to_arrow()
    spread = pa.TableGroupBy(fences, "file_id").aggregate([("fence", "min"), ("fence", "max")])
    doubled = spread.filter(pc.less(spread["fence_min"], spread["fence_max"]))
    return [(row["file_id"], row["fence_max"]) for row in doubled.to_pylist()]


def _state(table: Any, folder: Path) -> tuple[int, int, float]:
    """Fragments, bytes on disk, and milliseconds of a vector search for the 10 nearest."""
    fragments: int = table.stats()["fragment_stats"]["num_fragments"]
    return fragments, _bytes_under(folder), _search_ms(table)


def _bytes_under(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        # Another cleans up or writes meanwhile.
        with suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


def _search_ms(table: Any) -> float:
    rows = table.search().select(["vector"]).limit(1).to_arrow()
    if not rows.num_rows:
        return 0.0
    vector = rows["vector"][0].as_py()
    times = []
    for _ in range(_PROBES):
        started = time.perf_counter()
        table.search(vector).distance_type("cosine").limit(10).select(["file_id", "_distance"]).to_arrow()
        times.append(1e3 * (time.perf_counter() - started))
    return median(times)
