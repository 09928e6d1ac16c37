"""A backup gives back what was there, and a damaged one changes nothing."""

import gzip
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread

import lance
import orjson
import pytest
from sqlalchemy import MetaData, create_engine, insert, select, update

from serve_app.backup.repository import Item, Repository, describe, write_items
from serve_app.errors import Conflict, InvalidRequest, NotFound
from serve_app.storage import migrations
from serve_app.storage.schema import (
    file_batches,
    files,
    logs,
    prompt_texts,
    reembeddings,
    responses,
    store_versions,
    vector_store_files,
)
from serve_app.types import Json, PageQuery
from serve_app.types.conversation import ForkConversation, KeepSummary, Summary
from tests.backup.system import System
from tests.databases import opened
from tests.served.application import wait_until

CHANGES = ("last_active_at",)
"""What a restore sets anew."""


def fill(system: System) -> str:
    """Documents that were added, replaced, removed and compacted; uploads in no store; a conversation."""
    store_id = system.add_store()
    first = system.add_document(store_id, "The lamp was electrified. The keeper is Yann")
    system.add_document(store_id, "The ferry sails at nine")
    system.add_document(store_id, "The lamp is dark. The keeper is Maud", replaces=first)
    gone = system.add_document(store_id, "This goes again")
    system.index.optimize(store_id)
    system.remove_document(store_id, gone)
    system.add_store("empty")
    system.upload("in no store")
    system.log.create_conversation("conv_1", {"topic": "ferries"}, ())
    for text in ("one", "two", "three"):
        system.say("conv_1", text)
    system.log.delete_item("conv_1", "msg_two")
    summary = Summary("conv_1", 1, "msg_one", "They counted.", 2, "m", 1)
    assert system.log.keep_summary(KeepSummary(summary, None, (("conv_1", 1),)))
    with system.database.write() as connection:
        connection.execute(insert(prompt_texts).values(log_id="conv_1", item_id="msg_three", text="Question: three"))
    return store_id


async def test_everything_is_restored_where_there_is_nothing(any_system: System, any_elsewhere: System) -> None:
    store_id = fill(any_system)
    backup = any_system.back_up()
    assert backup["status"] == "completed"

    restored = any_elsewhere.restore(backup["id"])

    assert (restored["status"], restored["error"]) == ("completed", None)
    assert (restored["files"], restored["conversations"]) == (5, 1)
    assert any_elsewhere.rows(but=CHANGES) == any_system.rows(but=CHANGES)
    assert any_elsewhere.uploads() == any_system.uploads()
    assert any_elsewhere.passages(store_id) == any_system.passages(store_id)
    for question in ("keeper", "ferry at nine", "lamp"):
        assert await any_elsewhere.search(store_id, question) == await any_system.search(store_id, question)
        assert await any_elsewhere.search(store_id, question)
    items = any_elsewhere.log.list_items("conv_1", PageQuery(order="asc"))
    assert [item["content"][0]["text"] for item in items.data] == ["one", "three"]
    # And it goes on from there.
    any_elsewhere.add_document(store_id, "A new passage")
    any_elsewhere.index.optimize(store_id)
    any_elsewhere.say("conv_1", "four")
    assert len(any_elsewhere.passages(store_id)) == len(any_system.passages(store_id)) + 1


def test_every_version_that_is_kept_is_in_the_backup(system: System, elsewhere: System) -> None:
    store_id = fill(system)
    elsewhere.restore(system.back_up()["id"])

    with system.database.read() as connection:
        versions = connection.execute(select(store_versions.c.version)).scalars().all()
    assert len(versions) == 5
    for version in versions:
        assert elsewhere.passages(store_id, f"v{version}") == system.passages(store_id, f"v{version}")
    assert lance.dataset(str(elsewhere.table(store_id))).describe_indices()


async def test_the_tables_of_all_encoders_are_in_the_backup(any_system: System, any_elsewhere: System) -> None:
    store_id = fill(any_system)
    any_system.move(store_id, "other", "_0b")
    backup_id = any_system.back_up()["id"]

    any_elsewhere.restore(backup_id)
    (copy,) = any_system.restore(backup_id, store_id, "copy")["vector_stores"]

    assert any_elsewhere.rows(but=CHANGES)["store_versions"]
    for system, restored in ((any_elsewhere, store_id), (any_system, copy["id"])):
        assert system.versions.table(restored) == f"{restored}_0b"
        assert system.catalog.get_store(restored)["model"] == "other"
        for suffix, versions in (("", 5), ("_0b", 1)):
            table, original = restored + suffix, any_system.passages(store_id + suffix)
            assert [row["text"] for row in system.passages(table)] == [row["text"] for row in original] != []
            tags = lance.dataset(str(system.table(table))).tags.list()
            assert len(tags) == versions
            for tag in tags:
                assert system.passages(table, tag) == any_system.passages(store_id + suffix, tag)


def test_a_move_that_is_under_way_begins_again_there(system: System, elsewhere: System) -> None:
    store_id = fill(system)
    system.catalog.reembed(store_id, "other")
    with system.database.write() as connection:
        connection.execute(update(reembeddings).values(lease_until=4e9, fence=3))

    elsewhere.restore(system.back_up()["id"])

    with elsewhere.database.read() as connection:
        move = connection.execute(select(reembeddings)).mappings().one()
    assert (move["store_id"], move["encoder"], move["lease_until"]) == (store_id, "other", 0.0)


def test_a_store_without_versions_is_backed_up_as_it_is(system: System, elsewhere: System) -> None:
    store_id = fill(system)
    with system.database.write() as connection:
        connection.execute(store_versions.delete())

    elsewhere.restore(system.back_up()["id"])

    assert elsewhere.passages(store_id) == system.passages(store_id) != []


class Writer:
    """Adds, replaces and removes documents until it is stopped, and remembers what each version of the store held."""

    def __init__(self, system: System, store_id: str) -> None:
        self.system, self.store_id = system, store_id
        self.contents: dict[int, set[str]] = {}
        self.has_begun = Event()
        self._is_over = Event()
        self._thread = Thread(target=self._run)

    def __enter__(self) -> "Writer":
        self._thread.start()
        assert self.has_begun.wait(60)
        return self

    def wait_for_another(self) -> None:
        count = len(self.contents)
        wait_until(lambda: len(self.contents) > count, 60, "another version")

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        documents: list[str] = []
        version = 0
        while not self._is_over.is_set():
            version += 1
            if version % 5 == 0:
                self.system.remove_document(self.store_id, documents.pop(0))
            elif version % 3 == 0:
                oldest = documents.pop(0)
                text = f"replacing passage {version}. And more of it"
                documents.append(self.system.add_document(self.store_id, text, replaces=oldest))
                self.system.files.delete(oldest)
            else:
                documents.append(self.system.add_document(self.store_id, f"passage {version}"))
            self.contents[version] = set(documents)
            self.system.say("conv_1", str(version))
            if version % 10 == 0:
                self.system.index.optimize(self.store_id)
            if version == 12:
                self.has_begun.set()


@pytest.mark.parametrize(
    ("database_url", "other_database_url"), [("sqlite", "postgresql"), ("postgresql", "sqlite")], indirect=True
)
def test_a_backup_under_load_is_the_state_at_one_moment(any_system: System, any_elsewhere: System) -> None:
    here, there = any_system, any_elsewhere
    here.log.create_conversation("conv_1", {}, ())
    store_ids = [here.add_store("one"), here.add_store("two")]
    with Writer(here, store_ids[0]) as one, Writer(here, store_ids[1]) as two:
        backups = []
        for _ in range(3):
            backups.append(here.back_up())
            for writer in (one, two):
                writer.wait_for_another()
    assert [backup["status"] for backup in backups] == ["completed"] * 3

    there.restore(backups[1]["id"])

    uploads = there.uploads()
    with there.database.read() as connection:
        stored = connection.execute(select(vector_store_files)).mappings().all()
        versions = connection.execute(select(store_versions)).mappings().all()
    for writer in (one, two):
        # A file that is being removed has left the newest version before its row goes.
        theirs = [row for row in stored if row["store_id"] == writer.store_id and row["until_version"] is None]
        files = {row["file_id"]: row["passages"] for row in theirs}
        newest = max(row["version"] for row in versions if row["store_id"] == writer.store_id)
        assert set(files) == writer.contents[newest]
        found = [row["file_id"] for row in there.passages(writer.store_id)]
        assert {file_id: found.count(file_id) for file_id in files} == files
        assert set(found) == set(files) <= set(uploads)
    assert there.log.list_items("conv_1", PageQuery()).data


def test_what_is_copied_once_is_not_copied_again(system: System) -> None:
    store_id = fill(system)
    first = system.back_up()
    second = system.back_up()
    system.add_document(store_id, "One more")
    third = system.back_up()

    assert first["bytes_copied"] > 0.9 * first["bytes"]
    assert second["bytes_copied"] < 0.02 * first["bytes"]
    assert 0 < third["bytes_copied"] < 0.5 * third["bytes"]


async def test_under_another_name_it_stands_beside_the_original(any_system: System) -> None:
    store_id = fill(any_system)
    batch: Json = {"id": "vsfb_1", "store_id": store_id, "created_at": 1}
    with any_system.database.write() as connection:
        connection.execute(insert(file_batches).values(batch))
    kept = any_system.add_document(store_id, "The island of Molene", batch_id="vsfb_1")
    backup = any_system.back_up(store_id)
    before = any_system.passages(store_id)

    restored = any_system.restore(backup["id"], store_id, "docs of monday")

    assert restored["error"] is None
    (copy,) = restored["vector_stores"]
    assert (copy["name"], copy["restored_from"]) == ("docs of monday", store_id)
    assert any_system.catalog.get_store(copy["id"])["file_counts"]["completed"] == 3
    assert restored["files"] == 0
    assert any_system.passages(copy["id"]) == before
    again = any_system.catalog.get_file(copy["id"], kept)
    assert again["status"] == "completed"
    with any_system.database.read() as connection:
        batches = {row.store_id: row.id for row in connection.execute(select(file_batches))}
    assert any_system.catalog.get_batch(copy["id"], batches[copy["id"]])["file_counts"]["total"] == 1
    any_system.remove_document(copy["id"], kept)
    assert any_system.passages(store_id) == before
    assert await any_system.search(store_id, "island of Molene")


def test_what_is_there_is_not_replaced(system: System) -> None:
    store_id = fill(system)
    backup = system.back_up()
    with pytest.raises(Conflict, match="give a 'name'"):
        system.jobs.create_restore(backup["id"], store_id, None)
    with pytest.raises(NotFound, match="vs_0"):
        system.jobs.create_restore(backup["id"], "vs_0", None)
    with pytest.raises(InvalidRequest, match="is for one store"):
        system.jobs.create_restore(backup["id"], None, "other")

    system.say("conv_1", "after the backup")
    before = system.rows()
    restored = system.restore(backup["id"])

    assert (restored["vector_stores"], restored["files"], restored["conversations"]) == ([], 0, 0)
    assert system.rows() == before


def test_a_file_with_other_content_is_not_taken_for_the_same(system: System) -> None:
    store_id = fill(system)
    backup = system.back_up()
    with system.database.write() as connection:
        connection.execute(update(files).values(sha256="other"))
    before = system.rows()

    restored = system.restore(backup["id"], store_id, "beside")

    assert "other content" in restored["error"]["message"]
    assert system.rows() == before


def test_a_request_that_was_made_again_keeps_its_key(system: System) -> None:
    def answer(response_id: str) -> None:
        log = {"id": response_id, "is_conversation": False, "metadata": {}, "epoch": 1, "head": 1}
        log |= {"created_at": 1, "last_active_at": 1}
        row: Json = {"id": response_id, "log_id": response_id, "first_seq": 1, "input_count": 1, "last_seq": 1}
        row |= {"status": "completed", "body": {}, "idempotency_key": "the key", "created_at": 1}
        with system.database.write() as connection:
            connection.execute(insert(logs).values(log))
            connection.execute(insert(responses).values(row))

    answer("resp_1")
    backup = system.back_up()
    system.log.delete_response("resp_1")
    answer("resp_2")

    assert system.restore(backup["id"])["error"] is None

    with system.database.read() as connection:
        keys = {row.id: row.idempotency_key for row in connection.execute(select(responses))}
    assert keys == {"resp_1": None, "resp_2": "the key"}


def test_a_deleted_conversation_comes_back_beside_a_fork_that_still_has_its_past(system: System) -> None:
    system.log.create_conversation("conv_1", {}, (), expires_after_s=3_600)
    for text in ("one", "two"):
        system.say("conv_1", text)
    backup = system.back_up()
    # A fork of what the backup does not know.
    system.say("conv_1", "three")
    system.log.fork_conversation(ForkConversation("conv_1", "conv_2"))
    system.log.delete_conversation("conv_1")
    with system.database.write() as connection:
        connection.execute(update(logs).values(last_active_at=1))

    restored = system.restore(backup["id"])

    assert (restored["error"], restored["conversations"]) == (None, 1)
    assert system.said("conv_1") == ["one", "two"]
    assert system.said("conv_2") == ["one", "two", "three"]
    assert system.log.get_conversation("conv_1").expires_after_s == 3_600
    system.log.delete_expired(None)
    system.log.delete_conversation("conv_2")
    assert system.said("conv_1") == ["one", "two"]


def test_forks_are_restored_with_the_past_that_they_share(system: System, elsewhere: System) -> None:
    system.log.create_conversation("conv_1", {}, ())
    for text in ("one", "two"):
        system.say("conv_1", text)
    system.log.fork_conversation(ForkConversation("conv_1", "conv_2", "msg_one"))
    system.say("conv_2", "else")
    system.log.delete_conversation("conv_1")

    restored = elsewhere.restore(system.back_up()["id"])

    assert (restored["error"], restored["conversations"]) == (None, 1)
    assert elsewhere.said("conv_2") == ["one", "else"]


def test_what_was_deleted_comes_back(system: System) -> None:
    store_id = fill(system)
    system.log.create_conversation("conv_2", {}, ())
    system.say("conv_2", "kept")
    expected = system.passages(store_id)
    backup = system.back_up()
    system.say("conv_2", "later")
    for upload in system.uploads():
        system.files.delete(upload)
    system.index.drop(store_id)
    system.catalog.delete_store(store_id)
    system.log.delete_conversation("conv_1")

    restored = system.restore(backup["id"])

    assert [store["id"] for store in restored["vector_stores"]] == [store_id]
    assert (restored["files"], restored["conversations"]) == (5, 1)
    assert system.passages(store_id) == expected
    assert [len(system.log.list_items(each, PageQuery()).data) for each in ("conv_1", "conv_2")] == [2, 2]


async def test_a_number_of_a_version_that_comes_again_is_no_old_content(system: System, elsewhere: System) -> None:
    store_id = fill(system)
    first = system.back_up()
    system.add_document(store_id, "Before the loss")
    system.back_up()
    assert await system.search(store_id, "loss")
    system.index.drop(store_id)
    system.catalog.delete_store(store_id)
    system.restore(first["id"])

    system.add_document(store_id, "After the loss")
    elsewhere.restore(system.back_up()["id"])

    assert elsewhere.passages(store_id) == system.passages(store_id)
    assert (await elsewhere.search(store_id, "After the loss"))[0].text == "After the loss"
    assert "Before the loss" not in [each.text for each in await system.search(store_id, "loss")]


def test_a_file_that_was_being_indexed_is_indexed_there(system: System, elsewhere: System) -> None:
    store_id = system.add_store()
    file_id = system.add_document(store_id, "half done")
    claimed = {"status": "in_progress", "lease_until": 1e12}
    with system.database.write() as connection:
        connection.execute(update(vector_store_files).values(claimed))

    elsewhere.restore(system.back_up()["id"])

    with elsewhere.database.read() as connection:
        job = connection.execute(select(vector_store_files)).mappings().one()
    assert (job["file_id"], job["status"], job["lease_until"]) == (file_id, "in_progress", 0.0)
    assert elsewhere.files.path(file_id).read_bytes() == b"half done"


# --- damage -------------------------------------------------------------------------------------


def contents_of(folder: Path, backup_id: str) -> dict[str, Path]:
    """One content of each kind, and where it lies in the repository."""
    repository = Repository(str(folder))
    manifest = repository.manifest(backup_id)
    places = {"manifest": folder / "snapshots" / f"{backup_id}.json"}
    for item in [manifest.items, *repository.items(manifest)]:
        kind = "items" if item == manifest.items else item.path.split("/")[0]
        if kind == "vectors":
            kind = item.path.split("/")[2]
        if kind == "sql":
            kind = item.path
        places[kind] = folder / "objects" / item.sha256[:2] / item.sha256
    return places


KINDS = ["manifest", "items", "data", "_versions", "_transactions", "_indices", "_deletions", "files"]
KINDS += ["sql/items.jsonl.gz", "sql/vector_stores.jsonl.gz"]


@pytest.fixture(scope="module")
def backed_up(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder of backups with one in it, to be copied, and its id."""
    folder = tmp_path_factory.mktemp("damage")
    with opened(f"sqlite:///{folder}/here/rayconteur.db") as database:
        system = System(folder / "here", database, str(folder / "backups"))
        fill(system)
        return folder / "backups", str(system.back_up()["id"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["a byte is flipped", "the end is missing", "it is missing"])
def test_a_damaged_backup_is_refused_before_anything_changes(
    backed_up: tuple[Path, str], elsewhere: System, tmp_path: Path, kind: str, how: str
) -> None:
    backup_id = backed_up[1]
    shutil.copytree(backed_up[0], tmp_path / "backups", dirs_exist_ok=True)
    place = contents_of(tmp_path / "backups", backup_id)[kind]
    content = bytearray(place.read_bytes())
    if how == "a byte is flipped":
        content[len(content) // 2] ^= 1
    place.write_bytes(content[: -1 if how == "the end is missing" else None])
    if how == "it is missing":
        place.unlink()
    rows, paths = elsewhere.rows(), elsewhere.paths()

    if kind == "manifest":
        with pytest.raises((InvalidRequest, NotFound)):
            elsewhere.jobs.create_restore(backup_id, None, None)
    else:
        restored = elsewhere.restore(backup_id)
        assert restored["status"] == "failed"
        assert restored["error"]["code"] == "backup_damaged"

    assert elsewhere.rows() == rows
    assert elsewhere.paths() == paths


@pytest.mark.parametrize("kind", ["files", "vectors"])
def test_what_a_backup_names_and_does_not_have_fails_the_restore(
    system: System, elsewhere: System, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(system)
    backup_id = system.back_up()["id"]
    items = Repository.items
    monkeypatch.setattr(
        Repository, "items", lambda *given: [item for item in items(*given) if not item.path.startswith(kind)]
    )
    rows, paths = elsewhere.rows(), elsewhere.paths()

    restored = elsewhere.restore(backup_id)

    assert restored["status"] == "failed"
    assert "did not come with the backup" in restored["error"]["message"]
    assert elsewhere.rows() == rows
    assert elsewhere.paths() == paths


@pytest.mark.parametrize("kind", ["files", "data"])
def test_what_is_lost_on_the_way_fails_the_restore(
    system: System, elsewhere: System, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(system)
    backup_id = system.back_up()["id"]
    fetch = Repository.fetch

    def lose(repository: Repository, item: Item, target: Path) -> None:
        fetch(repository, item, target)
        if kind in item.path.split("/"):
            target.unlink()

    monkeypatch.setattr(Repository, "fetch", lose)
    rows, paths = elsewhere.rows(), elsewhere.paths()

    restored = elsewhere.restore(backup_id)

    assert restored["status"] == "failed"
    assert elsewhere.rows() == rows
    assert elsewhere.paths() == paths


def test_a_damaged_backup_is_listed_as_one(system: System, tmp_path: Path) -> None:
    snapshots = tmp_path / "backups" / "snapshots"
    sound = snapshots / f"{system.back_up()['id']}.json"
    damaged = "backup_20260102030405_0123456789abcdef"
    (snapshots / f"{damaged}.json").write_bytes(sound.read_bytes().replace(b'"format": 2', b'"format": 3'))
    sound.unlink()

    (listed,) = system.jobs.list_backups(PageQuery()).data

    assert (listed["id"], listed["status"], listed["error"]["code"]) == (damaged, "failed", "backup_damaged")
    assert datetime.fromtimestamp(listed["created_at"], UTC).isoformat() == "2026-01-02T03:04:05+00:00"
    system.jobs.delete_backup(damaged)
    assert system.jobs.list_backups(PageQuery()).data == ()


# --- older versions -----------------------------------------------------------------------------


def test_a_backup_of_an_older_schema_is_migrated(system: System, elsewhere: System, tmp_path: Path) -> None:
    """The rows of revision 0001 had no keys and no versions."""
    store_id = fill(system)
    passages = system.passages(store_id)
    backup = system.back_up()
    repository = Repository(str(tmp_path / "backups"))
    manifest = repository.manifest(backup["id"])
    as_of_then(repository, backup["id"], tmp_path)
    assert repository.manifest(backup["id"]).schema == "0001" != manifest.schema

    restored = elsewhere.restore(backup["id"])

    assert restored["error"] is None
    assert elsewhere.passages(store_id) == passages
    with elsewhere.database.read() as connection:
        rows = connection.execute(select(vector_store_files)).mappings().all()
    assert {row["key"] for row in rows} == {row["file_id"] for row in rows} != set()


def as_of_then(repository: Repository, backup_id: str, folder: Path) -> None:
    """Take out of a backup's rows what revision 0001 did not have."""
    engine = create_engine(f"sqlite:///{folder}/then.db")
    migrations.upgrade(engine, "0001")
    then = MetaData()
    then.reflect(engine)
    engine.dispose()
    manifest = repository.manifest(backup_id)
    items = []
    for item in repository.items(manifest):
        name = Path(item.path).name.removesuffix(".jsonl.gz")
        if not item.path.startswith("sql/"):
            items.append(item)
        elif name in then.tables:
            repository.fetch(item, folder / "now")
            lines = gzip.decompress((folder / "now").read_bytes()).splitlines()
            columns = set(then.tables[name].c.keys())
            rows = [{k: v for k, v in orjson.loads(line).items() if k in columns} for line in lines]
            (folder / "then").write_bytes(gzip.compress(b"".join(orjson.dumps(row) + b"\n" for row in rows)))
            items.append(describe(item.path, folder / "then"))
            repository.put(folder / "then", items[-1])
    listed = write_items(items, folder / "items")
    repository.put(folder / "items", listed)
    repository.commit(replace(manifest, schema="0001", items=listed))
