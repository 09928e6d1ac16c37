"""`chat.reply` where the model's replica dies: the text is that of an unbroken run, or the answer says why not."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.conversation.log import ConversationLog
from serve_app.errors import Unavailable
from serve_app.events import Citation, Event, TextDelta
from serve_app.generation import continuation
from serve_app.generation.answer import Answer
from tests.databases import opened
from tests.fakes import USAGE, FakeParts
from tests.test_chat import RHINE, SEARCH, ask, finish, finish_late, only, run, text_of

TEXT = ["The", " Rhine [", "1", "]", " flows", " \n\n", "\n", "  through", " [", "2", "] Basel", ",  not", " here.\n"]


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuation, "_PAUSE_S", 0)


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[FakeParts]:
    with opened(f"sqlite:///{tmp_path / 'log.db'}") as database:
        yield FakeParts(ConversationLog(database, max_cached=10), [RHINE])


def joined(events: list[Event]) -> str:
    return "".join(event.text for event in only(TextDelta, events))


@pytest.mark.parametrize("search", [None, SEARCH])
@pytest.mark.parametrize("died_after", range(len(TEXT) + 1))
async def test_text_is_that_of_an_unbroken_run(fakes: FakeParts, died_after: int, search: object) -> None:
    fakes.generator.deltas = TEXT
    turn_search = SEARCH if search else None
    unbroken = await run(ask(search=turn_search), fakes)
    fakes.generator.deaths = [died_after]

    events = await run(ask(search=turn_search), fakes)

    assert joined(events) == joined(unbroken)
    assert only(Citation, events) == only(Citation, unbroken)
    assert [type(event) for event in events if not isinstance(event, TextDelta)] == [
        type(event) for event in unbroken if not isinstance(event, TextDelta)
    ]


async def test_replica_after_replica_may_die(fakes: FakeParts) -> None:
    fakes.generator.deltas = TEXT
    fakes.generator.deaths = [0, 4, 0, 2, 1]

    finished = await finish(ask(), fakes)

    assert text_of(finished.response) == "".join(TEXT)
    assert finished.response["status"] == "completed"


async def test_request_that_kills_every_replica_is_given_up(fakes: FakeParts) -> None:
    fakes.generator.deaths = [1] + [0] * 100

    finished = await finish(ask(), fakes)

    assert len(fakes.generator.requests) == 1 + continuation.MAX_LOSSES
    assert finished.error is None
    assert finished.response["incomplete_details"] == {"reason": "generator_lost"}
    assert text_of(finished.response) == "Hello"


async def test_request_names_what_is_written_and_what_may_still_be(fakes: FakeParts) -> None:
    fakes.generator.deltas = ["one", " two", " three"]
    fakes.generator.deaths = [2]

    finished = await finish(ask(sampling={"max_completion_tokens": 5}), fakes)

    first, second = [request.payload for request in fakes.generator.requests]
    assert second["messages"] == [*first["messages"], {"role": "assistant", "content": "one two"}]
    assert (second["continue_final_message"], second["add_generation_prompt"]) == (True, False)
    assert (first["max_completion_tokens"], second["max_completion_tokens"]) == (5, 3)
    assert fakes.generator.requests[0].request_id != fakes.generator.requests[1].request_id
    usage = finished.response["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (
        USAGE["prompt_tokens"],
        USAGE["completion_tokens"],
        USAGE["total_tokens"],
    )


async def test_answer_that_was_long_enough_needs_no_other_replica(fakes: FakeParts) -> None:
    fakes.generator.deltas = ["one", " two", " three"]
    fakes.generator.deaths = [2]

    finished = await finish(ask(sampling={"max_completion_tokens": 2}), fakes)

    assert len(fakes.generator.requests) == 1
    assert text_of(finished.response) == "one two"
    assert finished.response["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_json_is_not_gone_on_with(fakes: FakeParts) -> None:
    fakes.generator.deltas = ['{"a":', " 1}"]
    fakes.generator.deaths = [1]

    finished = await finish(ask(sampling={"response_format": {"type": "json_object"}}), fakes)

    assert len(fakes.generator.requests) == 1
    assert finished.error is None
    assert finished.response["incomplete_details"] == {"reason": "generator_lost"}
    assert text_of(finished.response) == '{"a":'


async def test_json_of_which_nothing_was_seen_is_asked_for_again(fakes: FakeParts) -> None:
    fakes.generator.deltas = ['{"a":', " 1}"]
    fakes.generator.deaths = [0]

    finished = await finish(ask(sampling={"response_format": {"type": "json_object"}}), fakes)

    assert text_of(finished.response) == '{"a": 1}'


async def test_without_another_replica_it_ends_at_its_deadline(
    fakes: FakeParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(continuation, "_PAUSE_S", 60)
    fakes.generator.deaths = [2]

    finished = await finish_late(fakes, fakes.generator.closed, monkeypatch)

    assert finished.response["incomplete_details"] == {"reason": "generator_lost"}
    assert text_of(finished.response) == "Hello there"


async def test_before_the_first_word_the_question_is_taken_back(fakes: FakeParts) -> None:
    fakes.generator.refusal = Unavailable("nobody is there")

    with pytest.raises(Unavailable, match="nobody"):
        await run(ask(), fakes)

    assert fakes.journal.entries[-1] == "question withdrawn"


@pytest.mark.parametrize(
    ("written", "rest", "whole"),
    [
        ("a ", [" ", "b"], "a b"),
        ("a ", ["b"], "a b"),
        ("a\n", ["\n", "\n", "b"], "a\n\nb"),
        ("a\n\n", ["\n", "b"], "a\n\nb"),
        (" \n", [" \n\n", "b"], " \n\nb"),
        ("a\n", [" b"], "a\n b"),
        ("a", [" b"], "a b"),
    ],
)
def test_white_space_at_the_seam_is_there_once(written: str, rest: list[str], whole: str) -> None:
    answer = Answer({})
    answer.add(chunk(written))

    answer.expect_rest(len)
    for delta in rest:
        answer.add(chunk(delta))

    assert answer.text == answer.raw_text == whole


def chunk(text: str) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}
