"""`rayconteur conversations`, `export` and `import`, against the real HTTP app."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from serve_app.cli import app as command_line
from tests.api.chat_app import ChatApp, running_chat


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatApp]:
    with running_chat(tmp_path_factory.mktemp("conversations")) as app:
        yield app


def run(app: ChatApp, *arguments: str) -> Result:
    return CliRunner().invoke(command_line, [*arguments, "--url", app.url])


def said(app: ChatApp, conversation_id: str) -> list[str]:
    items = app.http.get(f"/v1/conversations/{conversation_id}/items", params={"order": "asc", "limit": 100}).json()[
        "data"
    ]
    return [item["content"][0]["text"] for item in items]


def test_a_conversation_goes_out_and_comes_in(app: ChatApp, tmp_path: Path) -> None:
    words = [f"käse {number}" for number in range(150)]
    conversation_id = app.openai.conversations.create(metadata={"topic": "cheese"}).id
    for start in range(0, len(words), 20):
        items = [{"role": "user", "content": word} for word in words[start : start + 20]]
        app.http.post(f"/v1/conversations/{conversation_id}/items", json={"items": items})
    file = tmp_path / "cheese.jsonl"

    exported = run(app, "export", conversation_id, "--output", str(file))
    to_stdout = run(app, "export", conversation_id)
    imported = run(app, "import", str(file))

    assert (exported.exit_code, exported.output) == (0, "")
    assert to_stdout.stdout_bytes == file.read_bytes()
    assert len(file.read_bytes().splitlines()) == 151
    new_id = imported.stdout.strip()
    assert new_id != conversation_id
    assert said(app, new_id) == words[:100]
    assert app.openai.conversations.retrieve(new_id).metadata == {"topic": "cheese"}


def test_conversations_are_listed_with_their_metadata(app: ChatApp) -> None:
    made = app.openai.conversations.create(metadata={"topic": "lakes", "lang": "[red]de"}).id
    other = app.openai.conversations.create(metadata={"topic": "seas"}).id

    listed = run(app, "conversations").stdout
    of_lakes = run(app, "conversations", "--metadata", "topic=lakes", "--metadata", "lang=[red]de").stdout
    none = run(app, "conversations", "--metadata", "topic=stars")

    assert made in listed
    assert other in listed
    assert made in of_lakes
    assert "lang=[red]de" in of_lakes
    assert other not in of_lakes
    assert (none.exit_code, none.stdout) == (0, "")


def test_what_is_wrong_is_said_in_one_line(app: ChatApp, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"object": "conversation"}\n{"object": "item"}\n')

    unknown = run(app, "export", "conv_unknown", "--output", str(tmp_path / "nothing.jsonl"))
    wrong = run(app, "import", str(broken))
    odd = run(app, "conversations", "--metadata", "topic")

    assert (unknown.exit_code, wrong.exit_code, odd.exit_code) == (1, 1, 1)
    assert "'conv_unknown' not found" in unknown.stderr
    assert "Line 2" in wrong.stderr
    assert "KEY=VALUE" in odd.stderr
    assert not (tmp_path / "nothing.jsonl").exists()
