"""The insights of one conversation, as they are answered: topics, sentiment, engagement and flow."""

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.conversation.insights.engagement import (
    Engagement,
    Lengths,
    Question,
    Times,
    measure_engagement,
)
from serve_app.conversation.insights.flow import Flow, Transition, measure_flow
from serve_app.conversation.insights.sentiment import Sentiment, mean_of, measure_sentiment
from serve_app.conversation.insights.topics import Segment, Turn, find_segments, find_shifts
from serve_app.types import Json
from serve_app.types.conversation import LoggedMessage, RecentMessages


@dataclass(frozen=True, slots=True)
class Measured:
    messages: Sequence[LoggedMessage]
    """All with facts."""
    turns: list[Turn]
    segments: list[Segment]
    sentiment: Sentiment
    engagement: Engagement
    flow: Flow

    def id_of(self, index: int) -> str:
        return self.messages[index].item_id


def measure(messages: Sequence[LoggedMessage]) -> Measured:
    """Of the messages of one conversation, oldest first, all with facts."""
    facts = [message.facts for message in messages if message.facts is not None]
    assert len(facts) == len(messages), "a message without facts"
    turns = find_shifts(facts)
    segments = find_segments(facts, turns)
    return Measured(
        messages,
        turns,
        segments,
        measure_sentiment(facts),
        measure_engagement(messages, facts),
        measure_flow(facts, turns, segments),
    )


def build_insights(conversation_id: str, recent: RecentMessages) -> Json:
    """Times are in seconds, cosines from -1 to 1. A figure that nothing is known about is null."""
    measured = measure(recent.messages)
    return {
        "object": "conversation.insights",
        "conversation_id": conversation_id,
        "messages": len(recent.messages),
        "truncated": recent.is_truncated,
        "topics": _topics(measured),
        "sentiment": _sentiment(measured),
        "engagement": _engagement(measured),
        "flow": _flow(measured),
    }


def _topics(measured: Measured) -> Json:
    return {
        "segments": [
            {
                "index": index,
                "label": segment.label,
                "item_ids": [measured.id_of(message) for message in range(segment.start, segment.stop)],
            }
            for index, segment in enumerate(measured.segments)
        ],
        "turns": [
            {
                "item_id": message.item_id,
                "distance": rounded(turn.distance),
                "score": rounded(turn.score),
                "is_shift": turn.is_shift,
            }
            for message, turn in zip(measured.messages, measured.turns, strict=True)
        ],
    }


def _sentiment(measured: Measured) -> Json:
    sentiment = measured.sentiment
    scored = list(zip(measured.messages, sentiment.scores, strict=True))
    return {
        "mean": rounded(mean_of(sentiment.scores)),
        "user_mean": rounded(mean_of(score for message, score in scored if _is_user(message))),
        "assistant_mean": rounded(mean_of(score for message, score in scored if not _is_user(message))),
        "trend": sentiment.trend,
        "change": rounded(sentiment.change),
        "unknown": sum(score is None for score in sentiment.scores),
        "turning_points": [
            {"item_id": measured.id_of(point.index), "from": point.mood_before, "to": point.mood}
            for point in sentiment.turning_points
        ],
        "messages": [
            {
                "item_id": message.item_id,
                "score": rounded(score),
                "language": message.facts.language if message.facts else None,
            }
            for message, score in scored
        ],
    }


def _engagement(measured: Measured) -> Json:
    engagement = measured.engagement
    return {
        "duration_seconds": engagement.duration_s,
        "response_times_seconds": times_to_json(engagement.response_times),
        "pauses_seconds": times_to_json(engagement.pauses),
        "user": _lengths(engagement.user),
        "assistant": _lengths(engagement.assistant),
        "open_questions": [
            {**_question(question, measured), "reason": question.open_reason} for question in engagement.open_questions
        ],
    }


def _flow(measured: Measured) -> Json:
    return {
        "transitions": [_transition(transition, measured) for transition in measured.flow.transitions],
        "question_answer_pairs": [
            _question(question, measured) for question in measured.engagement.questions if question.answer is not None
        ],
        "context_kept": {
            "user": rounded(measured.flow.questions_kept),
            "assistant": rounded(measured.flow.answers_kept),
        },
    }


def _transition(transition: Transition, measured: Measured) -> Json:
    return {
        "from_segment": transition.index - 1,
        "to_segment": transition.index,
        "item_id": measured.id_of(measured.segments[transition.index].start),
        "distance": rounded(transition.distance),
        "likest_segment": transition.likest,
        "likeness": rounded(transition.likeness),
    }


def _question(question: Question, measured: Measured) -> Json:
    return {
        "question_id": measured.id_of(question.index),
        "answer_id": None if question.answer is None else measured.id_of(question.answer),
        "relatedness": rounded(question.relatedness),
    }


def _lengths(lengths: Lengths) -> Json:
    return {
        "messages": lengths.messages,
        "mean_words": rounded(lengths.mean_words),
        "longest_words": lengths.longest_words,
        "questions": lengths.questions,
    }


def times_to_json(times: Times) -> Json:
    return {"count": len(times.seconds), "median": times.median_s, "longest": times.longest_s}


def rounded(value: float | None) -> float | None:
    # A cosine of vectors in half precision is not known any better.
    return None if value is None else round(value, 3)


def _is_user(message: LoggedMessage) -> bool:
    return message.facts is not None and message.facts.role == "user"
