"""Our metrics where Prometheus finds them: on the pages that Ray's dashboard names."""

import os

import httpx
import openai
from prometheus_client.parser import text_string_to_metric_families

from serve_app.cli.cluster import ray_token
from tests.served.application import DASHBOARD_PORT, wait_until

EXPORT_TIMEOUT_S = 60


def pages() -> list[str]:
    """Those that Prometheus is told to read, as they are now."""
    services = httpx.get(
        f"http://127.0.0.1:{DASHBOARD_PORT}/api/prometheus/sd",
        headers={"authorization": f"Bearer {ray_token(os.environ)}"},
        timeout=30,
    )
    targets = [target for service in services.json() for target in service["targets"]]
    return [httpx.get(f"http://{target}/metrics", timeout=30).text for target in targets]


def total(name: str, **labels: str) -> float:
    """The sum of a sample over all replicas; 0 if there is none yet."""
    return sum(
        sample.value
        for page in pages()
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def new_store(client: openai.OpenAI) -> str:
    store_id = client.vector_stores.create(name="metrics").id
    client.vector_stores.files.upload_and_poll(
        vector_store_id=store_id, file=("ferry.txt", b"The ferry sails at nine."), poll_interval_ms=200
    )
    return store_id


def test_searches_and_ingestion_appear_where_prometheus_looks(client: openai.OpenAI) -> None:
    names = {
        "ray_rayconteur_ingested_files_total": "Indexer",
        "ray_rayconteur_ingested_passages_total": "Indexer",
        "ray_rayconteur_search_seconds_count": "Gateway",
        "ray_rayconteur_query_cache_hits_total": "Gateway",
        "ray_rayconteur_query_cache_misses_total": "Gateway",
    }
    before = {name: total(name, deployment=deployment) for name, deployment in names.items()}
    store_id = new_store(client)
    query = f"When does the ferry of {store_id} sail?"
    for _ in range(3):
        client.vector_stores.search(store_id, query=query)
    expected = dict(zip(names, (1, 1, 3, 2, 1), strict=True))

    # At least: what an earlier test did may be exported only now.
    def are_added() -> bool:
        return all(total(name, deployment=names[name]) - before[name] >= count for name, count in expected.items())

    wait_until(are_added, EXPORT_TIMEOUT_S, f"the metrics show {expected}")
    shown = {sample for page in pages() for sample in page.split() if sample.startswith("ray_rayconteur_")}
    for gauge in ("ingestion_queue_files", "ingestion_oldest_seconds", "unindexed_rows"):
        assert any(sample.startswith(f"ray_rayconteur_{gauge}{{") for sample in shown), gauge
    client.vector_stores.delete(store_id)
