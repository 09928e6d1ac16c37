"""What keeps a store fast and small: its indices, its fragments, old versions, and what killed writers left behind.

Everything here runs beside searches and changes. New passages go into small fragments and index segments, and the
newest of them are merged as soon as they outgrow the one before: so there are few at any time, and a passage is moved
only O(log n) times in its life.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from math import inf
from pathlib import Path
from statistics import median
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from tenacity import RetryCallState, retry, stop_after_attempt, wait_random_exponential

from serve_app.knowledge.commit import is_conflict, retry_conflicts
from serve_app.types.knowledge import IndexState, Optimization, TableState

logger = logging.getLogger(__name__)

KEEP_VERSIONS_FOR = timedelta(minutes=2)
"""A search that is under way, for 30 s at most, reads the version it began with. Tagged versions are kept for good."""
KEEP_LEFTOVERS_FOR = timedelta(hours=1)
"""Younger ones may belong to an append that is under way."""

_GROWTH = 2
"""A segment is merged with those after it as soon as they hold half as many rows: a million passages have about six
segments, which cost a search 15 % (sixteen would double it)."""
_MAX_FRAGMENT_ROWS = 2**20
_MAX_MERGED = 0.25
"""Of a store at a time: the versions that are kept need the disk space of what was merged as well."""
_MIN_MERGED_ROWS = 2_000
"""However small the store: 4 MB."""
_MAX_DELETED = 0.1
"""Of all rows; their space is freed together, because each time the index of what remains is written anew."""

_REST = 10
"""Maintenance rests ten times as long as it worked, and so takes at most a tenth of the time."""
_MIN_REST_S = 1.0
_BACKLOG_ROWS = 500
"""Each thousand passages that the text index does not hold yet cost a text search 20 ms: this many do not wait."""

_PROBES = 5
_TEMPORARY = "data/.tmp*"


@dataclass(frozen=True, slots=True)
class Duty:
    store_id: str
    is_cleanup: bool
    """Whether old versions are to be removed; otherwise what is new is to be indexed and merged."""


class Rota:
    """Which stores are to be looked after, and when. Any thread may say that a store has changed."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._changed_rows: dict[str, int] = {}
        self._maintained_at: dict[str, float] = {}
        self._cleanup_at: dict[str, float] = {}
        self._rest_until = 0.0

    def changed(self, store_id: str, rows: int) -> None:
        with self._lock:
            self._changed_rows[store_id] = self._changed_rows.get(store_id, 0) + rows

    def take(self, now: float) -> Duty | None:
        """What to do now, if there is anything; `done` is to be told of it."""
        with self._lock:
            store_id = max(self._changed_rows, key=self._changed_rows.__getitem__, default=None)
            is_backlog = store_id is not None and self._changed_rows[store_id] >= _BACKLOG_ROWS
            if now < self._rest_until and not is_backlog:
                return None
            untidy = next((each for each, due in self._cleanup_at.items() if due <= now), None)
            if untidy is not None and not is_backlog:
                del self._cleanup_at[untidy]
                return Duty(untidy, is_cleanup=True)
            if store_id is not None:
                del self._changed_rows[store_id]
                return Duty(store_id, is_cleanup=False)
            return None

    def done(self, duty: Duty, began: float, ended: float) -> None:
        with self._lock:
            self._rest_until = ended + max(_MIN_REST_S, _REST * (ended - began))
            if not duty.is_cleanup:
                self._maintained_at[duty.store_id] = ended
            # What was maintained has left old versions, which are to go when nobody can be reading them any more.
            due = self._maintained_at[duty.store_id] + KEEP_VERSIONS_FOR.total_seconds()
            if due > began:
                self._cleanup_at.setdefault(duty.store_id, due)


# LanceDB's tables are not typed here, nor are Lance's datasets.
def maintain(table: Any, indices: Mapping[str, Any], *, growth: float = _GROWTH) -> None:
    """Do what is due: bring `indices` (by column) up to date, and merge small fragments.

    Does nothing and costs milliseconds if nothing is due. With an infinite growth all fragments and segments are merged
    into one each.
    """
    _create_missing(table, indices)
    _index_new_rows(table, growth)
    _compact(table, growth)  # after that: only fragments of one segment can be merged


def clean_up(table: Any, folder: Path) -> None:
    """Remove old versions and leftovers from the disk. Reads the manifests of all versions, some 0.2 ms each."""
    table.to_lance().cleanup_old_versions(KEEP_VERSIONS_FOR, error_if_tagged_old_versions=False)
    sweep(folder, KEEP_LEFTOVERS_FOR)


def sweep(folder: Path, older_than: timedelta) -> None:
    """Remove the files that a writer who was killed in mid-append has left, and that LanceDB itself never removes."""
    newest_s = time.time() - older_than.total_seconds()
    for path in folder.glob(_TEMPORARY):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < newest_s:
                path.unlink()


def optimize(
    table: Any, folder: Path, indices: Mapping[str, Any], remove_duplicates: Callable[[], int]
) -> Optimization:
    """Do at once all that there is to do, and measure what it did. Takes seconds, for a million passages minutes."""
    started = time.monotonic()
    before = _state(table, folder)
    duplicates = remove_duplicates()
    maintain(table, indices, growth=inf)
    clean_up(table, folder)
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
    """Of the columns that searches are about, as far as they have an index."""
    return {
        index.columns[0]: IndexState(index.index_type, index.num_indexed_rows, index.num_unindexed_rows)
        for index in table.list_indices()
        if index.columns[0] in ("text", "vector")
    }


def superseded(table: Any) -> list[tuple[str, int]]:
    """Files whose passages were written by more than one claim, each with the fence of the last."""
    fences = table.search().select(["file_id", "fence"]).to_arrow()
    spread = pa.TableGroupBy(fences, "file_id").aggregate([("fence", "min"), ("fence", "max")])
    doubled = spread.filter(pc.less(spread["fence_min"], spread["fence_max"]))
    return [(row["file_id"], row["fence_max"]) for row in doubled.to_pylist()]


# --- the steps ----------------------------------------------------------------------------------


def _create_missing(table: Any, indices: Mapping[str, Any]) -> None:
    indexed = {column for index in table.list_indices() for column in index.columns}
    for column, config in indices.items():
        if column not in indexed:
            table.create_index(column, config=config)


@retry_conflicts
def _index_new_rows(table: Any, growth: float) -> None:
    """Put new rows into a segment of every index, together with the newest segments."""
    dataset = table.to_lance()
    rows = {fragment.fragment_id: fragment.metadata.num_rows for fragment in dataset.get_fragments()}
    by_count: dict[int, list[str]] = defaultdict(list)
    retrained: list[str] = []
    for index in dataset.describe_indices():
        segments = [sum(rows.get(each, 0) for each in segment.fragment_ids) for segment in index.segments]
        new_rows = sum(rows.values()) - sum(segments)
        if new_rows == 0 and (growth < inf or len(segments) == 1):
            continue
        count = _newest_to_merge([*segments, new_rows], growth) - 1
        # A vector index keeps the partitions that it was made with: one that has grown by half gets new ones.
        is_outgrown = index.field_names == ["vector"] and count == len(segments)
        (retrained if is_outgrown else by_count[count]).append(index.name)
    for count, names in by_count.items():
        dataset.optimize.optimize_indices(index_names=names, num_indices_to_merge=count)
    if retrained:
        dataset.optimize.optimize_indices(index_names=retrained, retrain=True)


def _leave(state: RetryCallState) -> None:
    logger.info("a store changes all the time: it is compacted later (%d attempts)", state.attempt_number)


# A change that commits first wins over a compaction, which is then to be done again. Nothing is lost without it.
@retry(
    retry=is_conflict,
    wait=wait_random_exponential(multiplier=0.05, max=2),
    stop=stop_after_attempt(10),
    retry_error_callback=_leave,
)
def _compact(table: Any, growth: float) -> None:
    """Merge the newest fragments, and make room where much was deleted."""
    dataset = table.to_lance()
    fragments = [fragment.metadata for fragment in dataset.get_fragments()]
    rows = [fragment.num_rows for fragment in fragments]
    merged = _newest_to_merge(rows, growth, inf if growth == inf else max(_MAX_MERGED * sum(rows), _MIN_MERGED_ROWS))
    wanted = {fragment.id for fragment in fragments[len(fragments) - merged :]} if merged > 1 else set()
    deleted = sum(fragment.num_deletions for fragment in fragments)
    if deleted > _MAX_DELETED * (deleted + sum(rows)):
        wanted |= {fragment.id for fragment in fragments if fragment.num_deletions > 0}
    if wanted:
        dataset.optimize.compact_files(
            target_rows_per_fragment=min(sum(rows[len(rows) - merged :]), _MAX_FRAGMENT_ROWS),
            materialize_deletions_threshold=0.0,
            excluded_fragment_ids=[fragment.id for fragment in fragments if fragment.id not in wanted],
            num_threads=1,  # chat needs the others
        )


def _newest_to_merge(rows: Sequence[int], growth: float, most: float = inf) -> int:
    """How many of the last of these, oldest first, to make one of, of at most `most` rows: until the next has over
    `growth` times as many."""
    total = count = 0
    for each in reversed(rows):
        if count > 0 and (each > growth * total or total + each > most):
            break
        total += each
        count += 1
    return count


# --- what optimising did ------------------------------------------------------------------------


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
