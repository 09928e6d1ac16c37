from pathlib import Path

import numpy as np

from deployments.embedder import Embedder
from serve_app.config import AppConfig, EncoderConfig, RerankerConfig, RetrievalConfig
from serve_app.knowledge.encode import load_encoder
from serve_app.knowledge.rerank import load_cross_encoder
from serve_app.types.knowledge import RerankRequest
from tests.cross_encoder import write_cross_encoder
from tests.encoder import other_encoder


async def test_embedder_holds_the_configured_cross_encoder(tmp_path: Path) -> None:
    reranker = RerankerConfig(model_id="tiny", model_source=write_cross_encoder(tmp_path))
    pairs = (("red fox", "the fox sleeps"), ("red fox", "the crow eats the stone"))

    embedder = Embedder(
        AppConfig(encoder=EncoderConfig(backend="openvino"), retrieval=RetrievalConfig(reranker=reranker))
    )

    assert np.array_equal(await embedder.rerank(RerankRequest(pairs)), load_cross_encoder(reranker).score(pairs))
    assert (await embedder.embed(("a text",))).shape == (1, 384)


async def test_embedder_holds_every_configured_encoder() -> None:
    other = EncoderConfig(model_id="two-layers", model_source=other_encoder(), backend="openvino")

    embedder = Embedder(AppConfig(encoder=EncoderConfig(backend="openvino"), further_encoders=(other,)))

    texts = ("Ferrets sleep up to eighteen hours a day.",)
    default = await embedder.embed(texts)
    assert np.array_equal(await embedder.embed(texts, "all-minilm-l6-v2"), default)
    assert np.array_equal(await embedder.embed(texts, "two-layers"), load_encoder(other).encode(texts))
    assert not np.allclose(await embedder.embed(texts, "two-layers"), default, atol=0.1)
