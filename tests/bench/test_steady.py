"""Mixed work: what it sends is answered, and how the growth of memory is told from a curve."""

from pathlib import Path

import pytest

from bench.openloop import Attempt, open_session, run
from bench.steady import MIX, MixedWork, by_minute, growth, share_answered
from tests.api.chat_app import MODEL, running_chat
from tests.fakes import build_passage


async def test_every_kind_of_request_is_answered(tmp_path: Path) -> None:
    with running_chat(tmp_path, [build_passage(1, "The ferry sails at noon.")]) as chat:
        async with open_session() as session:
            work = MixedWork(session, chat.url, MODEL, seed=1)
            await work.prepare()
            attempts = [Attempt(kind, 0, 0) for kind in MIX]
            for attempt in attempts:
                await run(work.sends[attempt.label], attempt)

        endings = {each.label: (each.ending, each.reason) for each in attempts}

    assert endings == dict.fromkeys(MIX, ("answered", ""))


def test_share_of_a_kind_counts_no_other() -> None:
    attempts = [
        Attempt("chat", 0, 0, "answered"),
        Attempt("chat", 0, 0, "refused"),
        Attempt("search", 0, 0, "answered"),
    ]

    assert [share_answered(attempts, kind) for kind in ("chat", "search", "upload")] == [0.5, 1, 1]


def test_growth_is_that_of_the_highest_later_minute() -> None:
    curve = [(float(at_s), 1000.0) for at_s in range(0, 120, 5)]
    curve += [(at_s, 2000.0) for at_s in range(120, 180, 5)]
    curve += [(at_s, 2100.0) for at_s in range(180, 240, 5)]
    curve += [(at_s, 2040.0) for at_s in range(240, 300, 5)]

    assert by_minute(curve) == [1000, 1000, 2000, 2100, 2040]
    assert growth(curve, settled_s=180) == pytest.approx(0.05)


def test_one_sample_that_stands_out_is_no_growth() -> None:
    curve = [(float(at_s), 9000.0 if at_s == 200 else 2000.0) for at_s in range(0, 300, 5)]

    assert growth(curve, settled_s=180) == 0
