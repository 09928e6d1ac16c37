"""The pieces of OpenAI's wire format that several routes share. Requests only: answers are plain dicts."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serve_app.types import AttributeValue, Comparison, Compound, Filter, Ranking

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
        return self


class CompoundFilter(Wire):
    type: Literal["and", "or"]
    filters: Annotated[list["ComparisonFilter | CompoundFilter"], Field(min_length=1, max_length=100)]

    def to_filter(self) -> Filter:
        return Compound(self.type, tuple(each.to_filter() for each in self.filters))


class HybridSearch(Wire):
    embedding_weight: float = Field(1.0, ge=0)
    text_weight: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _not_both_zero(self) -> "HybridSearch":
        if self.embedding_weight == 0 and self.text_weight == 0:
            raise ValueError("at least one of embedding_weight and text_weight must be above 0")
        return self


class RankingOptions(Wire):
    ranker: str | None = None
    score_threshold: float = Field(0.0, ge=0, le=1)
    hybrid_search: HybridSearch = HybridSearch()

    def to_ranking(self) -> Ranking:
        return Ranking(self.hybrid_search.embedding_weight, self.hybrid_search.text_weight, self.score_threshold)


class FileSearchTool(Wire):
    """The `file_search` tool, the same for responses and for chat completions."""

    type: Literal["file_search"]
    vector_store_ids: Annotated[list[Annotated[str, Field(max_length=80)]], Field(min_length=1, max_length=20)]
    max_num_results: int | None = Field(None, ge=1, le=50)
    filters: ComparisonFilter | CompoundFilter | None = None
    ranking_options: RankingOptions = RankingOptions()


class PageParameters(Wire):
    """The query parameters of every list."""

    after: str | None = Field(None, max_length=80)
    before: str | None = Field(None, max_length=80)
    limit: int = Field(20, ge=1, le=100)
    order: Literal["asc", "desc"] = "desc"
