"""`rayconteur stats`, against the real HTTP app."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from serve_app.cli import app as command_line
from serve_app.vitals import EngineVitals, NodeMemory, ReplicaVitals, Silence
from tests.api.chat_app import MODEL, ChatApp, running_chat


@pytest.fixture
def app(tmp_path: Path) -> Iterator[ChatApp]:
    with running_chat(tmp_path) as app:
        yield app


def run(app: ChatApp, *arguments: str) -> Result:
    return CliRunner().invoke(command_line, ["stats", *arguments, "--url", app.url])


def test_replicas_and_models_are_shown(app: ChatApp) -> None:
    engine = EngineVitals(MODEL, 3, 1, 0.25, 8000, prefix_cache_queries=0, prefix_cache_hits=0)
    generator = ReplicaVitals(
        "Generator", "generator_1", "node_1", 18, 1.0, 2_000_000_000, NodeMemory(8000, 400), None, {}, engine
    )
    app.fakes.replicas.others = [generator, Silence("Retriever", "there is no replica that could answer")]
    app.openai.vector_stores.search(app.store_id, query="ferry")
    with app.openai.responses.create(model=MODEL, input="Hi", stream=True) as stream:
        assert list(stream)

    result = run(app)

    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line}
    assert lines["Generator"] == ["18", "2.0", "GB", "3", "running,", "1", "waiting,", "KV", "25%"]
    assert lines["Gateway"] == ["17", "100", "B", "query_vectors", "1", "(8", "B)"]
    assert lines[MODEL] == ["last", "minute", "since", "the", "start"]
    assert lines["requests"] == ["1", "(0", "cancelled)"] * 2
    assert lines["first"][:2] == ["token", "p50"]
    assert "Retriever: there is no replica that could answer" in result.stderr


def test_a_release_says_what_it_freed(app: ChatApp) -> None:
    result = run(app, "--release")

    assert result.exit_code == 0, result.output
    assert "10 B freed" in result.stderr
