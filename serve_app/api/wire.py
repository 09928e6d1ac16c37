"""The pieces of OpenAI's wire format that several routes share. Requests only: answers are plain dicts."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from serve_app.config import RerankerConfig
from serve_app.errors import InvalidRequest
from serve_app.types import AttributeValue, Json, PageQuery
from serve_app.types.knowledge import Comparison, Compound, Filter, Ranking

Name = Annotated[str, Field(max_length=512, pattern=r"^[^\x00]*$")]
MetadataKey = Annotated[str, Field(max_length=64, pattern=r"^[^\x00]*$")]
Metadata = Annotated[dict[MetadataKey, Name], Field(max_length=16)]
Attributes = Annotated[dict[MetadataKey, Annotated[str, Field(max_length=512)] | bool | float], Field(max_length=16)]


class Wire(BaseModel):
    """A request body, or a part of one. Fields that we do not know are ignored, as clients are newer than servers."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class ComparisonFilter(Wire):
    type: Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin"]
    key: MetadataKey
    value: AttributeValue | list[str | float]

    def to_filter(self) -> Filter:
        return Comparison(self.type, self.key, tuple(self.value) if isinstance(self.value, list) else self.value)

    @model_validator(mode="after")
    def _value_fits_type(self) -> "ComparisonFilter":
        if isinstance(self.value, list) != (self.type in ("in", "nin")):
            raise ValueError(
                f"a filter of type {self.type!r} takes {'a list' if self.type in ('in', 'nin') else 'one value'}"
            )
        if self.type in ("gt", "gte", "lt", "lte") and isinstance(self.value, str | bool):
            raise ValueError(f"a filter of type {self.type!r} compares numbers, not {self.value!r}")
        if self.values() > _MAX_FILTER_VALUES:
            raise ValueError(_TOO_MANY_VALUES)
        return self

    def values(self) -> int:
        return len(self.value) if isinstance(self.value, list) else 1


class CompoundFilter(Wire):
    type: Literal["and", "or"]
    filters: Annotated[list["AnyFilter"], Field(min_length=1, max_length=100)]

    def to_filter(self) -> Filter:
        return Compound(self.type, tuple(each.to_filter() for each in self.filters))

    @model_validator(mode="after")
    def _not_too_large(self) -> "CompoundFilter":
        if self.depth() > _MAX_FILTER_DEPTH:
            raise ValueError(f"filters may be nested at most {_MAX_FILTER_DEPTH} deep")
        if self.values() > _MAX_FILTER_VALUES:
            raise ValueError(_TOO_MANY_VALUES)
        return self

    def depth(self) -> int:
        return 1 + max((each.depth() for each in self.filters if isinstance(each, CompoundFilter)), default=0)

    def values(self) -> int:
        return sum(each.values() for each in self.filters)


AnyFilter = Annotated[ComparisonFilter | CompoundFilter, Field(discriminator="type")]
_MAX_FILTER_DEPTH = 10
_MAX_FILTER_VALUES = 1000
_TOO_MANY_VALUES = f"filters may compare with at most {_MAX_FILTER_VALUES} values in all"


WireAsOf = Annotated[int, Field(strict=True, ge=1, lt=2**31)] | AwareDatetime
"""A version of a store, or a time with its zone."""


class HybridSearch(Wire):
    embedding_weight: float = Field(default=1.0, ge=0)
    text_weight: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _not_both_zero(self) -> "HybridSearch":
        if self.embedding_weight == 0 and self.text_weight == 0:
            raise ValueError("at least one of embedding_weight and text_weight must be above 0")
        return self


class MaximalMarginalRelevance(Wire):
    lambda_: float = Field(default=0.5, ge=0, le=1, alias="lambda")


class RankingOptions(Wire):
    ranker: Annotated[str, Field(pattern=r"^(none|auto|default-.*|cross-encoder)$")] | None = None
    score_threshold: float = Field(default=0.0, ge=0, le=1)
    hybrid_search: HybridSearch = HybridSearch()
    mmr: MaximalMarginalRelevance | None = None

    def to_ranking(self, reranker: RerankerConfig | None) -> Ranking:
        """Raises `InvalidRequest` for the ranker `cross-encoder` if none is configured."""
        if self.ranker == "cross-encoder" and reranker is None:
            raise InvalidRequest(
                "The ranker 'cross-encoder' is not configured on this server (retrieval.reranker): leave 'ranker' out",
                param="ranking_options.ranker",
                code="ranker_not_configured",
            )
        return Ranking(
            embedding_weight=self.hybrid_search.embedding_weight,
            text_weight=self.hybrid_search.text_weight,
            score_threshold=self.score_threshold,
            reranked=reranker.candidates if reranker and self.ranker == "cross-encoder" else 0,
            mmr_lambda=self.mmr.lambda_ if self.mmr else None,
        )


class FileSearchTool(Wire):
    """The `file_search` tool, the same for responses and for chat completions."""

    type: Literal["file_search"]
    vector_store_ids: Annotated[list[Annotated[str, Field(max_length=80)]], Field(min_length=1, max_length=20)]
    max_num_results: int | None = Field(default=None, ge=1, le=50)
    filters: AnyFilter | None = None
    ranking_options: RankingOptions = RankingOptions()
    as_of: WireAsOf | None = None
    rewrite_query: bool = False


class PageParameters(Wire):
    """The query parameters of every list."""

    after: str | None = Field(default=None, max_length=80)
    before: str | None = Field(default=None, max_length=80)
    limit: int = Field(default=20, ge=1, le=100)
    order: Literal["asc", "desc"] = "desc"

    def to_query(self) -> PageQuery:
        return PageQuery(self.after, self.before, self.limit, self.order)


class AutoChunking(Wire):
    type: Literal["auto"]


class StaticSizes(Wire):
    max_chunk_size_tokens: int = Field(default=800, ge=100, le=4096)
    chunk_overlap_tokens: int = Field(default=400, ge=0)

    @model_validator(mode="after")
    def _overlap_is_at_most_half(self) -> "StaticSizes":
        if "chunk_overlap_tokens" not in self.model_fields_set:
            self.chunk_overlap_tokens = min(400, self.max_chunk_size_tokens // 2)
        if self.chunk_overlap_tokens > self.max_chunk_size_tokens // 2:
            raise ValueError(
                f"chunk_overlap_tokens is {self.chunk_overlap_tokens}, which is more than half of"
                f" max_chunk_size_tokens ({self.max_chunk_size_tokens})"
            )
        return self


class StaticChunking(Wire):
    type: Literal["static"]
    static: StaticSizes


ChunkingStrategy = Annotated[AutoChunking | StaticChunking, Field(discriminator="type")]


def chunking_to_json(strategy: AutoChunking | StaticChunking | None) -> Json | None:
    return None if strategy is None else strategy.model_dump()
