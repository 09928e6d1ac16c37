"""Our metrics where Prometheus finds them: on the pages that Ray's dashboard names."""

import openai
from prometheus_client.parser import text_string_to_metric_families

from tests.served.application import DASHBOARD_PORT, ask_ray, wait_until

EXPORT_TIMEOUT_S = 120

Samples = dict[frozenset[tuple[str, str]], float]
"""The values of one name by their labels, which say of which replica they are."""


def pages() -> list[str]:
    """Those that Prometheus is told to read, as they are now."""
    services = ask_ray(f"http://127.0.0.1:{DASHBOARD_PORT}/api/prometheus/sd").json()
    targets = [target for service in services for target in service["targets"]]
    return [ask_ray(f"http://{target}/metrics").text for target in targets]


def read_samples(*names: str) -> dict[str, Samples]:
    samples: dict[str, Samples] = {name: {} for name in names}
    for page in pages():
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.name in samples:
                    samples[sample.name][frozenset(sample.labels.items())] = sample.value
    return samples


def growth(before: Samples, now: Samples, **labels: str) -> float:
    """Over all replicas together. One that has died takes nothing from it: Ray forgets its samples after a while."""
    return sum(value - before.get(key, 0) for key, value in now.items() if labels.items() <= dict(key).items())


def new_store(client: openai.OpenAI) -> str:
    store_id = client.vector_stores.create(name="metrics").id
    client.vector_stores.files.upload_and_poll(
        vector_store_id=store_id, file=("ferry.txt", b"The ferry sails at nine."), poll_interval_ms=200
    )
    return store_id


def test_searches_answers_and_ingestion_appear_where_prometheus_looks(client: openai.OpenAI) -> None:
    names = {
        "ray_rayconteur_ingested_files_total": "Indexer",
        "ray_rayconteur_ingested_passages_total": "Indexer",
        "ray_rayconteur_search_seconds_count": "Gateway",
        "ray_rayconteur_query_cache_hits_total": "Gateway",
        "ray_rayconteur_query_cache_misses_total": "Gateway",
        "ray_rayconteur_generations_total": "Gateway",
        "ray_rayconteur_first_token_seconds_count": "Gateway",
    }
    before = read_samples(*names)
    store_id = new_store(client)
    query = f"When does the ferry of {store_id} sail?"
    for _ in range(3):
        client.vector_stores.search(store_id, query=query)
    with client.responses.create(input="Hello", max_output_tokens=2, stream=True) as stream:
        assert list(stream)
    expected = dict(zip(names, (1, 1, 3, 2, 1, 1, 1), strict=True))

    # At least: what an earlier test did may be exported only now.
    def are_added() -> bool:
        now = read_samples(*names)
        return all(growth(before[name], now[name], deployment=names[name]) >= count for name, count in expected.items())

    wait_until(are_added, EXPORT_TIMEOUT_S, f"the metrics show {expected}")
    gauges = ("ingestion_queue_files", "ingestion_oldest_seconds", "unindexed_rows", "replica_memory_bytes")
    wanted = tuple(f"ray_rayconteur_{gauge}{{" for gauge in (*gauges, "cache_bytes", "cache_entries"))

    # Ray shows a gauge for two of its report intervals after it was set: some every 5 s, some every 15.
    def are_shown() -> bool:
        shown = "".join(pages())
        seen.update(name for name in wanted if name in shown)
        return seen == set(wanted)

    seen = set[str]()
    wait_until(are_shown, EXPORT_TIMEOUT_S, f"each of the gauges {wanted} was shown")
    client.vector_stores.delete(store_id)
