"""The graph of `deployments.app` with the same names and arguments but without the models: what is placed where."""

import os
from typing import Any

import ray
from ray import serve
from ray.serve import Application

from serve_app.config import AppConfig


class _Placed:
    def __init__(self, config: AppConfig, **handles: Any) -> None:
        self._handles = handles

    async def placement(self) -> dict[str, str]:
        """Node id, and the GPUs that Ray lets this replica see."""
        context = ray.get_runtime_context()
        gpus = context.get_accelerator_ids().get("GPU", [])
        assert os.environ.get("CUDA_VISIBLE_DEVICES", "") == ",".join(gpus)
        return {"node": context.get_node_id(), "gpus": ",".join(gpus)}

    def reconfigure(self, user_config: Any) -> None:
        """Serve asks for it where the YAML has a `user_config`."""

    async def __call__(self) -> dict[str, dict[str, str]]:
        return {name: await handle.placement.remote() for name, handle in self._handles.items()}


def build_app(config: AppConfig) -> Application:
    parts = {
        name.lower(): serve.deployment(_Placed, name=name).bind(config)
        for name in ("Sessions", "Embedder", "Retriever", "Generator", "Indexer")
    }
    return serve.deployment(_Placed, name="Gateway").bind(config, **parts)
