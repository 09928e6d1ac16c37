"""`/v1/models/{id}/settings` over HTTP, and what they do to requests."""

from collections.abc import Iterator

import pytest

from serve_app.types import Json
from tests.api.chat_app import MODEL, ChatApp, running_chat

PATH = f"/v1/models/{MODEL}/settings"
HI = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatApp]:
    with running_chat(tmp_path_factory.mktemp("settings")) as app:
        yield app


def patch(app: ChatApp, **settings: object) -> Json:
    answer = app.http.patch(PATH, json=settings)
    answer.raise_for_status()
    changed: Json = answer.json()
    return changed


def test_a_change_holds_for_the_next_request(app: ChatApp) -> None:
    assert patch(app, temperature=0.25, max_tokens=33)["revision"] == 1

    answer = app.http.post("/v1/chat/completions", json=HI)

    payload = app.fakes.generator.requests[-1].payload
    assert (payload["temperature"], payload["max_completion_tokens"]) == (0.25, 33)
    assert answer.headers["x-settings"] == "revision=1"


def test_a_response_says_what_it_was_made_with(app: ChatApp) -> None:
    patch(app, temperature=0.25, profile="lesson")

    response = app.openai.responses.create(model=MODEL, input="Hi", top_p=0.4).model_dump()

    assert response["settings"] == {"revision": 1, "profile": "lesson", "rules": ["short-prompt"]}
    assert app.fakes.generator.requests[-1].payload["temperature"] == 0.7
    assert app.fakes.generator.requests[-1].payload["top_p"] == 0.4
    assert (response["temperature"], response["top_p"]) == (0.7, 0.4)


def test_a_request_names_its_profile(app: ChatApp) -> None:
    answer = app.http.post("/v1/chat/completions", json={**HI, "profile": "lesson", "stream": True})

    assert answer.headers["x-settings"] == "revision=0, profile=lesson, rules=short-prompt"
    assert "profile" not in app.fakes.generator.requests[-1].payload


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_an_unknown_profile_is_refused(app: ChatApp, path: str) -> None:
    answer = app.http.post(path, json={**HI, "input": "Hi", "profile": "nine"})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "profile"


def test_settings_cannot_name_an_unknown_profile(app: ChatApp) -> None:
    answer = app.http.patch(PATH, json={"profile": "tirse"})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "profile"
    assert app.http.post("/v1/chat/completions", json=HI).status_code == 200


def test_the_history_and_the_way_back(app: ChatApp) -> None:
    patch(app, temperature=0.1)
    patch(app, temperature=0.2, stop=["END"])
    rolled_back = app.http.post(f"{PATH}/rollback", json={"revision": 1}).json()

    history = app.http.get(f"{PATH}/history", params={"limit": 2}).json()

    assert (rolled_back["revision"], rolled_back["settings"]["temperature"]) == (3, 0.1)
    assert [each["revision"] for each in history["data"]] == [3, 2]
    assert history["has_more"]
    assert history["data"][1]["settings"]["stop"] == ["END"]
    assert history["data"][0]["author"] == "anonymous"
    assert app.http.get(PATH).json()["revision"] == 3


@pytest.mark.parametrize(
    ("change", "param"),
    [({"temperature": 9}, "temperature"), ({"temprature": 0.1}, "temprature"), ({"stop": "END"}, "stop")],
)
def test_a_wrong_setting_is_refused_by_name(app: ChatApp, change: Json, param: str) -> None:
    answer = app.http.patch(PATH, json=change)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert app.http.get(PATH).json()["revision"] == 0


def test_the_settings_of_a_model_that_is_not_here_are_a_404(app: ChatApp) -> None:
    assert app.http.get("/v1/models/gpt-5/settings").status_code == 404
    assert app.http.patch("/v1/models/gpt-5/settings", json={}).status_code == 404


def test_beams_that_nobody_asked_for_stay_inside(app: ChatApp) -> None:
    patch(app, beams=2)

    stream = app.http.post("/v1/chat/completions", json={**HI, "stream": True}).text
    response = app.openai.responses.create(model=MODEL, input="Hi")

    assert app.fakes.generator.requests[-1].payload["use_beam_search"] is True
    assert '"index":0' in stream
    assert '"index":1' not in stream
    assert stream.endswith("data: [DONE]\n\n")
    assert response.output_text == "Hello there."


def test_beams_that_the_client_asks_for_come_out(app: ChatApp) -> None:
    patch(app, beams=2)

    assert '"index":2' in app.http.post("/v1/chat/completions", json={**HI, "stream": True, "n": 3}).text
