"""The commands, against the real HTTP app with stand-ins for Ray's parts; and `serve` with a Ray of its own."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from openai import OpenAI
from sqlalchemy import exists, insert, select, update
from typer.testing import CliRunner, Result

from serve_app.api.app import create_app
from serve_app.cli import app, cluster
from serve_app.cli.cluster import Ports, RayHead, free_ports
from serve_app.config import ApiConfig, AppConfig, StorageConfig
from serve_app.conversation.log import ConversationLog
from serve_app.storage.database import Database
from serve_app.storage.schema import files, store_versions, vector_store_files
from tests.databases import opened
from tests.fakes import FakeIndexer, FakeParts, build_passage
from tests.served.application import wait_until
from tests.server import serve as serving

ROOT = Path(__file__).parents[1]
PARIS = build_passage(1, "Paris is the capital of France and lies on the Seine.", "paris.md")
LYON = build_passage(2, "Lyon lies where the Rhône and the Saône meet.", "lyon.md")


class InstantIndexer(FakeIndexer):
    """Indexes at once whatever waits, unless it is paused; files whose name says `broken` fail."""

    def __init__(self, database: Database) -> None:
        self.is_paused = False
        self._database = database

    async def wake(self) -> None:
        if not self.is_paused:
            self.index()

    def index(self) -> None:
        waiting = vector_store_files.c.status == "in_progress"
        broken = vector_store_files.c.file_id.in_(select(files.c.id).where(files.c.filename.contains("broken")))
        failure = {"status": "failed", "error_code": "invalid_file", "error_message": "it cannot be read"}
        with self._database.write() as connection:
            connection.execute(update(vector_store_files).where(waiting & broken).values(**failure))
            connection.execute(update(vector_store_files).where(waiting).values(status="completed", since_version=1))
            newer = vector_store_files.alias()
            is_replaced = exists().where(
                newer.c.key == vector_store_files.c.key, newer.c.version > vector_store_files.c.version
            )
            connection.execute(update(vector_store_files).where(is_replaced).values(until_version=1))


@dataclass(frozen=True)
class Server:
    url: str
    fakes: FakeParts
    database: Database
    indexer: InstantIndexer
    openai: OpenAI

    def run(self, *arguments: str, typed: str | None = None) -> Result:
        return CliRunner().invoke(app, [*arguments, "--url", self.url], input=typed)

    def contents(self, store: str) -> dict[str, str]:
        """Status by path."""
        (store_id,) = [each.id for each in self.openai.vector_stores.list() if each.name == store]
        stored = list(self.openai.vector_stores.files.list(store_id))
        paths = [str((each.attributes or {})["path"]) for each in stored]
        assert len(set(paths)) == len(paths), f"a duplicate in {paths}"
        return {path: each.status for path, each in zip(paths, stored, strict=True)}


@contextmanager
def running_server(folder: Path) -> Iterator[Server]:
    config = AppConfig(storage=StorageConfig(folder=folder), api=ApiConfig(max_upload_bytes=10_000))

    async def check_parts() -> dict[str, str]:
        return {}

    with opened(config.storage.resolved_database_url) as database:
        fakes = FakeParts(ConversationLog(database, max_cached=10), [PARIS, LYON])
        indexer = InstantIndexer(database)
        parts = replace(fakes.parts, indexer=indexer)
        with (
            serving(create_app(config, parts, database, check_parts)) as url,
            OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as openai,
        ):
            yield Server(url, fakes, database, indexer, openai)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running_server(tmp_path / "server") as server:
        yield server


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "rivers").mkdir(parents=True)
    (folder / "paris.md").write_text("Paris lies on the Seine.")
    (folder / "rivers" / "rhone.txt").write_text("The Rhône flows through Lyon.")
    (folder / "logo.png").write_bytes(b"\x89PNG")
    (folder / ".hidden.md").write_text("Not for others.")
    return folder


# ingest


def test_ingest_walks_folders_and_skips_what_is_no_document(server: Server, docs: Path) -> None:
    result = server.run("ingest", str(docs), "--store", "france")

    assert result.exit_code == 0, result.output
    assert server.contents("france") == {"docs/paris.md": "completed", "docs/rivers/rhone.txt": "completed"}
    assert "france: 2 added, 0 replaced, 0 there already, 1 skipped, 0 failed" in result.stdout
    assert "Skipped docs/logo.png: Files of type '.png' are not read here" in result.stderr


def test_ingest_again_uploads_nothing(server: Server, docs: Path) -> None:
    server.run("ingest", str(docs), "--store", "france")
    before = [each.id for each in server.openai.files.list()]

    result = server.run("ingest", str(docs), "--store", "france")

    assert "0 added, 0 replaced, 2 there already" in result.stdout
    assert [each.id for each in server.openai.files.list()] == before


def test_ingest_replaces_a_changed_file(server: Server, docs: Path) -> None:
    server.run("ingest", str(docs), "--store", "france")
    (docs / "paris.md").write_text("Paris has twenty arrondissements.")

    result = server.run("ingest", str(docs), "--store", "france")

    assert "0 added, 1 replaced, 1 there already" in result.stdout
    assert server.contents("france") == {"docs/paris.md": "completed", "docs/rivers/rhone.txt": "completed"}
    contents = [server.openai.files.content(each.id).text for each in server.openai.files.list()]
    assert sorted(contents) == ["Paris has twenty arrondissements.", "The Rhône flows through Lyon."]


def test_ingest_puts_the_same_content_in_once(server: Server, docs: Path) -> None:
    (docs / "copy.md").write_text("Paris lies on the Seine.")

    result = server.run("ingest", str(docs), "--store", "france")

    assert "2 added, 0 replaced, 1 there already" in result.stdout


def test_ingest_replaces_a_file_whose_new_content_is_stored_under_another_path(server: Server, docs: Path) -> None:
    server.run("ingest", str(docs), "--store", "france")
    (docs / "paris.md").write_bytes((docs / "rivers" / "rhone.txt").read_bytes())

    first = server.run("ingest", str(docs), "--store", "france")
    again = server.run("ingest", str(docs), "--store", "france")

    assert "0 added, 1 replaced, 1 there already" in first.stdout
    assert "0 added, 0 replaced, 2 there already" in again.stdout
    assert {server.openai.files.content(each.id).text for each in server.openai.files.list()} == {
        "The Rhône flows through Lyon."
    }


def test_ingest_keeps_a_moved_file_when_another_takes_its_path(server: Server, docs: Path) -> None:
    server.run("ingest", str(docs), "--store", "france")
    (docs / "old").mkdir()
    (docs / "paris.md").rename(docs / "old" / "paris.md")
    (docs / "paris.md").write_text("Paris has twenty arrondissements.")

    result = server.run("ingest", str(docs), "--store", "france")

    assert "1 added, 1 replaced, 1 there already" in result.stdout
    assert set(server.contents("france")) == {"docs/paris.md", "docs/old/paris.md", "docs/rivers/rhone.txt"}
    contents = [server.openai.files.content(each.id).text for each in server.openai.files.list()]
    assert "Paris lies on the Seine." in contents


def test_ingest_passes_over_a_file_that_was_only_moved(server: Server, docs: Path) -> None:
    server.run("ingest", str(docs), "--store", "france")
    (docs / "paris.md").rename(docs / "capital.md")

    result = server.run("ingest", str(docs), "--store", "france")

    assert "0 added, 0 replaced, 2 there already" in result.stdout


def test_ingest_lists_failures_and_tries_them_again(server: Server, docs: Path) -> None:
    (docs / "broken.md").write_text("No index will have this.")
    (docs / "long.md").write_text("word " * 4_000)

    for _ in range(2):
        result = server.run("ingest", str(docs), "--store", "france")
        assert result.exit_code == 1
        assert "2 failed" in result.stdout
        assert "Failed docs/broken.md: it cannot be read" in result.stderr
        assert "Failed docs/long.md:" in result.stderr
        assert server.contents("france")["docs/broken.md"] == "failed"


def test_ingest_keeps_the_old_version_if_the_new_one_fails(server: Server, docs: Path) -> None:
    server.run("ingest", str(docs), "--store", "france")
    (docs / "paris.md").write_text("word " * 4_000)

    server.run("ingest", str(docs), "--store", "france")

    assert server.contents("france")["docs/paris.md"] == "completed"


def test_ingest_goes_on_after_an_interruption(server: Server, docs: Path) -> None:
    server.indexer.is_paused = True
    command = [sys.executable, "-m", "serve_app.cli", "ingest", str(docs), "--store", "france", "--url", server.url]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: len(list(server.openai.files.list())) == 2, 60, "both files are uploaded")
        wait_until(lambda: len(server.contents("france")) == 2, 60, "both files are in the store")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, "run the same command again" in errors) == (130, True), errors

    server.indexer.is_paused = False
    server.indexer.index()
    result = server.run("ingest", str(docs), "--store", "france")

    assert result.exit_code == 0, result.output
    assert server.contents("france") == {"docs/paris.md": "completed", "docs/rivers/rhone.txt": "completed"}
    assert len(list(server.openai.files.list())) == 2


def test_ingest_does_not_choose_between_two_stores_of_a_name(server: Server, docs: Path) -> None:
    ids = [server.openai.vector_stores.create(name="france").id for _ in range(2)]

    result = server.run("ingest", str(docs), "--store", "france")

    assert result.exit_code == 1
    assert all(each in result.stderr for each in ids)
    assert server.run("ingest", str(docs), "--store", ids[0]).exit_code == 0


# ask, chat, stores


def test_ask_streams_the_answer_and_lists_its_sources(server: Server) -> None:
    server.openai.vector_stores.create(name="france")
    server.fakes.generator.deltas = ["Paris", " [1]", "."]

    result = server.run("ask", "What is the capital of France?", "--store", "france")

    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Paris")
    assert "* paris.md: “Paris is the capital of France and lies on the Seine.”" in result.stderr
    assert "  lyon.md: “Lyon lies where" in result.stderr


def test_ask_about_an_unknown_store_says_which_there_are(server: Server) -> None:
    result = server.run("ask", "Anything?", "--store", "nowhere")

    assert result.exit_code == 1
    assert "there is no store 'nowhere': `rayconteur stores` lists them" in result.stderr


def test_ask_tells_when_the_answer_breaks_off(server: Server) -> None:
    server.openai.vector_stores.create(name="france")
    server.fakes.generator.failure = RuntimeError("out of memory")

    result = server.run("ask", "Anything?", "--store", "france")

    assert result.exit_code == 1
    assert result.stdout.startswith("Hello there.")


def test_chat_remembers_and_can_be_resumed(server: Server) -> None:
    first = server.run("chat", typed="My name is Ada.\n\n/quit\n")
    (conversation_id,) = {word for word in first.stderr.split() if word.startswith("conv_") and word[-1] != "."}
    second = server.run("chat", "--conversation", conversation_id, typed="What is my name?\n")

    assert (first.exit_code, second.exit_code) == (0, 0), second.output
    said = [each["content"] for each in server.fakes.generator.requests[-1].payload["messages"]]
    assert any("My name is Ada." in each for each in said)
    assert len(list(server.openai.conversations.items.list(conversation_id))) == 4


def test_versions_are_listed_rolled_back_and_optimised(server: Server) -> None:
    store = server.openai.vector_stores.create(name="france")
    assert "Nothing has been put into this store yet" in server.run("versions", "france").stderr
    with server.database.write() as connection:
        row = {"store_id": store.id, "table_version": 1, "created_at": 1.0, "files": 1200, "passages": 3400}
        row["encoder"] = "all-minilm-l6-v2"
        for version, pinned in ((3, True), (4, False)):  # 4 is what the fake indexer makes of a rollback to 3
            connection.execute(insert(store_versions).values(**row, version=version, pinned=pinned))

    listed = server.run("versions", "france").stdout.splitlines()
    rolled = server.run("rollback", store.id, "3")
    optimized = server.run("optimize", "france")

    assert [line.split()[0] for line in listed[1:]] == ["4", "3"]
    assert "1,200" in listed[1]
    assert listed[2].rstrip().endswith("pinned")
    assert "is as it was at version 3: 1,200 files. This is version 4." in " ".join(rolled.stdout.split())
    assert "duplicates removed" in optimized.stdout
    assert optimized.exit_code == 0


def test_stores_are_listed_with_their_files(server: Server, docs: Path) -> None:
    assert "There are no stores yet" in server.run("stores").stderr
    server.run("ingest", str(docs), "--store", "france")

    result = server.run("stores")

    assert "france" in result.stdout
    assert "vs_" in result.stdout


def test_the_statistics_of_a_store_are_shown(server: Server, docs: Path) -> None:
    server.run("ingest", str(docs), "--store", "france")
    assert "searches      0 (0 more failed)" in server.run("stores", "--statistics", "france").stdout
    for _ in range(2):
        server.run("ask", "What is the capital of France?", "--store", "france")

    result = server.run("stores", "--statistics", "france")

    assert result.exit_code == 0, result.output
    assert "documents     2 in 0 passages" in result.stdout
    assert "searches      2 (0 more failed)" in result.stdout
    assert "p95 " in result.stdout
    assert "queries       1 from the cache, 1 embedded" in result.stdout
    assert "there is no store 'nowhere'" in server.run("stores", "--statistics", "nowhere").stderr


def test_a_server_that_is_not_there_is_one_line() -> None:
    result = CliRunner().invoke(app, ["stores", "--url", f"http://127.0.0.1:{free_ports(1)[0]}"])

    assert result.exit_code == 1
    assert "start it with `rayconteur serve`" in result.stderr
    assert result.stderr.count("\n") == 1


# config check


def test_the_shipped_configuration_is_valid() -> None:
    result = CliRunner().invoke(app, ["config", "check", str(ROOT / "serve_config.yaml")])

    assert result.exit_code == 0, result.output


WRONG = """\
applications:
  - name: rayconteur
    import_path: deployments.app:build_app
    args:
      api:
        max_upload_bytes: 0
      storge: {}
    deployments:
      - name: Gateway
        num_replica: 2
"""


def test_config_check_says_what_is_wrong_and_on_which_line(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(WRONG)
    (tmp_path / "worse.yaml").write_text(WRONG.replace("num_replica: 2", "max_ongoing_requests: many"))

    wrong, worse = (CliRunner().invoke(app, ["config", "check", str(tmp_path / name)]) for name in os.listdir(tmp_path))

    assert {wrong.exit_code, worse.exit_code} == {1}
    errors = wrong.stderr + worse.stderr
    assert "wrong.yaml:6: applications[0].args.api.max_upload_bytes: Input should be greater than" in errors
    assert "wrong.yaml:7: applications[0].args.storge: Extra inputs are not permitted" in errors
    assert "wrong.yaml:10: applications[0].deployments[0].num_replica: Ray Serve has no such setting" in errors
    assert "worse.yaml:10: applications[0].deployments[0].max_ongoing_requests: Input should be" in errors


def test_config_check_asks_for_the_numbers_of_every_model(tmp_path: Path) -> None:
    shipped = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    application = shipped["applications"][0]
    application["args"]["further_generators"] = [{"model_id": "org/other"}]
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(shipped))

    result = CliRunner().invoke(app, ["config", "check", str(tmp_path / "two.yaml")])

    assert result.exit_code == 1
    assert "needs an entry with the name 'Generator:org-other'" in result.stderr
    first = next(each for each in application["deployments"] if each["name"] == "Generator")
    application["deployments"].append({**first, "name": "Generator:org-other"})
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(shipped))
    assert CliRunner().invoke(app, ["config", "check", str(tmp_path / "two.yaml")]).exit_code == 0


@pytest.mark.parametrize("text", ["a: [", "just words", "applications: {}"])
def test_config_check_refuses_what_is_no_configuration(tmp_path: Path, text: str) -> None:
    (tmp_path / "no.yaml").write_text(text)

    result = CliRunner().invoke(app, ["config", "check", str(tmp_path / "no.yaml")])

    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1


# serve

TINY_APP = """\
from fastapi import FastAPI
from ray import serve

api = FastAPI()


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
@serve.ingress(api)
class Front:
    @api.get("/readyz")
    def ready(self) -> str:
        return "ready"


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Broken:
    def __init__(self) -> None:
        raise ValueError("no such model: gpt-0")


front, broken = Front.bind(), Broken.bind()
"""


def write_tiny_app(folder: Path, name: str) -> Path:
    (folder / "tiny_app.py").write_text(TINY_APP)
    config = folder / "serve_config.yaml"
    config.write_text(yaml.safe_dump({"applications": [{"name": "tiny", "import_path": f"tiny_app:{name}"}]}))
    return config


@contextmanager
def started(config: Path, ports: list[int]) -> Iterator[subprocess.Popen[str]]:
    options = [
        f"{option}={port}" for option, port in zip(("--port", "--dashboard-port", "--ray-port"), ports, strict=True)
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "serve_app.cli", "serve", str(config), *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)


def test_ray_is_given_no_port_that_the_api_is_to_have(monkeypatch: pytest.MonkeyPatch) -> None:
    promised, *others = free_ports(7)
    monkeypatch.setattr(cluster, "_OUR_PORTS", (promised, *others))

    for _ in range(8):  # they are drawn
        head = RayHead(Ports(http=promised), 1, {})
        given = [int(value) for name, value in head._environment.items() if name.endswith("_PORT")]
        head.stop()

        assert len(set(given)) == 4
        assert set(given) < set(others)


def test_serve_tells_of_a_port_in_use_before_it_starts_anything(tmp_path: Path) -> None:
    config = write_tiny_app(tmp_path, "front")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = str(listener.getsockname()[1])
        for option in ("--port", "--dashboard-port", "--ray-port"):
            free = dict(zip(("--port", "--dashboard-port", "--ray-port"), map(str, free_ports(3)), strict=True))
            ports = [word for pair in {**free, option: taken}.items() for word in pair]
            result = CliRunner().invoke(app, ["serve", str(config), *ports])

            assert result.exit_code == 1
            assert f"port {taken}" in result.stderr
            assert option in result.stderr


def test_serve_wants_three_different_ports(tmp_path: Path) -> None:
    port, other = map(str, free_ports(2))
    ports = ["--port", port, "--dashboard-port", other, "--ray-port", port]
    result = CliRunner().invoke(app, ["serve", str(write_tiny_app(tmp_path, "front")), *ports])

    assert result.exit_code == 1
    assert "must differ" in result.stderr


def test_serve_checks_the_configuration_before_it_starts_anything(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(WRONG)

    result = CliRunner().invoke(app, ["serve", str(tmp_path / "wrong.yaml")])

    assert result.exit_code == 1
    assert "applications[0].args.api.max_upload_bytes" in result.stderr


@pytest.mark.ray
def test_serve_answers_and_leaves_nothing_behind(tmp_path: Path) -> None:
    ports = free_ports(3)
    with started(write_tiny_app(tmp_path, "front"), ports) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("Rayconteur is ready"), said + process.communicate()[1]
        assert httpx.get(f"http://127.0.0.1:{ports[0]}/readyz", timeout=60).json() == "ready"
        assert httpx.get(f"http://127.0.0.1:{ports[1]}/api/serve/applications/", timeout=60).status_code == 401
        descendants = psutil.Process(process.pid).children(recursive=True)
        assert any("raylet" in each.name() for each in descendants)

        process.send_signal(signal.SIGINT)
        process.wait(120)

    assert process.returncode == 0
    assert [each for each in descendants if each.is_running()] == []


@pytest.mark.ray
def test_serve_shows_why_a_deployment_failed(tmp_path: Path) -> None:
    with started(write_tiny_app(tmp_path, "broken"), free_ports(3)) as process:
        _, errors = process.communicate(timeout=200)

    assert process.returncode == 1
    assert "no such model: gpt-0" in errors
    assert "The logs are in" in errors


# insights


def start_talk(server: Server) -> str:
    items = [
        {"role": "user", "content": "When does the ferry [sail]?"},
        {"role": "assistant", "content": "The ferry sails at nine, which is wonderful."},
        {"role": "user", "content": "Is the harbour open?"},
    ]
    answer = httpx.post(f"{server.url}/v1/conversations", json={"items": items})
    conversation_id: str = answer.json()["id"]
    return conversation_id


def test_insights_show_topics_and_open_questions(server: Server) -> None:
    result = server.run("insights", start_talk(server))

    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    assert "messages 3 in 0 s" in shown
    assert "ferry" in shown
    assert "questions 2 by the user, 1 with an answer" in shown
    assert "open Is the harbour open? (no answer)" in shown


def test_insights_of_an_empty_conversation(server: Server) -> None:
    result = server.run("insights", server.openai.conversations.create().id)

    assert result.exit_code == 0, result.output
    assert "not known" in result.stdout


def test_insights_without_an_id_are_those_of_all(server: Server) -> None:
    server.run("insights", start_talk(server))
    start_talk(server)

    result = server.run("insights")

    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    assert "conversations 2, 1 not looked into yet" in shown
    assert "questions 2, 1 of them open" in shown


def test_insights_of_an_unknown_conversation_say_so(server: Server) -> None:
    result = server.run("insights", "conv_unknown")

    assert result.exit_code == 1
    assert "not found" in result.stderr
