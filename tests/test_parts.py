"""The gateway's side of the sessions."""

from typing import Any

import pytest

from serve_app.errors import InvalidRequest
from serve_app.parts import Sessions
from serve_app.types import Json
from serve_app.types.conversation import OpenedTurn, OpenTurn, Window

RESPONSE: Json = {"id": "resp_1", "status": "in_progress"}


def question(text: str) -> Json:
    content = [{"type": "input_text", "text": text}]
    return {"id": "msg_1", "type": "message", "role": "user", "content": content}


@pytest.fixture
def asked() -> list[OpenTurn]:
    return []


@pytest.fixture
def sessions(asked: list[OpenTurn]) -> Sessions:
    async def run(log_id: str, method: str, *arguments: Any) -> OpenedTurn:
        asked.extend(arguments)
        return OpenedTurn(Window(), log_id)

    return Sessions(run)


async def test_a_question_that_stands_alone_asks_no_log(sessions: Sessions, asked: list[OpenTurn]) -> None:
    opened = await sessions.open_turn(OpenTurn(RESPONSE, (question("Where?"),), store=False))

    assert opened == OpenedTurn(Window(), None)
    assert not asked


async def test_and_is_checked_as_others_are(sessions: Sessions) -> None:
    with pytest.raises(InvalidRequest, match=r"U\+0000"):
        await sessions.open_turn(OpenTurn(RESPONSE, (question("Where?\0"),), store=False))


@pytest.mark.parametrize(
    "more", [{"store": True}, {"conversation_id": "conv_1"}, {"previous_response_id": "resp_0"}], ids=str
)
async def test_every_other_one_is_the_logs(sessions: Sessions, asked: list[OpenTurn], more: Json) -> None:
    turn = OpenTurn(RESPONSE, (question("Where?"),), **{"store": False, **more})

    opened = await sessions.open_turn(turn)

    assert opened.log_id
    assert asked == [turn]
