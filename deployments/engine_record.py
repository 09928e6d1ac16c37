"""What vLLM says of its engine after each step, beside what it tells Ray's metrics."""

from typing import Any

from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import CachingMetrics, IterationStats, SchedulerStats

from serve_app.counts import Count, Counts
from serve_app.vitals import EngineVitals


# vLLM's classes have no types where its package is not installed.
class EngineRecord(StatLoggerBase):  # type: ignore[misc]
    """One for all engines of a replica: with data parallelism there are several."""

    def __init__(self, model: str, counts: Counts) -> None:
        self._model = model
        self._counts = counts
        self._schedulers: dict[int, SchedulerStats] = {}
        self._prefix_cache = CachingMetrics()
        self._config: VllmConfig | None = None

    def of_engine(self, config: VllmConfig, engine_index: int) -> "EngineRecord":
        """For vLLM, as a factory of stat loggers: it calls this once for each engine, before its first step."""
        self._config = config
        return self

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        # Of images, which are not taken here.
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        if scheduler_stats is not None:
            self._schedulers[engine_idx] = scheduler_stats
            self._prefix_cache.observe(scheduler_stats.prefix_cache_stats)
        if iteration_stats is not None:
            self._counts.add(Count(self._model, "output_token"), iteration_stats.num_generation_tokens)
            for finished in iteration_stats.finished_requests:
                self._counts.add_time(self._model, "queue", finished.queued_time)

    def log_engine_initialized(self) -> None: ...

    def vitals(self) -> EngineVitals:
        assert self._config is not None, "vLLM has begun"
        schedulers, cache = self._schedulers.values(), self._config.cache_config
        return EngineVitals(
            model=self._model,
            running=sum(each.num_running_reqs for each in schedulers),
            waiting=sum(each.num_waiting_reqs + each.num_skipped_waiting_reqs for each in schedulers),
            kv_cache_usage=sum(each.kv_cache_usage for each in schedulers) / max(1, len(schedulers)),
            kv_cache_tokens=(cache.num_gpu_blocks or 0) * cache.block_size,
            prefix_cache_queries=self._prefix_cache.aggregated_query_total,
            prefix_cache_hits=self._prefix_cache.aggregated_query_hit,
        )
