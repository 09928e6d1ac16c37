"""Interactive embeddings: questions, and texts sent to `/v1/embeddings`; and the cross-encoder, if there is one.

The indexer has an encoder of its own.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from deployments.replica import Replica
from serve_app.config import AppConfig
from serve_app.knowledge.batching import BatchingEncoder
from serve_app.knowledge.encode import load_encoders
from serve_app.knowledge.rerank import load_cross_encoder
from serve_app.types import FloatMatrix, Scores
from serve_app.types.knowledge import RerankRequest


class Embedder(Replica):
    def __init__(self, config: AppConfig) -> None:
        super().__init__()
        # All at the start: one that cannot be loaded is noticed when it is deployed, not when a store has moved to it.
        encoders = load_encoders(config.encoders)
        self._default = config.encoder.model_id
        for encoder in encoders.values():
            # So that the first question does not wait for the model to be compiled.
            encoder.encode(("ready?",))
        # One thread: an encoder itself uses all the cores that it may.
        thread = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._encoders = {model_id: BatchingEncoder(encoder, thread) for model_id, encoder in encoders.items()}
        self._cross_encoder = load_cross_encoder(config.retrieval.reranker) if config.retrieval.reranker else None
        # Of its own: a question is encoded in milliseconds, and does not wait for another's passages to be read.
        self._rerank_thread = ThreadPoolExecutor(1, thread_name_prefix="rerank")

    async def embed(self, texts: tuple[str, ...], model: str | None = None) -> FloatMatrix:
        return await self._encoders[model or self._default].encode(texts)

    async def count_tokens(self, texts: tuple[str, ...], model: str | None = None) -> int:
        tokenizer = self._encoders[model or self._default].encoder.tokenizer
        encodings = await asyncio.to_thread(tokenizer.encode_batch_fast, list(texts), add_special_tokens=False)
        return sum(len(encoding) for encoding in encodings)

    async def rerank(self, request: RerankRequest) -> Scores:
        assert self._cross_encoder is not None, "without a reranker the gateway does not ask"
        work = self._cross_encoder.score
        return await asyncio.get_running_loop().run_in_executor(self._rerank_thread, work, request.pairs)

    async def ready(self) -> None:
        """Returns if the encoder works; raises otherwise."""
        await self.embed(("ready?",))
