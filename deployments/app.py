"""The graph. `serve_config.yaml` names `build_app` as its import path and gives it `args:`.

No `from __future__ import annotations` here: Ray validates `args` against the parameter's annotation only if that is
a class (`ray/serve/_private/api.py`, call_user_app_builder_with_args_if_necessary).
"""

import importlib.util

import ray
from ray import serve
from ray.serve import Application

from deployments.embedder import Embedder
from deployments.gateway import Gateway
from deployments.generator import Generator
from deployments.indexer import Indexer
from deployments.retriever import Retriever
from deployments.sessions import Sessions
from deployments.transformers_generator import TransformersGenerator
from serve_app.config import DATABASE_URL_ENV, AppConfig, GeneratorConfig


def build_app(config: AppConfig) -> Application:
    """The whole application, bound in the order in which a request meets its parts.

    A star: only the gateway holds handles, so the order of a request is written in one place (`serve_app/chat.py`).
    Raises `ValueError` for SQLite on a cluster of several nodes: its file can be on one of them only.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]] if ray.is_initialized() else []
    if len(nodes) > 1 and config.storage.resolved_database_url.startswith("sqlite"):
        raise ValueError(
            f"SQLite serves one node, and this cluster has {len(nodes)}:"
            f" put the URL of a PostgreSQL database into the environment of every node as {DATABASE_URL_ENV}"
        )
    return serve.deployment(Gateway).bind(
        config,
        sessions=serve.deployment(Sessions).bind(config),
        embedder=serve.deployment(Embedder).bind(config),
        retriever=serve.deployment(Retriever).bind(config),
        generators={
            model_id: serve.deployment(_engine(config.of(model_id).generator), name=name).bind(config.of(model_id))
            for model_id, name in config.generator_deployments.items()
        },
        indexer=serve.deployment(Indexer).bind(config),
    )


def _engine(config: GeneratorConfig) -> type:
    """The class of its deployment. Whether there is vLLM is asked on the node that builds the graph."""
    has_vllm = importlib.util.find_spec("vllm") is not None
    is_vllm = config.backend == "vllm" or (config.backend == "auto" and has_vllm)
    if config.adapters and not is_vllm:
        raise ValueError(f"the adapters of {config.model_id!r} need vLLM, which is not installed here: leave them out")
    return Generator if is_vllm else TransformersGenerator
