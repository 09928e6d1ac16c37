"""The HTTP front: the FastAPI application of `serve_app/api`, with its parts behind Serve handles."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from deployments.adapters import (
    GeneratorsByModel,
    RemoteEmbedder,
    RemoteGenerator,
    RemoteIndexer,
    RemoteReplicas,
    RemoteReranker,
    RemoteRetriever,
    own_handle,
    part_status,
    read_capacities,
    remote_sessions,
)
from deployments.replica import Replica
from serve_app.admission.admissions import Admissions
from serve_app.api.app import check_loops, create_app
from serve_app.config import AppConfig
from serve_app.counts import Counted, Counts
from serve_app.generation.admitted import AdmittedGenerator
from serve_app.generation.cache import CachedGenerator
from serve_app.generation.counted import CountedGenerator
from serve_app.generation.settings import UserConfig
from serve_app.generation.tokens import load_token_counter
from serve_app.knowledge.query_cache import CachedEmbedder
from serve_app.knowledge.search_cache import CachedRetriever
from serve_app.knowledge.statistics import CountedRetriever
from serve_app.lfu_cache import LfuCache
from serve_app.metrics import Tally
from serve_app.models import resolve_model
from serve_app.parts import Generator, Parts, Retriever
from serve_app.storage.database import open_database
from serve_app.vitals import Releasable


@serve.ingress()
class Gateway(Replica):
    def __init__(
        self,
        config: AppConfig,
        *,
        sessions: DeploymentHandle[Any],
        embedder: DeploymentHandle[Any],
        retriever: DeploymentHandle[Any],
        generators: Mapping[str, DeploymentHandle[Any]],
        indexer: DeploymentHandle[Any],
    ) -> None:
        """`generators` by model id, that of requests which name none first."""
        super().__init__()
        self._config = config
        self._app: FastAPI | None = None
        self._counts = Counts()
        self._caches: tuple[Releasable, ...] = ()
        self._generators = generators
        self._handles = {
            "sessions": sessions,
            "embedder": embedder,
            "retriever": retriever,
            "indexer": indexer,
        }
        for model_id, handle in generators.items():
            is_first = model_id == config.generator.model_id
            self._handles["generator" if is_first else f"generator:{model_id}"] = handle

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Serve calls this once, after the constructor (`ray.serve.ingress` without an app)."""
        config, handles, metrics = self._config, self._handles, self.metrics
        timeout_s = config.api.call_timeout_s
        tallies = Counter[Tally]()
        embedder = RemoteEmbedder(handles["embedder"], timeout_s)
        query_embedder = CachedEmbedder(embedder, config.retrieval.query_cache_size, tallies, metrics)
        self._caches = (query_embedder,)
        retriever: Retriever = RemoteRetriever(handles["retriever"], timeout_s)
        token_counters = _load_token_counters(config)
        admissions = Admissions(metrics)
        generator: Generator = CountedGenerator(self._admit(admissions, token_counters), self._counts, metrics)
        if config.cache.is_on:
            cache = LfuCache(config.cache.max_entries, config.cache.max_bytes)
            self._caches = (cache, query_embedder)
            retriever = CachedRetriever(retriever, cache, metrics)
            generator = CachedGenerator(generator, cache, metrics)
        parts = Parts(
            embedder=embedder,
            query_embedder=query_embedder,
            retriever=CountedRetriever(retriever, tallies, metrics),
            indexer=RemoteIndexer(handles["indexer"], timeout_s, config.api.request_timeout_s),
            generator=generator,
            sessions=remote_sessions(handles["sessions"], timeout_s),
            count_tokens=token_counters[config.generator.model_id],
            tallies=tallies,
            reranker=RemoteReranker(handles["embedder"], timeout_s) if config.retrieval.reranker else None,
            metrics=metrics,
            token_counters=token_counters,
            replicas=RemoteReplicas([own_handle(), *handles.values()], timeout_s),
            admissions=admissions,
            read_capacities=lambda: read_capacities(self._generators),
        )
        database = open_database(config.storage.resolved_database_url)
        self._app = create_app(config, parts, database, self._check_parts)
        return self._app

    def _admit(self, admissions: Admissions, token_counters: Mapping[str, Callable[[str], int]]) -> Generator:
        """The models behind their doors. Adapters share the door of the engine that they are in."""
        timeout_s = self._config.api.request_timeout_s
        return GeneratorsByModel(
            {
                model_id: AdmittedGenerator(
                    RemoteGenerator(self._generators[each.model_id], timeout_s),
                    admissions.of(each.model_id),
                    token_counters[model_id],
                )
                for model_id, each in self._config.models.items()
            }
        )

    def caches(self) -> Sequence[Releasable]:
        return (*self._caches, *super().caches())

    def counted(self) -> Counted:
        return self._counts.read()

    async def check_health(self) -> None:
        await super().check_health()
        if self._app:
            check_loops(self._app)

    async def reconfigure(self, user_config: Any) -> None:  # whatever the YAML holds
        """Serve calls this after the start, and with each `serve deploy` that changes the gateway's `user_config`."""
        assert self._app is not None, "Serve has built the app before"
        context, said = self._app.state.context, UserConfig.model_validate(user_config)
        context.parts.admissions.configure(said.admission)
        await asyncio.to_thread(context.settings.declare, said)

    async def _check_parts(self) -> dict[str, str]:
        statuses = await asyncio.gather(*(part_status(handle) for handle in self._handles.values()))
        return dict(zip(self._handles, statuses, strict=True))


def _load_token_counters(config: AppConfig) -> dict[str, Callable[[str], int]]:
    """By model id. Models of one source share one: they have the same tokenizer."""
    sources = {each.model_source for each in config.generators}
    by_source = {source: load_token_counter(resolve_model(source)) for source in sources}
    return {model_id: by_source[each.model_source] for model_id, each in config.models.items()}
