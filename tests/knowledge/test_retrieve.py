import asyncio

import pytest

from serve_app.errors import Unavailable
from serve_app.knowledge.retrieve import retrieve
from serve_app.types import Passage, Ranking
from tests.api.parts import HashEmbedder, RecordingIndexer, ScriptedRetriever, knowledge_parts


def passage(store_id: str, passage_id: str, score: float) -> Passage:
    return Passage(passage_id, store_id, "file_a", "a.txt", "text", score, 0)


async def test_every_store_is_asked_every_question_and_each_passage_comes_once() -> None:
    embedder, retriever = HashEmbedder(), ScriptedRetriever()
    retriever.answers["one"] = [passage("vs_1", "p", 0.3), passage("vs_2", "p", 0.9)]
    retriever.answers["two"] = [passage("vs_1", "p", 0.5), passage("vs_2", "q", 0.4)]
    parts = knowledge_parts(embedder, retriever, RecordingIndexer())

    found = await retrieve(
        parts, tables={"vs_1": None, "vs_2": None}, queries=["one", "two"], max_results=3, ranking=Ranking()
    )

    assert [(entry.store_id, entry.passage_id, entry.score) for entry in found] == [
        ("vs_2", "p", 0.9),
        ("vs_1", "p", 0.5),
        ("vs_2", "q", 0.4),
    ]
    assert embedder.calls == [["one", "two"]]
    assert len(retriever.queries) == 4


async def test_one_failure_ends_the_other_searches_and_is_raised_as_it_is() -> None:
    class HalfDown(ScriptedRetriever):
        was_cancelled = False

        async def search(self, query: object) -> tuple[Passage, ...]:
            if getattr(query, "store_id", "") == "vs_down":
                raise Unavailable("no index")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.was_cancelled = True
                raise
            return ()

    retriever = HalfDown()
    parts = knowledge_parts(HashEmbedder(), retriever, RecordingIndexer())

    with pytest.raises(Unavailable, match="no index"):
        await retrieve(parts, tables={"vs_up": None, "vs_down": None}, queries=["a"], max_results=3, ranking=Ranking())
    assert retriever.was_cancelled
