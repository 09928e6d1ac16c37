from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from sqlalchemy import insert, select

from serve_app.counts import Times, bucket_of, milliseconds_of
from serve_app.errors import Unavailable
from serve_app.knowledge.catalog import Catalog
from serve_app.knowledge.statistics import (
    CountedRetriever,
    add_tallies,
    load_statistics,
)
from serve_app.metrics import Tally
from serve_app.storage.database import Database, open_database
from serve_app.storage.schema import files, search_tallies, store_versions, vector_store_files
from serve_app.types.knowledge import Ranking, SearchQuery
from tests.fakes import FakeRetriever, RecordedMetrics, build_passage


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """On both kinds, unlike what the neighbours take."""
    with closing(open_database(database_url)) as database:
        yield database


@pytest.fixture
def store_id(database: Database) -> str:
    return new_store(database)


def new_store(database: Database) -> str:
    store_id: str = Catalog(database, "all-minilm-l6-v2").create_store()["id"]
    return store_id


def add_file(database: Database, store_id: str, file_id: str, **columns: Any) -> None:
    file = {
        "id": file_id,
        "filename": "a.txt",
        "media_type": "text/plain",
        "purpose": "assistants",
        "size_bytes": 1,
        "sha256": "",
        "created_at": 1,
    }
    row = {
        "store_id": store_id,
        "file_id": file_id,
        "key": file_id,
        "version": 1,
        "status": "completed",
        "attributes": {},
        "chunking_strategy": {"type": "auto"},
        "usage_bytes": 0,
        "passages": 1,
        "created_at": 1,
        "fence": 1,
        "lease_until": 0.0,
        "attempts": 1,
    }
    with database.write() as connection:
        connection.execute(insert(files).values(file))
        connection.execute(insert(vector_store_files).values(row | columns))


# Times


def test_mean_and_percentiles_are_those_of_the_searches(database: Database, store_id: str) -> None:
    seconds = np.random.default_rng(7).lognormal(-4, 0.8, 20_000)
    add_tallies(database, Counter(Tally(store_id, "search", bucket_of(float(each))) for each in seconds))

    times = load_statistics(database, store_id).searches

    p50, p95, p99 = np.percentile(seconds, [50, 95, 99])
    assert times.count == 20_000
    assert times.mean_ms == pytest.approx(1e3 * seconds.mean(), rel=0.01)
    assert times.p50_ms == pytest.approx(1e3 * p50, rel=0.03)
    assert times.p95_ms == pytest.approx(1e3 * p95, rel=0.03)
    assert times.p99_ms == pytest.approx(1e3 * p99, rel=0.03)


def test_one_search_is_every_percentile(database: Database, store_id: str) -> None:
    add_tallies(database, Counter([Tally(store_id, "search", 100)]))

    times = load_statistics(database, store_id).searches

    assert {times.mean_ms, times.p50_ms, times.p95_ms, times.p99_ms} == {milliseconds_of(100)}


def test_without_a_search_there_are_no_times(database: Database, store_id: str) -> None:
    assert load_statistics(database, store_id).searches == Times(0)


# The database


def test_gateways_that_add_at_once_lose_nothing(database: Database) -> None:
    stores = [new_store(database) for _ in range(3)]
    counted: Counter[Tally] = Counter()
    for store_id in stores:
        counted[Tally(store_id, "search", 3)] = 2
        counted[Tally(store_id, "search", 4)] = 1
        counted[Tally(store_id, "query_cache_hit")] = 5
        counted[Tally(store_id, "query_cache_miss")] = 0
    other_way_round = Counter(dict(reversed(counted.items())))

    with ThreadPoolExecutor(4) as gateways:
        adding = [gateways.submit(add_tallies, database, each) for each in (counted, other_way_round) * 10]
        for each in adding:
            each.result()

    for store_id in stores:
        statistics = load_statistics(database, store_id)
        assert statistics.searches.count == 60
        assert (statistics.query_cache_hits, statistics.query_cache_misses) == (100, 0)
        assert statistics.failed_searches == 0


def test_a_store_that_is_gone_is_passed_over_and_takes_its_figures_with_it(database: Database, store_id: str) -> None:
    other = new_store(database)
    counted = Counter([Tally(store_id, "failed_search"), Tally(other, "failed_search")])
    add_tallies(database, counted)

    Catalog(database, "all-minilm-l6-v2").delete_store(other)
    add_tallies(database, counted)

    assert load_statistics(database, store_id).failed_searches == 2
    with database.read() as connection:
        assert set(connection.execute(select(search_tallies.c.store_id)).scalars()) == {store_id}


def test_documents_are_the_files_that_are_found(database: Database, store_id: str) -> None:
    add_file(database, store_id, "file_now", key="a.txt", since_version=2)
    add_file(database, store_id, "file_before", key="a.txt", since_version=1, until_version=2)
    add_file(database, store_id, "file_same", same_as="file_now")
    add_file(database, store_id, "file_other")
    add_file(database, store_id, "file_failed", status="failed")
    add_file(database, store_id, "file_waiting", status="in_progress")
    add_file(database, new_store(database), "file_elsewhere")

    assert load_statistics(database, store_id).documents == 2


def test_versions_are_those_that_are_kept(database: Database, store_id: str) -> None:
    row = {"store_id": store_id, "table_version": 9, "created_at": 1.0, "files": 1, "passages": 1, "pinned": False}
    with database.write() as connection:
        connection.execute(insert(store_versions), [{**row, "version": version} for version in (1, 2, 5)])

    assert load_statistics(database, store_id).versions == 3


# Counting


async def test_searches_are_counted_by_store_and_timed_by_mode() -> None:
    tallies, metrics = Counter[Tally](), RecordedMetrics()
    retriever = CountedRetriever(FakeRetriever([build_passage(1, "text")]), tallies, metrics)
    vector = np.array([1, 0], dtype=np.float32)

    for ranking in (Ranking(), Ranking(), Ranking(text_weight=0), Ranking(embedding_weight=0)):
        (passage,) = await retriever.search(SearchQuery("vs_1", "a", vector, ranking=ranking))
        assert passage.text == "text"
    await retriever.search(SearchQuery("vs_2", "a", vector))

    assert {tally.kind for tally in tallies} == {"search"}
    by_store = Counter(dict.fromkeys(("vs_1", "vs_2"), 0))
    for tally, count in tallies.items():
        by_store[tally.store_id] += count
    assert by_store == {"vs_1": 4, "vs_2": 1}
    assert {key: len(times) for key, times in metrics.observed.items()} == {
        ("rayconteur_search_seconds", "hybrid"): 3,
        ("rayconteur_search_seconds", "vector"): 1,
        ("rayconteur_search_seconds", "text"): 1,
    }


async def test_a_failure_is_counted_apart_and_raised_as_it_is() -> None:
    tallies, metrics = Counter[Tally](), RecordedMetrics()
    fake = FakeRetriever()
    fake.failure = Unavailable("no index")

    with pytest.raises(Unavailable, match="no index"):
        await CountedRetriever(fake, tallies, metrics).search(SearchQuery("vs_1", "a", None))

    assert tallies == {Tally("vs_1", "failed_search"): 1}
    assert metrics.totals == {("rayconteur_search_failures", "Unavailable"): 1}
    assert metrics.observed == {}
