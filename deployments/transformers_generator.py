"""transformers behind a handle, where there is no vLLM: the methods of `deployments/generator.py`, the same events.

What it does is in `serve_app/generation/transformers_engine/`, which is imported in the replica only: with its model
library it takes seconds and hundreds of megabytes.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from deployments.generator import fastest_dtype
from deployments.replica import Replica
from deployments.threads import use_all_cores
from serve_app.config import AppConfig
from serve_app.types import Json
from serve_app.types.generation import Capacity, GenerationRequest


class TransformersGenerator(Replica):
    def __init__(self, config: AppConfig) -> None:
        super().__init__()
        use_all_cores()
        from serve_app.generation.transformers_engine.engine import TransformersEngine

        self._engine = TransformersEngine(config.generator, fastest_dtype())

    async def complete(self, request: GenerationRequest) -> Json:
        """The whole chat completion. Raises `InvalidRequest` for what this engine cannot do."""
        from serve_app.generation.transformers_engine.chat import complete

        return await complete(self._engine, request)

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[str, None]:
        """vLLM's server-sent events; raises like `complete`, before the first. Closing it stops the model."""
        from serve_app.generation.transformers_engine.chat import stream

        async with aclosing(stream(self._engine, request)) as events:
            async for event in events:
                yield event

    async def capacity(self) -> Capacity:
        return self._engine.capacity

    async def ready(self) -> None:
        if self._engine.has_died:
            raise self._engine.lost()

    async def check_health(self) -> None:
        """Ray replaces the replica when this raises, as it does once the thread that computes has ended."""
        await super().check_health()
        await self.ready()
