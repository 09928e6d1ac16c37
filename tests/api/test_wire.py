import pytest

from serve_app.api.wire import RankingOptions
from serve_app.config import RerankerConfig
from serve_app.errors import InvalidRequest
from serve_app.types.knowledge import Ranking

RERANKER = RerankerConfig(model_id="tiny", model_source="tiny", candidates=20)


@pytest.mark.parametrize("ranker", [None, "none", "auto", "default-2024-11-15"])
@pytest.mark.parametrize("reranker", [None, RERANKER])
def test_openais_rankers_do_not_rerank(ranker: str | None, reranker: RerankerConfig | None) -> None:
    assert RankingOptions(ranker=ranker).to_ranking(reranker) == Ranking()


def test_cross_encoder_reads_as_many_as_are_configured() -> None:
    options = RankingOptions.model_validate({"ranker": "cross-encoder", "mmr": {"lambda": 0.3}})

    assert options.to_ranking(RERANKER) == Ranking(reranked=20, mmr_lambda=0.3)
    with pytest.raises(InvalidRequest, match="not configured"):
        options.to_ranking(None)
