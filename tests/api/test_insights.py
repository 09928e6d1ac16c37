"""`/v1/conversations/{id}/insights` and `/v1/insights` over HTTP."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import httpx
import numpy as np
import pytest
from openai import OpenAI

from serve_app.api.context import Context
from serve_app.api.insights import keep_facts_of_changed
from serve_app.conversation.insights.message import build_facts
from serve_app.errors import Unavailable
from serve_app.types import FloatMatrix, Json, new_id
from tests.api.chat_app import MODEL, ChatApp, running_chat
from tests.conversation.insights.facts import at
from tests.fakes import FakeEmbedder

TALK = (
    ("user", "When does the ferry sail?"),
    ("assistant", "The ferry sails at nine, and it is wonderful."),
    ("user", "What does the ferry cost?"),
    ("assistant", "The ferry costs 34 euros."),
    ("user", "By the way, I hate the lamp of the lighthouse."),
    ("assistant", "The lamp was electrified in 1932."),
    ("user", "Is the lamp bright?"),
)


class TopicEmbedder(FakeEmbedder):
    """All that names the lamp points one way, all else another."""

    failure: Exception | None = None

    async def embed(self, texts: Sequence[str], model: str | None = None) -> FloatMatrix:
        if self.failure:
            raise self.failure
        await super().embed(texts)
        return np.stack([at(90 if "lamp" in text else 0) for text in texts])


@dataclass(frozen=True)
class InsightsApp:
    http: httpx.Client
    openai: OpenAI
    embedder: TopicEmbedder
    context: Context

    @property
    def changed(self) -> set[str]:
        return self.context.parts.sessions.changed


@pytest.fixture
def app(shared_app: ChatApp) -> InsightsApp:
    """With parts that no test has touched."""
    app, embedder = shared_app.with_fresh_fakes(), TopicEmbedder()
    context = replace(app.app.state.context, parts=replace(app.fakes.parts, embedder=embedder))
    app.app.state.context = context
    return InsightsApp(app.http, app.openai, embedder, context)


@pytest.fixture(scope="module")
def shared_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatApp]:
    # The first use loads a model of languages: longer than a client of the tests waits, if the machine is busy.
    build_facts({"role": "user", "content": "Hello there"}, at(0))
    with running_chat(tmp_path_factory.mktemp("insights")) as app:
        yield app


def start(app: InsightsApp, talk: Sequence[tuple[str, str]] = TALK, **metadata: str) -> str:
    items: Json = {"items": [{"role": role, "content": text} for role, text in talk], "metadata": metadata}
    conversation_id: str = app.http.post("/v1/conversations", json=items).json()["id"]
    return conversation_id


def item_ids(app: InsightsApp, conversation_id: str) -> list[str]:
    page = app.http.get(f"/v1/conversations/{conversation_id}/items", params={"order": "asc"}).json()
    return [item["id"] for item in page["data"]]


def insights(app: InsightsApp, conversation_id: str) -> Json:
    answer = app.http.get(f"/v1/conversations/{conversation_id}/insights")
    assert answer.status_code == 200, answer.text
    body: Json = answer.json()
    return body


def test_topics_hold_the_messages_between_shifts(app: InsightsApp) -> None:
    conversation_id = start(app)
    ids = item_ids(app, conversation_id)

    topics = insights(app, conversation_id)["topics"]

    assert [segment["item_ids"] for segment in topics["segments"]] == [ids[:4], ids[4:]]
    assert "ferry" in topics["segments"][0]["label"]
    assert "lamp" in topics["segments"][1]["label"]
    assert [turn["item_id"] for turn in topics["turns"]] == ids
    assert [turn["is_shift"] for turn in topics["turns"]] == [index == 4 for index in range(7)]
    assert topics["turns"][4]["distance"] == pytest.approx(1, abs=0.01)


def test_sentiment_is_given_for_each_message(app: InsightsApp) -> None:
    sentiment = insights(app, start(app))["sentiment"]

    scores = [message["score"] for message in sentiment["messages"]]
    assert scores[1] > 0.3
    assert scores[4] < -0.3
    assert sentiment["unknown"] == 0


def test_a_conversation_in_another_language_does_not_claim_a_sentiment(app: InsightsApp) -> None:
    talk = [("user", "Je déteste cette lampe, elle est horrible et triste."), ("assistant", "non")]

    sentiment = insights(app, start(app, talk))["sentiment"]

    assert [message["score"] for message in sentiment["messages"]] == [None, None]
    assert (sentiment["mean"], sentiment["trend"], sentiment["unknown"]) == (None, None, 2)
    assert sentiment["messages"][0]["language"] == "fr"


def test_engagement_and_flow_name_the_questions_and_their_answers(app: InsightsApp) -> None:
    conversation_id = start(app)
    ids = item_ids(app, conversation_id)

    found = insights(app, conversation_id)

    assert found["engagement"]["user"]["questions"] == 3
    assert found["engagement"]["open_questions"] == [
        {"question_id": ids[6], "answer_id": None, "relatedness": None, "reason": "no_answer"}
    ]
    assert [pair["answer_id"] for pair in found["flow"]["question_answer_pairs"]] == [ids[1], ids[3]]
    assert [step["item_id"] for step in found["flow"]["transitions"]] == [ids[4]]


def test_insights_follow_new_messages_and_embed_only_these(app: InsightsApp) -> None:
    conversation_id = start(app)
    insights(app, conversation_id)
    embedded = len(app.embedder.texts)
    app.http.post(
        f"/v1/conversations/{conversation_id}/items",
        json={"items": [{"role": "assistant", "content": "The lamp reaches 22 miles."}]},
    )

    found = insights(app, conversation_id)

    assert app.embedder.texts[embedded:] == ["The lamp reaches 22 miles."]
    assert found["messages"] == 8
    assert found["engagement"]["open_questions"] == []


def test_a_conversation_without_messages_has_empty_insights(app: InsightsApp) -> None:
    found = insights(app, start(app, ()))

    assert (found["messages"], found["topics"]) == (0, {"segments": [], "turns": []})
    assert found["flow"]["context_kept"] == {"user": None, "assistant": None}


def test_an_unknown_conversation_is_not_found(app: InsightsApp) -> None:
    assert app.http.get(f"/v1/conversations/{new_id('conv')}/insights").status_code == 404


def test_the_overview_counts_what_was_looked_into(app: InsightsApp) -> None:
    insights(app, start(app, team="overview"))
    start(app, team="overview")

    found = app.http.get("/v1/insights", params={"metadata[team]": "overview"}).json()

    assert found["object"] == "insights"
    assert found["conversations"] == {"count": 2, "looked_at": 2, "without_facts": 1}
    assert found["questions"]["open_reasons"] == {"no_answer": 1}
    assert "ferry" in {topic["term"] for topic in found["topics"]}


def test_the_overview_of_another_time_is_empty(app: InsightsApp) -> None:
    insights(app, start(app))

    found = app.http.get("/v1/insights", params={"created_before": 1}).json()

    assert (found["conversations"]["count"], found["truncated"]) == (0, False)


async def test_what_was_said_is_looked_into_behind(app: InsightsApp) -> None:
    start(app, team="behind")
    conversation_id = start(app, (), team="behind")
    app.openai.responses.create(model=MODEL, input="Is the lamp bright?", conversation=conversation_id)

    await keep_facts_of_changed(app.context)

    found = app.http.get("/v1/insights", params={"metadata[team]": "behind"}).json()
    assert (found["conversations"]["without_facts"], found["messages"]["count"]) == (0, 7 + 2)
    assert app.changed == set()


async def test_what_could_not_be_looked_into_is_tried_again(app: InsightsApp) -> None:
    conversation_id, gone_id = start(app), start(app)
    app.http.delete(f"/v1/conversations/{gone_id}")
    app.embedder.failure = Unavailable("the embedder is gone")

    await keep_facts_of_changed(app.context)

    assert conversation_id in app.changed
    app.embedder.failure = None
    await keep_facts_of_changed(app.context)
    assert app.changed == set()


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("created_after=yesterday", "created_after"),
        ("created_after=-1", "created_after"),
        (f"created_before={2**70}", "created_before"),
        ("metadata=red", "metadata"),
        ("metadata[]=red", "metadata"),
        ('metadata[a"b]=red', "metadata"),
        ("metadata[a]=red&metadata[a]=blue", "metadata"),
        ("&".join(f"metadata[{key}]=x" for key in range(17)), "metadata"),
    ],
)
def test_a_wrong_filter_is_refused(app: InsightsApp, query: str, param: str) -> None:
    answer = app.http.get(f"/v1/insights?{query}")

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
