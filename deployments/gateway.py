"""The HTTP front: the FastAPI application of `serve_app/api`, with its parts behind Serve handles."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from deployments.adapters import (
    GeneratorsByModel,
    RayMetrics,
    RemoteEmbedder,
    RemoteGenerator,
    RemoteIndexer,
    RemoteReranker,
    RemoteRetriever,
    part_status,
    remote_sessions,
)
from serve_app.api.app import create_app
from serve_app.config import AppConfig
from serve_app.generation.settings import UserConfig
from serve_app.generation.tokens import load_token_counter
from serve_app.knowledge.query_cache import CachedEmbedder
from serve_app.knowledge.statistics import CountedRetriever
from serve_app.metrics import Tally
from serve_app.models import resolve_model
from serve_app.parts import Parts
from serve_app.storage.database import open_database


@serve.ingress()
class Gateway:
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
        self._config = config
        self._app: FastAPI | None = None
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
        config, handles = self._config, self._handles
        timeout_s = config.api.call_timeout_s
        metrics = RayMetrics()
        tallies = Counter[Tally]()
        embedder = RemoteEmbedder(handles["embedder"], timeout_s)
        token_counters = _load_token_counters(config)
        parts = Parts(
            embedder=embedder,
            query_embedder=CachedEmbedder(embedder, config.retrieval.query_cache_size, tallies, metrics),
            retriever=CountedRetriever(RemoteRetriever(handles["retriever"], timeout_s), tallies, metrics),
            indexer=RemoteIndexer(handles["indexer"], timeout_s, config.api.request_timeout_s),
            generator=GeneratorsByModel(
                {
                    model_id: RemoteGenerator(self._generators[each.model_id], config.api.request_timeout_s)
                    for model_id, each in config.models.items()
                }
            ),
            sessions=remote_sessions(handles["sessions"], timeout_s),
            count_tokens=token_counters[config.generator.model_id],
            tallies=tallies,
            reranker=RemoteReranker(handles["embedder"], timeout_s) if config.retrieval.reranker else None,
            metrics=metrics,
            token_counters=token_counters,
        )
        database = open_database(config.storage.resolved_database_url)
        self._app = create_app(config, parts, database, self._check_parts)
        return self._app

    async def reconfigure(self, user_config: Any) -> None:  # whatever the YAML holds
        """Serve calls this after the start, and with each `serve deploy` that changes the gateway's `user_config`."""
        assert self._app is not None, "Serve has built the app before"
        settings = self._app.state.context.settings
        await asyncio.to_thread(settings.declare, UserConfig.model_validate(user_config))

    async def _check_parts(self) -> dict[str, str]:
        statuses = await asyncio.gather(*(part_status(handle) for handle in self._handles.values()))
        return dict(zip(self._handles, statuses, strict=True))


def _load_token_counters(config: AppConfig) -> dict[str, Callable[[str], int]]:
    """By model id. Models of one source share one: they have the same tokenizer."""
    sources = {each.model_source for each in config.generators}
    by_source = {source: load_token_counter(resolve_model(source)) for source in sources}
    return {model_id: by_source[each.model_source] for model_id, each in config.models.items()}
