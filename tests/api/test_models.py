"""Several models that write: which one a request is answered by, and what is each one's own."""

from collections.abc import Iterator
from dataclasses import replace

import openai
import pytest

from serve_app.config import GeneratorConfig
from tests.api.chat_app import MODEL, ChatApp, running_chat
from tests.fakes import build_passage

OTHER = "org/other"
ADAPTER = "pirate"
"""Of the other model."""
HI = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatApp]:
    passages = [build_passage(1, "The Rhine flows."), build_passage(2, "The Aare flows.")]
    other = GeneratorConfig(model_id=OTHER, engine={"max_model_len": 4096}, adapters={ADAPTER: "folder"})
    with running_chat(tmp_path_factory.mktemp("models"), passages, (other,)) as app:
        yield app


@pytest.fixture
def app(shared: ChatApp) -> ChatApp:
    """Every text has a million tokens for the other model."""
    app = shared.with_fresh_fakes()
    parts = replace(app.fakes.parts, token_counters=dict.fromkeys((OTHER, ADAPTER), lambda text: 1_000_000))
    app.app.state.context = replace(app.app.state.context, parts=parts)
    return app


def asked(app: ChatApp) -> list[str]:
    return [request.payload["model"] for request in app.fakes.generator.requests]


def test_every_model_is_listed_by_its_id(app: ChatApp) -> None:
    assert [each.id for each in app.openai.models.list()] == [MODEL, OTHER, ADAPTER, "all-minilm-l6-v2"]
    assert app.openai.models.retrieve(OTHER).id == OTHER
    assert app.http.get(f"/v1/models/{ADAPTER}").json()["parent"] == OTHER
    assert app.http.get(f"/v1/models/{OTHER}").json()["parent"] is None


def test_a_request_is_answered_by_the_model_that_it_names_and_else_by_the_first(app: ChatApp) -> None:
    app.http.post("/v1/chat/completions", json={**HI, "model": OTHER}).raise_for_status()
    app.http.post("/v1/chat/completions", json=HI).raise_for_status()
    app.http.post("/v1/responses", json={"input": "Hi", "model": ADAPTER}).raise_for_status()

    assert asked(app) == [OTHER, MODEL, ADAPTER]


@pytest.mark.parametrize("model", ["gpt-5", "all-minilm-l6-v2", ""])
def test_a_model_that_does_not_write_here_is_a_404(app: ChatApp, model: str) -> None:
    for path in ("/v1/chat/completions", "/v1/responses"):
        answer = app.http.post(path, json={**HI, "input": "Hi", "model": model})
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "model_not_found"
        assert f"'{MODEL}' or '{OTHER}' or '{ADAPTER}'" in answer.json()["error"]["message"]
    assert asked(app) == []


def test_a_conversation_changes_its_model_from_turn_to_turn(shared: ChatApp) -> None:
    app = shared.with_fresh_fakes()
    conversation = app.openai.conversations.create().id

    first = app.openai.responses.create(model=MODEL, input="One?", conversation=conversation)
    second = app.openai.responses.create(model=OTHER, input="Two?", previous_response_id=first.id)

    assert (first.model, second.model) == (MODEL, OTHER)
    assert asked(app) == [MODEL, OTHER]
    assert "One?" in str(app.fakes.generator.requests[-1].payload["messages"])


def test_each_model_has_settings_of_its_own(app: ChatApp) -> None:
    path = f"/v1/models/{OTHER}/settings"
    app.http.patch(path, json={"temperature": 0.25}).raise_for_status()

    for model in (OTHER, MODEL):
        app.http.post("/v1/chat/completions", json={**HI, "model": model}).raise_for_status()

    assert [request.payload.get("temperature") for request in app.fakes.generator.requests] == [0.25, None]
    assert app.http.get(f"{path}/history").json()["data"][0]["model"] == OTHER
    assert app.http.get(path.replace("other", "another")).status_code == 404


def test_an_adapter_has_the_settings_of_its_model_until_it_has_its_own(app: ChatApp) -> None:
    def temperature() -> float | None:
        app.http.post("/v1/chat/completions", json={**HI, "model": ADAPTER}).raise_for_status()
        used: float | None = app.fakes.generator.requests[-1].payload.get("temperature")
        return used

    app.http.patch(f"/v1/models/{OTHER}/settings", json={"temperature": 0.5}).raise_for_status()
    inherited = temperature()
    app.http.patch(f"/v1/models/{ADAPTER}/settings", json={"temperature": 0.75}).raise_for_status()

    assert (inherited, temperature()) == (0.5, 0.75)
    assert app.http.get(f"/v1/models/{OTHER}/settings").json()["settings"]["temperature"] == 0.5


@pytest.mark.parametrize(("model", "shown"), [(MODEL, 2), (OTHER, 1), (ADAPTER, 1)])
def test_passages_are_fitted_with_the_tokens_of_the_model_that_reads_them(app: ChatApp, model: str, shown: int) -> None:
    tool = {"type": "file_search", "vector_store_ids": [app.store_id]}
    body = {"model": model, "tools": [tool]}

    app.http.post("/v1/chat/completions", json={**HI, **body}).raise_for_status()
    app.http.post("/v1/responses", json={"input": "Hi", **body}).raise_for_status()

    prompts = [str(request.payload["messages"]) for request in app.fakes.generator.requests]
    assert [prompt.count("flows.") for prompt in prompts] == [shown, shown]


def test_profiles_measure_the_prompt_with_the_models_own_tokens(app: ChatApp) -> None:
    for model, rule in ((MODEL, "short-prompt"), (OTHER, "long-prompt")):
        answer = app.http.post("/v1/chat/completions", json={**HI, "model": model, "profile": "lesson"})
        assert answer.headers["x-settings"].endswith(f"rules={rule}")


def test_the_context_of_a_conversation_is_counted_for_the_model_that_is_asked_about(app: ChatApp) -> None:
    conversation = app.openai.conversations.create(items=[{"type": "message", "role": "user", "content": "One"}]).id
    path = f"/v1/conversations/{conversation}/context"

    assert app.http.get(path).json()["tokens"] == 1
    assert app.http.get(path, params={"model": OTHER}).json()["summary"]["tokens"] == 1_000_000
    assert app.http.get(path, params={"model": "gpt-5"}).status_code == 404


def test_the_openai_client_sees_the_404(app: ChatApp) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-5"):
        app.openai.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "Hi"}])
