"""The insights of many conversations for whoever runs the service: aggregates, nobody's words but the labels."""

from collections import Counter
from collections.abc import Sequence

from serve_app.conversation.facts import KeptFacts
from serve_app.conversation.insights.conversation import Measured, measure, rounded, times_to_json
from serve_app.conversation.insights.engagement import Times
from serve_app.conversation.insights.sentiment import mean_of, mood_of
from serve_app.types import Json

MAX_TOPICS = 20


def build_overview(kept: KeptFacts) -> Json:
    """Of what is kept. Takes a second for `MAX_OVERVIEW_MESSAGES`."""
    measured = [measure(messages) for messages in kept.messages]
    return {
        "object": "insights",
        "conversations": {
            "count": kept.conversations,
            "looked_at": kept.looked_at,
            "without_facts": kept.looked_at - len(measured),
        },
        "truncated": kept.is_truncated,
        "messages": {
            "count": sum(len(each.messages) for each in measured),
            "user": sum(each.engagement.user.messages for each in measured),
            "assistant": sum(each.engagement.assistant.messages for each in measured),
        },
        "topics": _topics(measured),
        "sentiment": _sentiment(measured),
        "questions": _questions(measured),
        "response_times_seconds": times_to_json(
            Times(tuple(seconds for each in measured for seconds in each.engagement.response_times.seconds))
        ),
        "languages": dict(
            Counter(
                message.facts.language or "unknown" for each in measured for message in each.messages if message.facts
            ).most_common()
        ),
    }


def _topics(measured: Sequence[Measured]) -> list[Json]:
    """In how many conversations each term is part of a label, the commonest first."""
    conversations = Counter(
        term for each in measured for term in {term for segment in each.segments for term in segment.terms}
    )
    return [{"term": term, "conversations": count} for term, count in conversations.most_common(MAX_TOPICS)]


def _sentiment(measured: Sequence[Measured]) -> Json:
    scores = [score for each in measured for score in each.sentiment.scores]
    moods = Counter(mood_of(score) for score in scores if score is not None)
    trends = Counter(each.sentiment.trend for each in measured)
    return {
        "mean": rounded(mean_of(scores)),
        "messages": {
            "positive": moods["positive"],
            "neutral": moods["neutral"],
            "negative": moods["negative"],
            "unknown": sum(score is None for score in scores),
        },
        "conversations": {
            "improving": trends["improving"],
            "steady": trends["steady"],
            "worsening": trends["worsening"],
            "unknown": trends[None],
        },
    }


def _questions(measured: Sequence[Measured]) -> Json:
    questions = [question for each in measured for question in each.engagement.questions]
    reasons = Counter(question.open_reason for question in questions if question.open_reason)
    return {
        "count": len(questions),
        "open": reasons.total(),
        "open_share": rounded(reasons.total() / len(questions)) if questions else None,
        "open_reasons": dict(reasons.most_common()),
    }
