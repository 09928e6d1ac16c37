from serve_app.conversation.facts import KeptFacts
from serve_app.conversation.insights.overview import build_overview
from tests.conversation.insights.facts import logged, says


def test_an_overview_adds_up_what_the_conversations_hold() -> None:
    first = logged(
        says(degrees=0, is_question=True, english_sentiment=0.5, terms=("ferry",)),
        says("assistant", degrees=10, terms=("island",)),
    )
    second = logged(
        says(degrees=0, is_question=True, english_sentiment=-0.5, terms=("ferry",)),
        says("assistant", degrees=90, language="fr"),
        every_s=20,
    )

    overview = build_overview(KeptFacts(4, 3, [list(first), list(second)], is_truncated=True))

    assert overview["conversations"] == {"count": 4, "looked_at": 3, "without_facts": 1}
    assert overview["messages"] == {"count": 4, "user": 2, "assistant": 2}
    assert overview["topics"][0] == {"term": "ferry", "conversations": 2}
    assert overview["sentiment"]["messages"] == {"positive": 1, "neutral": 1, "negative": 1, "unknown": 1}
    assert overview["questions"] == {
        "count": 2,
        "open": 1,
        "open_share": 0.5,
        "open_reasons": {"unrelated": 1},
    }
    assert overview["response_times_seconds"] == {"count": 2, "median": 15, "longest": 20}
    assert overview["languages"] == {"en": 3, "fr": 1}
    assert overview["truncated"] is True


def test_an_overview_of_nothing_has_no_figures() -> None:
    overview = build_overview(KeptFacts(0, 0, [], is_truncated=False))

    assert overview["topics"] == []
    assert overview["sentiment"]["mean"] is None
    assert overview["questions"]["open_share"] is None
    assert overview["response_times_seconds"] == {"count": 0, "median": None, "longest": None}
