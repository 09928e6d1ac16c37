"""`/v1/stats`, how the whole application is doing, and `/v1/admin/memory/release`: both ask every replica."""

from collections import Counter
from collections.abc import Sequence
from functools import reduce
from operator import add

from fastapi import APIRouter

from serve_app.api.context import InContext
from serve_app.api.statistics import times_to_json
from serve_app.api.wire import Wire
from serve_app.counts import Count, Counted
from serve_app.generation.counted import models_of, statistics_of
from serve_app.types import Json
from serve_app.vitals import CACHES, CacheName, CacheSize, EngineVitals, Released, ReplicaVitals, Silence

router = APIRouter(prefix="/v1", tags=["administration"])


class ReleaseMemory(Wire):
    caches: list[CacheName] | None = None
    """None: all of them."""


@router.get("/stats")
async def get_stats(context: InContext) -> Json:
    """What there is now, on every node; and what the replicas have counted since they started, and lately."""
    answers = await context.parts.replicas.vitals()
    replicas = [each for each in answers if isinstance(each, ReplicaVitals)]
    counted = reduce(add, (each.counted for each in replicas if each.counted), Counted())
    models = sorted(set(context.config.models) | models_of(counted))
    return {
        "object": "stats",
        "nodes": _nodes_to_json(replicas),
        "replicas": [_replica_to_json(each) for each in replicas],
        "silent": _silent_to_json(answers),
        "models": [_model_to_json(model, counted) for model in models],
    }


@router.post("/admin/memory/release")
async def release_memory(context: InContext, body: ReleaseMemory | None = None) -> Json:
    """Answers once all replicas have let go of their caches. Requests in flight go on."""
    caches = CACHES if body is None or body.caches is None else body.caches
    answers = await context.parts.replicas.release(caches)
    released = [each for each in answers if isinstance(each, Released)]
    return {
        "object": "memory.release",
        "freed_bytes": sum(each.rss_bytes_before - each.rss_bytes_after for each in released),
        "replicas": [_released_to_json(each) for each in released],
        "silent": _silent_to_json(answers),
    }


def _nodes_to_json(replicas: Sequence[ReplicaVitals]) -> list[Json]:
    by_node: dict[str, list[ReplicaVitals]] = {}
    for replica in replicas:
        by_node.setdefault(replica.node, []).append(replica)
    return [_node_to_json(node, there) for node, there in by_node.items()]


def _node_to_json(node: str, replicas: Sequence[ReplicaVitals]) -> Json:
    memory = replicas[-1].node_memory
    gpus = [each.gpu for each in replicas if each.gpu]
    return {
        "node": node,
        "memory_total_bytes": memory.total_bytes,
        "memory_used_bytes": memory.used_bytes,
        "rss_bytes": sum(each.rss_bytes for each in replicas),
        "gpu_allocated_bytes": sum(each.allocated_bytes for each in gpus) if gpus else None,
    }


def _replica_to_json(replica: ReplicaVitals) -> Json:
    return {
        "deployment": replica.deployment,
        "replica": replica.replica,
        "node": replica.node,
        "pid": replica.pid,
        "started_at": int(replica.started_at),
        "rss_bytes": replica.rss_bytes,
        "gpu_allocated_bytes": replica.gpu and replica.gpu.allocated_bytes,
        "gpu_peak_bytes": replica.gpu and replica.gpu.peak_bytes,
        "caches": {name: _size_to_json(size) for name, size in replica.caches.items() if size != CacheSize()},
        "engine": replica.engine and _engine_to_json(replica.engine),
    }


def _engine_to_json(engine: EngineVitals) -> Json:
    queries = engine.prefix_cache_queries
    return {
        "model": engine.model,
        "running": engine.running,
        "waiting": engine.waiting,
        "kv_cache_usage": round(engine.kv_cache_usage, 4),
        "kv_cache_tokens": engine.kv_cache_tokens,
        "prefix_cache_hit_rate": round(engine.prefix_cache_hits / queries, 4) if queries else None,
    }


def _model_to_json(model: str, counted: Counted) -> Json:
    last_minute = _counts_to_json(model, counted.last_minute)
    per_s = last_minute["output_tokens"] / counted.minute_s if counted.minute_s else 0.0
    return {
        "model": model,
        "last_minute": {**last_minute, "output_tokens_per_s": round(per_s, 2)},
        "since_start": _counts_to_json(model, counted.since_start),
    }


def _counts_to_json(model: str, counts: Counter[Count]) -> Json:
    statistics = statistics_of(model, counts)
    return {
        "requests": statistics.requests,
        "cancelled": statistics.cancelled,
        "errors": statistics.errors,
        "first_token": times_to_json(statistics.first_token),
        "between_tokens": times_to_json(statistics.between_tokens),
        "queue": times_to_json(statistics.queue),
        "output_tokens": statistics.output_tokens,
    }


def _released_to_json(released: Released) -> Json:
    return {
        "deployment": released.deployment,
        "replica": released.replica,
        "node": released.node,
        "rss_bytes_before": released.rss_bytes_before,
        "rss_bytes_after": released.rss_bytes_after,
        "caches": {each.name: {"released": each.is_released, **_size_to_json(each.freed)} for each in released.caches},
    }


def _silent_to_json(answers: Sequence[ReplicaVitals | Released | Silence]) -> list[Json]:
    return [{"deployment": each.deployment, "message": each.message} for each in answers if isinstance(each, Silence)]


def _size_to_json(size: CacheSize) -> Json:
    return {"entries": size.entries, "bytes": size.size_bytes}
