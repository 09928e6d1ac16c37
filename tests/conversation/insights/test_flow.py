import pytest

from serve_app.conversation.insights.flow import Flow, measure_flow
from serve_app.conversation.insights.topics import find_segments, find_shifts
from serve_app.types.conversation import MessageFacts
from tests.conversation.insights.facts import says


def flow_of(*messages: MessageFacts) -> Flow:
    turns = find_shifts(messages)
    return measure_flow(messages, turns, find_segments(messages, turns))


def test_there_is_a_transition_between_each_two_segments() -> None:
    flow = flow_of(*(says(degrees=degrees) for degrees in (0, 5, 0, 5, 90, 85, 90, 85)))

    (transition,) = flow.transitions
    assert (transition.index, transition.likest) == (1, None)
    assert transition.distance > 0.9


def test_coming_back_to_a_topic_shows_as_likeness_to_it() -> None:
    flow = flow_of(*(says(degrees=degrees) for degrees in (0, 5, 0, 5, 90, 85, 90, 85, 0, 5, 0, 5)))

    back = flow.transitions[-1]
    assert (back.index, back.likest) == (2, 0)
    assert back.likeness == pytest.approx(1, abs=0.01)


def test_context_is_kept_by_who_stays_near_what_was_said() -> None:
    flow = flow_of(says(degrees=0), says("assistant", degrees=60), says(degrees=60), says("assistant", degrees=60))

    assert flow.answers_kept is not None
    assert flow.questions_kept is not None
    assert 0.5 < flow.answers_kept < 1
    assert 0.5 < flow.questions_kept < 1


def test_nothing_was_said() -> None:
    assert flow_of() == Flow((), None, None)
