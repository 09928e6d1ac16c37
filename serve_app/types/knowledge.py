"""Vector stores: what is searched, found and changed in them."""

from dataclasses import dataclass, field
from typing import Literal

from serve_app.types import AttributeValue, FloatVector, Json


@dataclass(frozen=True, slots=True)
class Comparison:
    """`key` compared with `value`. A file without the key satisfies only `ne` and `nin`."""

    type: Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin"]
    key: str
    value: AttributeValue | tuple[AttributeValue, ...]


@dataclass(frozen=True, slots=True)
class Compound:
    type: Literal["and", "or"]
    filters: tuple["Filter", ...]


Filter = Comparison | Compound


@dataclass(frozen=True, slots=True)
class Ranking:
    """How a search weighs its halves. With a weight of 0 that half is not run; with both, ranks are fused."""

    embedding_weight: float = 1.0
    text_weight: float = 1.0
    score_threshold: float = 0.0
    """Passages with a lower score are left out; scores are in [0, 1]."""
    reranked: int = 0
    """At least so many of the best are ranked anew by the cross-encoder; 0: none."""
    mmr_lambda: float | None = None
    """Maximal marginal relevance: 1 is relevance alone, 0 is unlikeness to better results alone. None: not done."""

    @property
    def is_hybrid(self) -> bool:
        return self.embedding_weight > 0 and self.text_weight > 0


@dataclass(frozen=True, slots=True)
class StoreTable:
    """What a search of a store reads: one of its tables, as it is or as it was."""

    encoder: str
    """The model that made its vectors."""
    suffix: str = ""
    """Of the table's name, after the store's id: each table is of one encoder."""
    version: int | None = None
    """LanceDB's, of a version of the store that is kept; None: the newest. 0: before the first passage."""
    content: str | None = None
    """The same for no two contents that the store ever has. None: what is found is not to be kept in a cache."""


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """A search of one store."""

    store_id: str
    text: str
    vector: FloatVector | None
    """None if `ranking.embedding_weight` is 0."""
    max_results: int = 10
    filter: Filter | None = None
    ranking: Ranking = Ranking()
    table_version: int | None = None
    """As in `StoreTable`."""
    with_vectors: bool = False
    table_suffix: str = ""
    """As in `StoreTable`."""
    content: str | None = None
    """As in `StoreTable`."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a file that a search found."""

    passage_id: str
    store_id: str
    file_id: str
    filename: str
    text: str
    score: float
    """Relevance in [0, 1]."""
    start: int
    """Index of its first character in the file's extracted text."""
    attributes: dict[str, AttributeValue] = field(default_factory=dict)
    key: str = ""
    """The document that the file is a version of."""
    version: int = 1
    """Of the document."""
    pages: tuple[int, int] | None = None
    """The first and the last page that it is on, counted from 1; None where there are no pages."""
    heading: tuple[str, ...] = ()
    """The headings that it is under, the highest first."""
    cosine: float | None = None
    """Of its vector and the question's; None if the search by vectors did not find it."""
    bm25: float | None = None
    """None if the search by words did not find it."""
    vector: FloatVector | None = field(default=None, compare=False, repr=False)
    """Only if the query asked for it."""

    def place_to_json(self) -> Json:
        """Where it stands in the text that `…/files/{id}/content` returns: `text[start:end]` is the passage."""
        first_page, last_page = self.pages or (None, None)
        return {
            "start": self.start,
            "end": self.start + len(self.text),
            "page": first_page,
            "last_page": last_page,
            "heading": list(self.heading),
        }


@dataclass(frozen=True, slots=True)
class RerankRequest:
    pairs: tuple[tuple[str, str], ...]
    """Questions, each with the passage to be judged by it."""


@dataclass(frozen=True, slots=True)
class AttributeChange:
    store_id: str
    file_id: str
    attributes: dict[str, AttributeValue]


@dataclass(frozen=True, slots=True)
class StoreFileRef:
    store_id: str
    file_id: str


@dataclass(frozen=True, slots=True)
class StoreVersionRef:
    store_id: str
    version: int


@dataclass(frozen=True, slots=True)
class Optimization:
    """What optimising a store did. Pairs are before and after."""

    duplicates_removed: int = 0
    fragments: tuple[int, int] = (0, 0)
    size_bytes: tuple[int, int] = (0, 0)
    """On disk. Versions of the last two minutes stay, so that this can grow at first."""
    search_ms: tuple[float, float] = (0.0, 0.0)
    """Median of a vector search for the 10 nearest."""
    elapsed_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class IndexState:
    kind: str | None = None
    """As LanceDB names it. None: there is none, and a search compares every row."""
    indexed_rows: int = 0
    unindexed_rows: int = 0
    """Searched one by one, until the next maintenance."""


@dataclass(frozen=True, slots=True)
class TableState:
    """A store as it lies on the disk."""

    passages: int = 0
    fragments: int = 0
    size_bytes: int = 0
    """With its indices, and the versions that are kept."""
    vector: IndexState = IndexState()
    text: IndexState = IndexState()
