"""`memory`: when the past is folded, what becomes of what the model writes, and how the prompt grows."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from serve_app.admission.tiers import BACKGROUND
from serve_app.chat import Turn, reply
from serve_app.config import AppConfig, GeneratorConfig, SessionsConfig, StorageConfig
from serve_app.conversation.log import ConversationLog
from serve_app.errors import InvalidRequest, RayconteurError, Unavailable
from serve_app.generation.prompt import GUIDANCE, SUMMARY
from serve_app.generation.summary import INSTRUCTIONS
from serve_app.memory import EXTRACT, choose_cut, fit, is_full, max_read_items, shown_text, token_limit
from serve_app.search import Search
from serve_app.types import Json, new_id
from serve_app.types.conversation import KeepSummary, OpenTurn, PastItem, Summary, Window
from serve_app.types.knowledge import Ranking, StoreTable
from tests.databases import opened
from tests.fakes import FakeGenerator, FakeParts, RecordedMetrics, build_passage

RHINE = build_passage(1, "The Rhine flows through Basel.")
SEARCH = Search({"vs_1": StoreTable("all-minilm-l6-v2")}, max_passages=5, filter=None, ranking=Ranking())
SUMMED_UP = "The user asked about bridge and river again."
QUESTION = "Question {} asked about a bridge and a river, again and again and for a long while."


class TwoVoices(FakeGenerator):
    """Writes summaries when asked for one, else answers; remembers which requests were which."""

    def __init__(self) -> None:
        super().__init__()
        self.summary = SUMMED_UP
        self.fold_failure: RayconteurError | None = None
        self.folds: list[Json] = []
        self.warmed: list[Json] = []
        self.priorities: set[int] = set()
        self.at_once = asyncio.Event()
        self.at_once.set()

    async def complete(self, request: Any) -> Json:
        completion = await super().complete(request)
        self.requests.remove(request)
        self.priorities.add(request.priority)
        if request.payload["max_completion_tokens"] == 1:
            self.warmed.append(request.payload)
            return completion
        assert request.payload["messages"][0]["content"] == INSTRUCTIONS
        self.folds.append(request.payload)
        await self.at_once.wait()
        if self.fold_failure:
            raise self.fold_failure
        completion["choices"][0]["message"]["content"] = self.summary
        return completion


class Talk:
    """A conversation with the fakes."""

    def __init__(self, log: ConversationLog) -> None:
        self.fakes = FakeParts(log, [RHINE])
        self.model = TwoVoices()
        self.metrics = RecordedMetrics()
        self.parts = replace(self.fakes.parts, generator=self.model, metrics=self.metrics)
        self.config = config()
        self.id = new_id("conv")
        log.create_conversation(self.id, {}, ())

    async def ask(self, text: str, *, search: Search | None = None, settled: bool = True, **fields: Any) -> list[Json]:
        """The prompt that the model was shown. Waits for what goes on behind unless `settled` is off."""
        item = {
            "type": "message",
            "id": new_id("msg"),
            "role": "user",
            "content": [{"type": "input_text", "text": text}],
        }
        response = {"id": new_id("resp"), "instructions": "Be brief.", "status": "in_progress", "output": []}
        opening = OpenTurn(response, (item,), **({"conversation_id": self.id} | fields))
        async for _ in reply(Turn(opening, {"model": "m"}, "req_1", search), self.parts, self.config):
            pass
        if settled:
            await self.settle()
        self.last_response = response["id"]
        messages: list[Json] = self.model.requests[-1].payload["messages"]
        return messages

    async def settle(self) -> None:
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)

    async def window(self) -> Window:
        return await self.parts.sessions.read_window(self.id, 1000)

    async def summary(self) -> Summary:
        summary = (await self.window()).summary
        assert summary is not None
        return summary


def config(*, context: int | None = None, **sessions: Any) -> AppConfig:
    engine = {"max_model_len": context} if context else {}
    return AppConfig(
        storage=StorageConfig(folder=Path("unused")),
        generator=GeneratorConfig(engine=engine),
        sessions=SessionsConfig(**sessions),
    )


@pytest.fixture
def log(tmp_path: Path) -> Iterator[ConversationLog]:
    with opened(f"sqlite:///{tmp_path / 'log.db'}") as database:
        yield ConversationLog(database, max_cached=10)


@pytest.fixture
async def talk(log: ConversationLog) -> Talk:
    return Talk(log)


def contents(messages: list[Json]) -> list[str]:
    return [each["content"] for each in messages]


# --- folding ------------------------------------------------------------------------------------


async def test_what_leaves_the_window_is_in_the_summary(talk: Talk) -> None:
    for number in range(1, 7):
        prompt = await talk.ask(QUESTION.format(number))
    assert len(prompt) == 12  # instructions, five turns, the sixth question: the sixth answer makes the window too long

    prompt = await talk.ask("And now?")

    assert prompt[0]["content"] == f"Be brief.\n\n{SUMMARY}{SUMMED_UP}"
    assert contents(prompt[1:2]) == [QUESTION.format(4)]
    assert len(prompt) == 1 + 6 + 1
    (request,) = talk.model.folds
    for number in (1, 2, 3):
        assert f"User: {QUESTION.format(number)}\n\nAssistant: Hello there." in request["messages"][1]["content"]
    assert QUESTION.format(4) not in request["messages"][1]["content"]
    assert talk.model.priorities == {BACKGROUND}


async def test_a_summary_goes_on_from_the_one_before(talk: Talk) -> None:
    for number in range(1, 10):
        await talk.ask(QUESTION.format(number))
        if len(talk.model.folds) == 1:
            talk.model.summary = "Of the bridge and the river the user asked again."

    assert len(talk.model.folds) == 2
    assert f"Before: {SUMMED_UP}\n\n" in talk.model.folds[1]["messages"][1]["content"]
    assert QUESTION.format(3) not in talk.model.folds[1]["messages"][1]["content"]
    assert (await talk.summary()).text == "Of the bridge and the river the user asked again."


async def test_the_next_prompt_is_computed_before_the_summary_counts(talk: Talk) -> None:
    for number in range(1, 7):
        await talk.ask(QUESTION.format(number), search=SEARCH)
    (warmed,) = talk.model.warmed

    prompt = await talk.ask("And now?", search=SEARCH)

    assert warmed["messages"] == prompt[:-1]
    assert warmed["messages"][0]["content"].endswith(GUIDANCE)


async def test_while_the_summary_is_behind_the_window_is_longer(talk: Talk) -> None:
    talk.model.at_once.clear()
    for number in range(1, 9):
        prompt = await talk.ask(QUESTION.format(number), settled=False)

    assert len(prompt) == 1 + 14 + 1
    assert len(talk.model.folds) == 1  # one at a time
    talk.model.at_once.set()
    await talk.settle()
    assert (await talk.summary()).text == SUMMED_UP


async def test_turns_that_came_while_it_was_written_are_computed_ahead_too(talk: Talk) -> None:
    talk.model.at_once.clear()
    for number in range(1, 9):
        await talk.ask(QUESTION.format(number), settled=False)
    talk.model.at_once.set()
    await talk.settle()
    (warmed,) = talk.model.warmed

    prompt = await talk.ask("And now?")

    assert contents(warmed["messages"][1:2]) == [QUESTION.format(4)]
    assert warmed["messages"] == prompt[:-1]


@pytest.mark.parametrize(
    ("babble", "reason"),
    [("", "empty"), ("The same. " * 20, "repetitive"), ("Völlig andere Wörter stehen hier.", "unrelated")],
)
async def test_babble_is_refused_twice_and_then_done_without_the_model(talk: Talk, babble: str, reason: str) -> None:
    talk.model.summary = babble
    for number in range(1, 7):
        await talk.ask(QUESTION.format(number))

    assert [each["temperature"] for each in talk.model.folds] == [0.0, 0.4]
    summary = await talk.summary()
    assert summary.model == EXTRACT
    assert summary.text.startswith("User: Question 1 asked")
    assert talk.metrics.totals == {
        ("rayconteur_summary_refusals", reason): 2,
        ("rayconteur_summaries", EXTRACT): 1,
    }


async def test_a_model_that_cannot_be_reached_leaves_the_old_summary(talk: Talk) -> None:
    talk.model.fold_failure = Unavailable("being restarted")
    for number in range(1, 7):
        await talk.ask(QUESTION.format(number))
    assert (await talk.window()).summary is None

    talk.model.fold_failure = None
    await talk.ask(QUESTION.format(7))

    assert (await talk.summary()).text == SUMMED_UP


async def test_a_model_that_refuses_the_request_is_done_without(talk: Talk) -> None:
    talk.model.fold_failure = InvalidRequest("too long")
    for number in range(1, 7):
        await talk.ask(QUESTION.format(number))

    assert (await talk.summary()).model == EXTRACT


async def test_a_window_with_too_many_tokens_is_folded(talk: Talk) -> None:
    talk.config = config(max_history_tokens=64)
    for number in range(1, 5):
        await talk.ask(QUESTION.format(number))

    window = await talk.window()
    assert window.summary is not None
    assert [shown_text(item) for item in window.items] == [
        QUESTION.format(3),
        "Hello there.",
        QUESTION.format(4),
        "Hello there.",
    ]


async def test_without_store_and_conversation_nothing_is_summed_up(talk: Talk) -> None:
    talk.config = config(max_history_items=2)
    for number in range(1, 4):
        await talk.ask(QUESTION.format(number), conversation_id=None, store=False)

    assert talk.model.folds == []


async def test_responses_that_follow_each_other_share_their_summary(talk: Talk) -> None:
    await talk.ask(QUESTION.format(1), conversation_id=None)
    for number in range(2, 8):
        prompt = await talk.ask(QUESTION.format(number), conversation_id=None, previous_response_id=talk.last_response)

    assert SUMMED_UP in prompt[0]["content"]
    assert len(prompt) == 1 + 6 + 1


# --- when it cannot wait ------------------------------------------------------------------------


async def test_a_past_that_does_not_fit_is_folded_at_once(talk: Talk) -> None:
    await talk.ask("Old words come first. More of them.")
    talk.config = config(max_history_tokens=4)

    prompt = await talk.ask("And?")

    assert contents(prompt) == [
        f"Be brief.\n\n{SUMMARY}User: Old words come first.\nAssistant: Hello there.",
        "And?",
    ]
    assert (await talk.summary()).model == EXTRACT


async def test_a_question_that_leaves_no_room_makes_the_conversation_forget_nothing(talk: Talk) -> None:
    talk.config = config(context=3000)  # 120 for the window and the question, beside 256 for the summary
    await talk.ask("Old words come first. More of them.")

    talk.model.deltas = ["No."]
    huge = await talk.ask("Why? " * 110)
    assert contents(huge[:1]) == [f"Be brief.\n\n{SUMMARY}User: Old words come first.\nAssistant: Hello there."]

    assert shown_text((await talk.window()).items[0]) == "Old words come first. More of them."
    assert (await talk.window()).summary is None


async def test_a_past_longer_than_is_read_is_in_the_summary_from_the_first_turn_on(
    talk: Talk, log: ConversationLog
) -> None:
    items = [{"type": "message", "id": new_id("msg"), "role": "user", "content": f"Line {n}."} for n in range(100)]
    talk.id = log.create_conversation(new_id("conv"), {}, tuple(items)).id

    prompt = await talk.ask("And?")

    assert contents(prompt)[-7:] == [*(f"Line {n}." for n in range(94, 100)), "And?"]
    assert "User: Line 93." in prompt[0]["content"]
    assert (await talk.window()).items[0].body["content"] == "Line 94."


def test_the_limit_leaves_room_for_all_else_in_the_prompt(log: ConversationLog) -> None:
    parts = FakeParts(log).parts

    assert token_limit(config(max_history_tokens=100), (), 512, parts) == 200
    # 5,000 less the passages' 2,048, the answer's 512, the summary's 256, 64 between messages and 3 words
    assert token_limit(config(context=5000), ("one two", "three"), 512, parts) == 2117
    assert token_limit(config(context=2000), (), 512, parts) == 0


async def test_with_truncation_the_oldest_of_the_input_is_left_out(talk: Talk) -> None:
    # 16 are left of 2,640 beside the passages' 2,048, the answer's 512, 64 between messages: less 2 of the instructions
    talk.config = config(context=2640)
    message = {"type": "message", "role": "user"}
    items = tuple(
        {**message, "id": new_id("msg"), "content": [{"type": "input_text", "text": text}]}
        for text in ("one two three four five six seven eight", "one two three four five six", "Why is it so?")
    )
    response = {"id": new_id("resp"), "instructions": "Be brief.", "status": "in_progress", "output": []}

    async def shown(truncation: str, asked: tuple[Json, ...]) -> list[str]:
        opening = OpenTurn({**response, "truncation": truncation}, asked, store=False)
        async for _ in reply(Turn(opening, {"model": "m"}, "req_1"), talk.parts, talk.config):
            pass
        return contents(talk.model.requests[-1].payload["messages"])[1:]

    assert await shown("disabled", items) == ["one two three four five six seven eight", *await shown("auto", items)]
    assert await shown("auto", items) == ["one two three four five six", "Why is it so?"]
    too_long = {**items[2], "content": [{"type": "input_text", "text": "Why? " * 100}]}
    assert await shown("auto", (items[0], too_long)) == ["Why? " * 100]


def past(*roles: str) -> tuple[PastItem, ...]:
    return tuple(
        PastItem("conv_1", seq, {"type": "message", "id": f"msg_{seq}", "role": role, "content": "one two"})
        for seq, role in enumerate(roles, 1)
    )


@pytest.mark.parametrize(
    ("roles", "max_messages", "max_tokens", "cut"),
    [
        ("uauauauauaua", 10, 1000, 6),  # at most 6 stay
        ("uauauauauaua", 10, 10, 10),  # 6 tokens stay, which are 3 messages: the last turn
        ("uauauauauaua", 10, 2, 10),  # too long, but the last turn
        ("uaaauaaaaaaa", 10, 1000, 4),  # a turn is not cut
        ("ua", 10, 2, 0),
        ("uaaaaaaaaaaa", 10, 1000, 6),  # but one of very many messages is
        ("aaaaaaaaaaaa", 10, 1000, 6),
        ("", 10, 1000, 0),
    ],
)
def test_a_fold_leaves_whole_turns(roles: str, max_messages: int, max_tokens: int, cut: int) -> None:
    items = past(*({"u": "user", "a": "assistant"}[each] for each in roles))

    assert choose_cut(items, [2] * len(items), max_messages, max_tokens) == cut


def test_a_huge_message_is_not_tokenised(log: ConversationLog) -> None:
    counted: list[str] = []

    def count(text: str) -> int:
        counted.append(text)
        return len(text.split())

    parts = replace(FakeParts(log).parts, count_tokens=count)
    huge = PastItem("conv_1", 1, {"type": "message", "id": "msg_1", "role": "user", "content": "x" * 1_000_000})

    assert is_full(Window((huge,)), config(), parts)
    fitted = fit(Window((huge,)), 100, config(), parts)

    assert fitted.items == ()
    assert all(len(each) < 10_000 for each in counted)


async def test_a_summary_that_the_database_does_not_take_hinders_no_answer(talk: Talk) -> None:
    async def unavailable(kept: KeepSummary) -> bool:
        raise Unavailable("The database does not answer")

    talk.parts.sessions.keep_summary = unavailable  # type: ignore[method-assign]
    talk.config = config(max_history_tokens=4)
    await talk.ask("Old words come first. More of them.")

    assert len(await talk.ask("And?")) == 2


# --- the engine's prefix cache ------------------------------------------------------------------


@pytest.mark.parametrize("search", [None, SEARCH], ids=["plain", "with sources"])
async def test_from_turn_to_turn_the_prompt_changes_only_at_its_end(talk: Talk, search: Search | None) -> None:
    talk.model.deltas = ["It flows", " there [", "1]."]
    prompts = [await talk.ask(QUESTION.format(number), search=search) for number in range(1, 13)]

    steps = [now for before, now in pairwise(prompts) if now[: len(before)] != before]

    assert [each[-1]["content"].split("Question ")[-1].split()[0] for each in steps] == ["7", "10"]
    for before, now in pairwise(prompts):
        if now not in steps:
            # The answer as the model wrote it, with its marker: that is what lies in the cache.
            assert now[len(before)] == {"role": "assistant", "content": "It flows there [1]."}
            assert len(now) == len(before) + 2


async def test_all_requests_of_a_conversation_go_to_the_same_generator(talk: Talk) -> None:
    for number in range(1, 8):
        await talk.ask(QUESTION.format(number), search=SEARCH)
    assert {each.session_id for each in talk.model.requests} == {talk.id}

    talk.model.requests.clear()
    await talk.ask(QUESTION.format(1), search=SEARCH, conversation_id=None)
    await talk.ask(QUESTION.format(2), search=SEARCH, conversation_id=None, previous_response_id=talk.last_response)
    assert len({each.session_id for each in talk.model.requests}) == 1


def test_more_is_read_than_a_window_has(log: ConversationLog) -> None:
    # A turn with a search has three items: the window of 10 messages, and one turn more.
    assert max_read_items(config()) > 3 * (10 / 2 + 1)
