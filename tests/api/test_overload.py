"""A model without room, as its clients see it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest

from serve_app.admission.admission import Admission
from serve_app.admission.settings import AdmissionSettings, Limits
from serve_app.generation.admitted import AdmittedGenerator
from serve_app.types import Json
from serve_app.types.generation import Capacity
from tests.api.chat_app import MODEL, ChatApp, running_chat
from tests.fakes import count_words

CHAT = {"messages": [{"role": "user", "content": "Name a river."}], "temperature": 0.5}
ASK = {"input": "Name a river.", "temperature": 0.5}


@pytest.fixture(scope="module")
def running_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatApp]:
    with running_chat(tmp_path_factory.mktemp("overload")) as app:
        yield app


@pytest.fixture
def app(running_app: ChatApp) -> ChatApp:
    """Its model takes one request at a time, and nobody waits for it."""
    app = running_app.with_fresh_fakes()
    settings = AdmissionSettings(max_wait_s=0, limits={MODEL: Limits(requests=1)})
    app.fakes.parts.admissions.configure(settings)
    generator = AdmittedGenerator(app.fakes.generator, admission_of(app), count_words)
    parts = replace(app.fakes.parts, generator=generator)
    app.app.state.context = replace(app.app.state.context, parts=parts)
    app.app.state.context.background.parts = parts
    return app


def admission_of(app: ChatApp) -> Admission:
    return app.fakes.parts.admissions.of(MODEL)


@pytest.fixture
def full(app: ChatApp) -> Iterator[ChatApp]:
    """Somebody is being answered until the test ends."""
    held = app.fakes.generator.hold()
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(app.http.post, "/v1/chat/completions", json={**CHAT, "stream": True})
        assert app.fakes.generator.asked.wait(20)
        yield app
        held.set()
        assert first.result().status_code == 200


def assert_refused(answer: httpx.Response) -> None:
    assert answer.status_code == 429
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("rate_limit_error", None)
    assert "has no room for a request of tier 'default'" in error["message"]
    assert int(answer.headers["retry-after-ms"]) >= 50
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_completion_is_refused_with_the_time_to_come_back(full: ChatApp, stream: bool) -> None:
    answer = full.http.post("/v1/chat/completions", json={**CHAT, "stream": stream})

    assert_refused(answer)
    assert len(full.fakes.generator.requests) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_is_refused_before_anything_is_done_for_it(full: ChatApp, stream: bool) -> None:
    conversation = full.openai.conversations.create()
    tool = {"type": "file_search", "vector_store_ids": [full.store_id]}
    asked = {**ASK, "conversation": conversation.id, "tools": [tool], "stream": stream}

    assert_refused(full.http.post("/v1/responses", json=asked))

    assert full.fakes.journal.entries == ["generate"]
    assert full.openai.conversations.items.list(conversation.id).data == []


def test_a_chat_completion_is_refused_before_its_search(full: ChatApp) -> None:
    tool = {"type": "file_search", "vector_store_ids": [full.store_id]}

    assert_refused(full.http.post("/v1/chat/completions", json={**CHAT, "tools": [tool]}))
    assert "embed" not in full.fakes.journal.entries


def test_what_the_cache_may_hold_is_refused_by_the_model_itself_and_taken_back(full: ChatApp) -> None:
    conversation = full.openai.conversations.create()

    assert_refused(full.http.post("/v1/responses", json={**ASK, "temperature": 0, "conversation": conversation.id}))

    assert full.fakes.journal.entries == ["generate", "question committed", "question withdrawn"]
    assert full.openai.conversations.items.list(conversation.id).data == []


def test_a_question_that_is_answered_already_is_never_refused(app: ChatApp) -> None:
    key = {"Idempotency-Key": "once"}
    answered = app.http.post("/v1/responses", json=ASK, headers=key).json()
    app.fakes.generator.asked.clear()
    held = app.fakes.generator.hold()
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(app.http.post, "/v1/chat/completions", json={**CHAT, "stream": True})
        assert app.fakes.generator.asked.wait(20)
        again = app.http.post("/v1/responses", json=ASK, headers=key).json()
        held.set()
        first.result().raise_for_status()

    assert again == answered


def test_background_is_not_refused_and_waits(full: ChatApp) -> None:
    queued = full.http.post("/v1/responses", json={**ASK, "background": True}).json()
    assert queued["status"] == "queued"

    held = full.fakes.generator._held
    assert held
    held.set()
    events = full.http.get(f"/v1/responses/{queued['id']}", params={"stream": True}, timeout=30).text

    assert '"type":"response.completed"' in events
    assert full.fakes.generator.requests[-1].priority == 20


@pytest.mark.parametrize(
    ("service_tier", "priority"), [(None, 0), ("auto", 0), ("default", 0), ("priority", -10), ("flex", 10)]
)
def test_a_service_tier_becomes_vllms_priority(app: ChatApp, service_tier: str | None, priority: int) -> None:
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/responses", ASK)):
        app.http.post(path, json={**body, "service_tier": service_tier}).raise_for_status()

    assert [request.priority for request in app.fakes.generator.requests] == [priority, priority]
    assert {request.caller for request in app.fakes.generator.requests} == {"anonymous"}


def test_who_is_ready_knows_how_much_its_engines_hold(running_app: ChatApp) -> None:
    app = running_app.with_fresh_fakes()
    admission, looks = admission_of(app), []

    async def read_capacities() -> dict[str, Capacity]:
        looks.append(MODEL)
        return {MODEL: Capacity(sequences=4, tokens=4096, step_tokens=256)}

    parts = replace(app.fakes.parts, read_capacities=read_capacities)
    app.app.state.context = replace(app.app.state.context, parts=parts)

    for _ in range(2):
        assert app.http.get("/readyz").status_code == 200

    assert admission.is_measured
    assert looks == [MODEL]


ROUTES = [("/v1/chat/completions", CHAT), ("/v1/responses", ASK)]


@pytest.mark.parametrize(("path", "body"), ROUTES)
@pytest.mark.parametrize("timeout_ms", ["0", "-5", "soon", "1.5"])
def test_a_timeout_that_is_none_is_a_400(app: ChatApp, path: str, body: Json, timeout_ms: str) -> None:
    answer = app.http.post(path, json=body, headers={"x-request-timeout-ms": timeout_ms})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "x-request-timeout-ms"


def ask_for_too_much(app: ChatApp, path: str, body: Json) -> tuple[httpx.Response, float]:
    """What has come until the timeout, in which the model was asked and has stalled; and that timeout in seconds."""
    app.fakes.generator.stalls = True
    for timeout_ms in (200, 2_000, 20_000):  # a busy machine needs longer to ask it
        answer = app.http.post(path, json=body, headers={"x-request-timeout-ms": str(timeout_ms)})
        if app.fakes.generator.stalled.is_set():
            return answer, timeout_ms / 1000
    raise AssertionError("the model was not asked in 20 s")


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_a_clients_timeout_reaches_the_model_and_is_kept(app: ChatApp, path: str, body: Json) -> None:
    app.fakes.generator.deltas = []

    answer, asked_s = ask_for_too_much(app, path, body)

    timeout_s = app.fakes.generator.requests[-1].timeout_s
    assert timeout_s is not None
    # The difference of two times of the clock, which are rounded.
    assert 0 < timeout_s < asked_s + 1e-6
    if path == "/v1/responses":  # the model had begun
        assert (answer.status_code, answer.json()["status"]) == (200, "failed")
    else:
        assert answer.status_code == 504
    assert admission_of(app).load.sequences == 0


def test_an_answer_that_a_timeout_cuts_is_incomplete(app: ChatApp) -> None:
    answer = ask_for_too_much(app, "/v1/responses", ASK)[0].json()

    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "timeout"})
