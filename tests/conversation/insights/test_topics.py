from serve_app.conversation.insights.topics import find_segments, find_shifts
from serve_app.types.conversation import MessageFacts
from tests.conversation.insights.facts import says


def shifts(messages: list[MessageFacts]) -> list[int]:
    return [index for index, turn in enumerate(find_shifts(messages)) if turn.is_shift]


def test_a_turn_that_has_nothing_to_do_with_those_before_shifts_the_topic() -> None:
    messages = [says(degrees=degrees) for degrees in (0, 5, 0, 5, 90, 85, 90, 85)]

    assert shifts(messages) == [4]


def test_an_aside_after_which_the_talk_goes_on_as_before_is_less_of_a_shift() -> None:
    aside = find_shifts([says(degrees=degrees) for degrees in (0, 5, 0, 90, 0, 5)])
    new_topic = find_shifts([says(degrees=degrees) for degrees in (0, 5, 0, 90, 90, 95)])

    assert aside[3].distance < new_topic[3].distance


def test_who_answers_or_points_back_stays_with_the_topic() -> None:
    degrees = (0, 10, 0, 50, 55, 50, 90, 95)
    plain = [says(degrees=each) for each in degrees]
    answering = [*plain[:2], says(degrees=0, is_question=True), *plain[3:]]
    pointing = [*plain[:3], says(degrees=50, continues=True), *plain[4:]]

    assert find_shifts(answering)[3].score < find_shifts(plain)[3].score
    assert find_shifts(pointing)[3].score < find_shifts(plain)[3].score


def test_the_same_thing_again_is_no_shift() -> None:
    assert shifts([says(degrees=30) for _ in range(6)]) == []


def test_one_message_and_none_have_no_shifts() -> None:
    assert find_shifts([]) == []
    assert shifts([says()]) == []
    assert find_segments([], []) == []


def test_segments_hold_every_message_once_in_order() -> None:
    messages = [says(degrees=degrees) for degrees in (0, 5, 0, 5, 90, 85, 90, 85, 180, 175, 180, 175)]

    segments = find_segments(messages, find_shifts(messages))

    assert [segment.start for segment in segments[1:]] == [segment.stop for segment in segments[:-1]]
    assert (segments[0].start, segments[-1].stop) == (0, len(messages))
    assert len(segments) == 3


def test_a_label_has_the_terms_that_tell_a_segment_from_the_others() -> None:
    boats = [says(degrees=0, terms=("ferry", "price", "ferry price")), says(degrees=5, terms=("ferry", "island"))]
    lamps = [says(degrees=90, terms=("lamp", "price")), says(degrees=85, terms=("lamp", "electric"))]
    messages = [*boats, *boats, *lamps, *lamps]

    first, second = find_segments(messages, find_shifts(messages))

    assert first.label == "ferry, island, price"
    assert second.label.startswith("lamp, electric")


def test_without_terms_a_segment_is_called_by_its_first_words() -> None:
    (segment,) = find_segments([says(opening="今天天气很好")], find_shifts([says()]))

    assert (segment.label, segment.terms) == ("今天天气很好", ())
