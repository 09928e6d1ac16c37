"""`search`: which queries a question makes, and whose passages are shown."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.conversation.log import ConversationLog
from serve_app.errors import Overloaded
from serve_app.search import Search, build_queries, find_passages
from serve_app.types.knowledge import Passage, Ranking, SearchQuery, StoreTable
from tests.databases import opened
from tests.fakes import FakeParts, build_passage

SEARCH = Search({"vs_1": StoreTable("all-minilm-l6-v2")}, max_passages=4, filter=None, ranking=Ranking())
PAST = [{"role": "user", "content": "How many people lived in Warsaw in 1901?"}]
WIDENED = "How many people lived in Warsaw in 1901? And in 1999?"


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[FakeParts]:
    with opened(f"sqlite:///{tmp_path / 'log.db'}") as database:
        yield FakeParts(ConversationLog(database, max_cached=10))


class Shelves:
    """Finds for each query what is laid there for it."""

    def __init__(self, **found: Sequence[Passage]) -> None:
        self._found = found

    async def search(self, query: SearchQuery) -> tuple[Passage, ...]:
        return tuple(self._found[query.text])


def passages(name: str, *cosines: float | None) -> list[Passage]:
    """Scores fall with the rank, the same for each name."""
    return [replace(build_passage(n, f"{name}{n}"), cosine=cosine) for n, cosine in enumerate(cosines, 1)]


async def find(fakes: FakeParts, **found: Sequence[Passage]) -> list[str]:
    parts = replace(fakes.parts, retriever=Shelves(**found))
    return [each.text for each in await find_passages(SEARCH, tuple(found), parts)]


async def test_a_first_question_is_searched_for_as_it_is(fakes: FakeParts) -> None:
    assert await build_queries(SEARCH, "Why?", [], "m", 0, "", fakes.parts) == ("Why?",)


async def test_a_follow_up_is_searched_for_with_what_came_before(fakes: FakeParts) -> None:
    assert await build_queries(SEARCH, "And in 1999?", PAST, "m", 0, "", fakes.parts) == ("And in 1999?", WIDENED)
    assert fakes.generator.requests == []


async def test_with_rewrite_query_the_model_restates_a_follow_up(fakes: FakeParts) -> None:
    fakes.generator.deltas = ["How many lived in", " Warsaw in 1999?"]
    rewriting = replace(SEARCH, rewrites=True)

    queries = await build_queries(rewriting, "And in 1999?", PAST, "m", 10, "key 1", fakes.parts)

    assert queries == ("And in 1999?", "How many lived in Warsaw in 1999?")
    (request,) = fakes.generator.requests
    assert request.caller == "key 1"
    assert (request.priority, request.payload["temperature"]) == (10, 0.0)


async def test_what_the_model_fails_to_restate_is_widened(fakes: FakeParts) -> None:
    rewriting = replace(SEARCH, rewrites=True)
    assert await build_queries(rewriting, "And in 1999?", PAST, "m", 0, "", fakes.parts) == ("And in 1999?", WIDENED)

    fakes.generator.refusal = Overloaded("full", retry_after_s=1)
    assert await build_queries(rewriting, "And in 1999?", PAST, "m", 0, "", fakes.parts) == ("And in 1999?", WIDENED)


async def test_a_question_that_stands_for_itself_is_searched_for_alone(fakes: FakeParts) -> None:
    assert await find(fakes, q=passages("a", 0.7, 0.6), widened=passages("b", 0.6, 0.5)) == ["a1", "a2"]


async def test_a_question_that_leaves_something_out_is_answered_by_both(fakes: FakeParts) -> None:
    found = await find(fakes, q=passages("a", 0.3, 0.2, 0.1), widened=passages("b", 0.6, None, 0.4))

    assert found == ["a1", "b1", "a2", "b2"]


async def test_without_vectors_both_answer(fakes: FakeParts) -> None:
    assert await find(fakes, q=passages("a", None), widened=passages("b", None, None)) == ["a1", "b1", "b2"]


async def test_what_both_find_comes_once(fakes: FakeParts) -> None:
    assert await find(fakes, q=passages("a", 0.3, 0.2), widened=passages("a", 0.6)) == ["a1", "a2"]
