from pathlib import Path

import numpy as np

from deployments.embedder import Embedder
from serve_app.config import AppConfig, EncoderConfig, RerankerConfig, RetrievalConfig
from serve_app.knowledge.rerank import load_cross_encoder
from serve_app.types import RerankRequest
from tests.cross_encoder import write_cross_encoder


async def test_embedder_holds_the_configured_cross_encoder(tmp_path: Path) -> None:
    reranker = RerankerConfig(model_id="tiny", model_source=write_cross_encoder(tmp_path))
    pairs = (("red fox", "the fox sleeps"), ("red fox", "the crow eats the stone"))

    embedder = Embedder(
        AppConfig(encoder=EncoderConfig(backend="openvino"), retrieval=RetrievalConfig(reranker=reranker))
    )

    assert np.array_equal(await embedder.rerank(RerankRequest(pairs)), load_cross_encoder(reranker).score(pairs))
    assert (await embedder.embed(("a text",))).shape == (1, 384)
