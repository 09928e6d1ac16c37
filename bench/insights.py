"""Where the topic shifts, on TIAGE's dialogues, beside the usual baselines; and how long insights take.

Prints Markdown. TIAGE is read from `../shared/data`. Its labels chose no number: those in `topics.py` come from the
literature, or from `bench/topic_shifts.txt`, conversations of our own that the first rows show. One thing was changed
after TIAGE had been measured (F1 0.467 then): a turn is taken together with its reply, as our own had it better.
`--examples N` prints the labels of the first N dialogues, as they come out. For times as in a replica, say
`OMP_NUM_THREADS=1`, as Ray does: the small products of vectors here are slower on several threads.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from bench.figures import found, parse_arguments
from serve_app.config import EncoderConfig
from serve_app.conversation.insights.conversation import build_insights
from serve_app.conversation.insights.gather import gather_facts
from serve_app.conversation.insights.message import build_facts, vectors_of
from serve_app.conversation.insights.topics import find_segments, find_shifts
from serve_app.conversation.log import ConversationLog
from serve_app.knowledge.encode import TextEncoder, load_encoder
from serve_app.parts import Sessions
from serve_app.storage.database import open_database
from serve_app.types import FloatMatrix, Json, new_id
from serve_app.types.conversation import AppendItems, MessageFacts

ROOT = Path(__file__).resolve().parent.parent
MESSAGES = 200
ROUNDS = 20
OWN = ROOT / "bench" / "topic_shifts.txt"

Flags = npt.NDArray[np.bool_]
"""[turns]"""
Values = npt.NDArray[np.float64]
"""[turns - 1], of all but the first turn: the higher, the more of a shift"""


@dataclass(frozen=True, slots=True)
class Dialogue:
    messages: list[MessageFacts]
    texts: list[str]
    shifts: Flags
    """What people said."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--examples", type=int, default=0, metavar="N", help="dialogues whose labels are shown")
    arguments = parse_arguments(parser)
    encoder = load_encoder(EncoderConfig())
    tiage = load_dialogues(read_tiage(arguments.data / "tiage" / "dialogs.jsonl"), encoder)
    print_shifts({"our own": load_dialogues(read_own(OWN), encoder), "TIAGE": tiage})
    print_labels(tiage[: arguments.examples])
    asyncio.run(print_times(encoder, [text for dialogue in tiage for text in dialogue.texts]))


# --- topic shifts -------------------------------------------------------------------------------


def nearest_turn(dialogue: Dialogue) -> Flags:
    """How unlike the turn before."""
    vectors = vectors_of(dialogue.messages)
    return cut(1 - np.sum(vectors[1:] * vectors[:-1], axis=1))


def depth(dialogue: Dialogue) -> Flags:
    """TextTiling's: how deep the similarity of neighbours dips, compared with the peaks on both sides."""
    vectors = vectors_of(dialogue.messages)
    likeness = np.sum(vectors[1:] * vectors[:-1], axis=1)
    return cut(np.array([_climb(likeness[gap::-1]) + _climb(likeness[gap:]) for gap in range(len(likeness))]))


def ours(dialogue: Dialogue) -> Flags:
    return np.array([turn.is_shift for turn in find_shifts(dialogue.messages)])


def always(dialogue: Dialogue) -> Flags:
    return np.arange(len(dialogue.messages)) > 0


METHODS: dict[str, Callable[[Dialogue], Flags]] = {
    "a call at every turn": always,
    "nearest turn": nearest_turn,
    "depth score": depth,
    "Rayconteur": ours,
}


def cut(values: Values) -> Flags:
    return np.array([False, *(values > values.mean() + 0.5 * values.std())])


def _climb(values: Values) -> float:
    top = values[0]
    for value in values[1:]:
        if value < top:
            break
        top = value
    return float(top - values[0])


def print_shifts(collections: dict[str, list[Dialogue]]) -> None:
    print(
        "| collection | dialogues | shifts / turns | method | precision | recall | F1 |\n|---|---|---|---|---|---|---|"
    )
    for name, dialogues in collections.items():
        truth = np.concatenate([dialogue.shifts for dialogue in dialogues])
        for method, find in METHODS.items():
            called = np.concatenate([find(dialogue) for dialogue in dialogues])
            right = int((truth & called).sum())
            precision, recall = right / called.sum(), right / truth.sum()
            f1 = 2 * right / (called.sum() + truth.sum())
            print(
                f"| {name} | {len(dialogues)} | {truth.sum()} / {len(truth)} | {method}"
                f" | {precision:.3f} | {recall:.3f} | {f1:.3f} |"
            )
            if name == "TIAGE" and find is ours:
                found("topic shifts of TIAGE: F1", f1, at_least=0.47)


def print_labels(dialogues: Sequence[Dialogue]) -> None:
    if not dialogues:
        return
    print("\n| messages | label | the first of them |\n|---|---|---|")
    for dialogue in dialogues:
        segments = find_segments(dialogue.messages, find_shifts(dialogue.messages))
        # The longest: a label of one message would only repeat it.
        segment = max(segments, key=lambda each: each.stop - each.start)
        print(f"| {segment.stop - segment.start} | {segment.label} | {dialogue.texts[segment.start]} |")


# --- times --------------------------------------------------------------------------------------


class LocalEmbedder:
    """The encoder as the embedder deployment runs it, without Ray between."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder

    async def embed(self, texts: Sequence[str], model: str | None = None) -> FloatMatrix:
        return await asyncio.to_thread(self._encoder.encode, texts)

    async def count_tokens(self, texts: Sequence[str], model: str | None = None) -> int:
        return sum(len(each) for each in self._encoder.tokenizer.encode_batch_fast(list(texts)))


async def print_times(encoder: TextEncoder, texts: Sequence[str]) -> None:
    """A conversation of 200 messages, the assistant's of about 100 words, asked about again and again on SQLite."""
    embedder = LocalEmbedder(encoder)
    with tempfile.TemporaryDirectory() as folder, closing(open_database(f"sqlite:///{folder}/bench.db")) as database:
        log = ConversationLog(database, max_cached=10)

        async def run(log_id: str, method: str, *arguments: object) -> Any:
            return await asyncio.to_thread(getattr(log, method), *arguments)

        sessions = Sessions(run)
        said = [texts[index] if index % 2 == 0 else " ".join(texts[index : index + 8]) for index in range(MESSAGES)]
        conversation_id = new_id("conv")
        await sessions.create_conversation(conversation_id, {}, tuple(map(as_item, said, range(MESSAGES))))

        async def ask() -> tuple[float, float]:
            """Milliseconds, and those of all threads' processor time, which others on the machine change little."""
            began, began_cpu = time.perf_counter(), time.process_time()
            recent = await gather_facts(conversation_id, encoder.model_id, sessions, embedder)
            orjson.dumps(await asyncio.to_thread(build_insights, conversation_id, recent))
            return 1e3 * (time.perf_counter() - began), 1e3 * (time.process_time() - began_cpu)

        async def ask_after_a_message(index: int) -> tuple[float, float]:
            await sessions.append_items(AppendItems(conversation_id, (as_item(said[index], index),), f"new:{index}"))
            return await ask()

        first_ms, first_cpu_ms = await ask()
        after_user = [await ask_after_a_message(2 * index) for index in range(ROUNDS)]
        after_answer = [await ask_after_a_message(2 * index + 1) for index in range(ROUNDS)]
        unchanged = [await ask() for _ in range(ROUNDS)]
    print(
        f"\n| insights of {MESSAGES} messages, ms | p50 | worst of {ROUNDS} | processor time, p50 |\n|---|---|---|---|"
    )
    print(f"| asked for the first time | {first_ms:.0f} | | {first_cpu_ms:.0f} |")
    for what, times in (
        ("after one new message of the user", after_user),
        ("after one new answer of about 100 words", after_answer),
        ("with nothing new", unchanged),
    ):
        walls, cpus = zip(*times, strict=True)
        asked = 50 if times is not unchanged else None
        found(f"insights of {MESSAGES} messages, {what}: p50", statistics.median(walls), "ms", at_most=asked)
        print(f"| {what} | {statistics.median(walls):.1f} | {max(walls):.1f} | {statistics.median(cpus):.1f} |")


# --- the collections ----------------------------------------------------------------------------


def load_dialogues(given: Sequence[list[tuple[str, bool]]], encoder: TextEncoder) -> list[Dialogue]:
    vectors = iter(encoder.encode([text for turns in given for text, _ in turns]))
    return [
        Dialogue(
            [build_facts(as_item(text, index), next(vectors)) for index, (text, _) in enumerate(turns)],
            [text for text, _ in turns],
            np.array([is_shift for _, is_shift in turns]),
        )
        for turns in given
    ]


def as_item(text: str, index: int) -> Json:
    return {"type": "message", "id": new_id("msg"), "role": ("user", "assistant")[index % 2], "content": text}


def read_tiage(path: Path) -> list[list[tuple[str, bool]]]:
    dialogues = map(json.loads, path.read_text().splitlines())
    return [[(turn["text"], turn["topic_shift"]) for turn in dialogue["turns"]] for dialogue in dialogues]


def read_own(path: Path) -> list[list[tuple[str, bool]]]:
    """A line is a turn, `> ` before it is a shift, an empty line ends a conversation."""
    return [
        [(line.removeprefix("> "), line.startswith("> ")) for line in block.splitlines()]
        for block in path.read_text().strip().split("\n\n")
    ]


if __name__ == "__main__":
    main()
