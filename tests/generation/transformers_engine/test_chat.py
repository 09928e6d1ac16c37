"""The whole HTTP API over the transformers engine, with a tiny random model and OpenAI's client."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import openai
import pytest

from serve_app.config import GeneratorConfig
from serve_app.generation.transformers_engine.chat import complete, stream
from serve_app.generation.transformers_engine.engine import TransformersEngine
from serve_app.types import Json
from serve_app.types.generation import GenerationRequest
from tests.api.chat_app import MODEL, ChatApp, running_chat
from tests.language_model import write_language_model

MAX_MODEL_LEN = 600


class EngineGenerator:
    """As the deployment, without Ray."""

    def __init__(self, engine: TransformersEngine) -> None:
        self._engine = engine

    async def complete(self, request: GenerationRequest) -> Json:
        return await complete(self._engine, request)

    def stream(self, request: GenerationRequest) -> AsyncIterator[str]:
        return stream(self._engine, request)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatApp]:
    """One request at a time: one that is not ended would keep all others out."""
    config = GeneratorConfig(
        model_source=write_language_model(tmp_path_factory.mktemp("model")),
        engine={"max_num_seqs": 1, "max_model_len": MAX_MODEL_LEN},
    )
    engine = TransformersEngine(config, "float32")
    with running_chat(tmp_path_factory.mktemp("data")) as app:
        parts = replace(app.fakes.parts, generator=EngineGenerator(engine))
        app.app.state.context = replace(app.app.state.context, parts=parts)
        yield app
    engine.stop()


def ask(app: ChatApp, **fields: Any) -> Json:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 12, "ignore_eos": True, "temperature": 0}
    answer = app.http.post("/v1/chat/completions", json=body | fields, timeout=60)
    answer.raise_for_status()
    completion: Json = answer.json()
    return completion


def test_a_stream_adds_up_to_the_whole_answer(app: ChatApp) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
    whole = app.openai.chat.completions.create(**asked, max_tokens=20)

    chunks = list(
        app.openai.chat.completions.create(**asked, max_tokens=20, stream=True, stream_options={"include_usage": True})
    )

    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_conversation_is_answered_and_remembered(app: ChatApp) -> None:
    conversation = app.openai.conversations.create().id
    lengths = []
    for question in ("One?", "Two?"):
        response = app.openai.responses.create(
            model=MODEL, input=question, conversation=conversation, max_output_tokens=8, temperature=0
        )
        assert response.usage
        assert response.output_text
        lengths.append(response.usage.input_tokens)

    assert lengths[1] > lengths[0] + len("user:Two?|")
    assert len(app.openai.conversations.items.list(conversation).data) == 4


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_what_this_engine_cannot_do_is_a_400(
    app: ChatApp, fields: dict[str, Any], param: str, is_streamed: bool
) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": is_streamed, **fields}

    answer = app.http.post("/v1/chat/completions", json=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_a_prompt_over_the_context_is_a_400_and_leaves_nothing(app: ChatApp) -> None:
    conversation = app.openai.conversations.create().id
    with pytest.raises(openai.BadRequestError) as refused:
        app.openai.responses.create(model=MODEL, input="x" * MAX_MODEL_LEN, conversation=conversation)

    assert refused.value.code == "context_length_exceeded"
    assert app.openai.conversations.items.list(conversation).data == []


def test_a_client_that_leaves_makes_room_for_the_next(app: ChatApp) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 580, "ignore_eos": True, "stream": True}
    with app.http.stream("POST", "/v1/chat/completions", json=body, timeout=60) as answer:
        next(answer.iter_lines())

    assert ask(app)["usage"]["completion_tokens"] == 12
