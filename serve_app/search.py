"""From a question in its conversation to the passages before its answer."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from serve_app.errors import RayconteurError
from serve_app.generation.question import MAX_RESTATED_TOKENS, build_restatement_request, take_restatement, widen
from serve_app.knowledge.distinct import first_of_each
from serve_app.knowledge.retrieve import retrieve
from serve_app.parts import Parts
from serve_app.types import Json, new_id
from serve_app.types.generation import GenerationRequest
from serve_app.types.knowledge import Filter, Passage, Ranking, StoreTable

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Search:
    """What to look up before answering."""

    tables: Mapping[str, StoreTable]
    """The stores, each with what is to be read."""
    max_passages: int
    filter: Filter | None
    ranking: Ranking
    with_results: bool = False
    """The response lists what was found."""
    rewrites: bool = False
    """The model restates a question that comes after others."""


async def build_queries(
    search: Search, question: str, past: Sequence[Json], model: str, priority: int, caller: str, parts: Parts
) -> tuple[str, ...]:
    """The question as it is asked, and if others came before it, as one that needs no conversation.

    `past` are items or chat messages, oldest first. What the model fails to restate is widened by what came before.
    """
    widened = widen(question, past)
    if widened is None:
        return (question,)
    restated = await _restate(question, past, model, priority, caller, parts) if search.rewrites else None
    return (question, restated or widened)


async def find_passages(search: Search, queries: Sequence[str], parts: Parts) -> tuple[Passage, ...]:
    """Best first, at most `search.max_passages`, for one query or for the two of `build_queries`.

    A question that stands for itself is nearest to its passage as it is, one that leaves something out once that is put
    in: if the second query gets no nearer to any passage than the first, its passages are left out.
    """
    found = await asyncio.gather(*(_retrieve(search, query, parts) for query in queries))
    if len(found) == 1 or _is_nearer(found[0], found[1]):
        return found[0]
    by_score = sorted(chain(*found), key=lambda passage: passage.score, reverse=True)
    return tuple(first_of_each(by_score, lambda passage: passage.text)[: search.max_passages])


async def _retrieve(search: Search, query: str, parts: Parts) -> tuple[Passage, ...]:
    return await retrieve(
        parts,
        tables=search.tables,
        queries=[query],
        max_results=search.max_passages,
        filter=search.filter,
        ranking=search.ranking,
    )


def _is_nearer(first: Sequence[Passage], second: Sequence[Passage]) -> bool:
    """Without vectors there are no cosines, and neither is."""
    best, other = (max((each.cosine or 0.0 for each in found), default=0.0) for found in (first, second))
    return best > 0 and best >= other


async def _restate(
    question: str, past: Sequence[Json], model: str, priority: int, caller: str, parts: Parts
) -> str | None:
    payload = {
        "model": model,
        "messages": build_restatement_request(question, past, parts.count_tokens),
        "max_completion_tokens": MAX_RESTATED_TOKENS,
        "temperature": 0.0,
    }
    try:
        request = GenerationRequest(payload, new_id("restate"), priority, caller=caller)
        completion = await parts.generator.complete(request)
    except RayconteurError as error:
        logger.info("a question is not restated: %s", error)
        return None
    return take_restatement(completion["choices"][0]["message"].get("content") or "", question, past)
