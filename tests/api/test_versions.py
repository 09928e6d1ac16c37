"""Documents and versions over HTTP: what is found, when, and how to get back to it."""

from datetime import UTC, datetime
from typing import Any

import httpx
import openai
import pytest

from tests.api.test_knowledge import client as client  # the whole knowledge base, in this process

Found = list[tuple[str, str]]


class Documents:
    """One store, and short ways to change and to ask it."""

    def __init__(self, client: openai.OpenAI, store_id: str | None = None) -> None:
        self._client = client
        self.store_id = store_id or client.vector_stores.create(name="handbook").id

    def put(self, name: str, text: str, **extra: Any) -> str:
        """Upload a file and add it to the store. It is ingested before this returns."""
        file_id = self._client.files.create(file=(name, text.encode()), purpose="assistants").id
        attributes = extra.pop("attributes", None)
        added = self._client.vector_stores.files.create(
            self.store_id, file_id=file_id, attributes=attributes, extra_body=extra
        )
        assert added.id == file_id
        return file_id

    def remove(self, file_id: str) -> None:
        self._client.vector_stores.files.delete(file_id, vector_store_id=self.store_id)

    def search(self, query: str = "ferret", **extra: Any) -> Found:
        page = self._client.vector_stores.search(self.store_id, query=query, max_num_results=50, extra_body=extra)
        return sorted((each.file_id, each.content[0].text) for each in page.data)

    def answers(self, query: str, **extra: Any) -> list[tuple[str, float]]:
        """In order, with their scores."""
        page = self._client.vector_stores.search(self.store_id, query=query, max_num_results=50, extra_body=extra)
        return [(each.content[0].text, each.score) for each in page.data]

    def versions(self) -> list[int]:
        return [each["version"] for each in self.get("versions")["data"]]

    def get(self, path: str) -> Any:
        return self._client.get(f"/vector_stores/{self.store_id}/{path}", cast_to=httpx.Response).json()

    def post(self, path: str, body: Any) -> Any:
        return self._client.post(f"/vector_stores/{self.store_id}/{path}", body=body, cast_to=httpx.Response).json()

    def listed(self) -> set[str]:
        return {each.id for each in self._client.vector_stores.files.list(self.store_id)}


@pytest.fixture
def documents(client: openai.OpenAI) -> Documents:
    return Documents(client)


def test_the_same_name_again_is_a_new_version_that_takes_the_place_of_the_old(documents: Documents) -> None:
    old = documents.put("ferrets.txt", "A ferret sleeps 14 hours.")
    new = documents.put("ferrets.txt", "A ferret sleeps 18 hours.")

    assert documents.search() == [(new, "A ferret sleeps 18 hours.")]
    assert documents.listed() == {new}
    assert documents.search(as_of=1) == [(old, "A ferret sleeps 14 hours.")]
    versions = documents.get(f"files/{new}/versions")["data"]
    assert [(each["id"], each["version"], each["status"]) for each in versions] == [
        (new, 2, "completed"),
        (old, 1, "superseded"),
    ]
    assert [each["kept_versions"] for each in versions] == [[2], [1]]
    assert documents.get(f"files/{old}/versions")["data"] == versions


def test_a_document_is_known_by_its_key_or_its_path_before_its_name(documents: Documents) -> None:
    one = documents.put("index.md", "A ferret in one folder.", attributes={"path": "one/index.md"})
    two = documents.put("index.md", "A ferret in the other.", attributes={"path": "two/index.md"})
    three = documents.put("index.md", "A ferret with a key.", key="ferrets")
    assert {file_id for file_id, _ in documents.search()} == {one, two, three}

    four = documents.put("other.md", "A ferret, again with the key.", key="ferrets")

    assert {file_id for file_id, _ in documents.search()} == {one, two, four}


def test_the_same_content_changes_nothing_until_what_it_equals_is_removed(documents: Documents) -> None:
    first = documents.put("a.txt", "One ferret.")
    before = documents.versions()

    second = documents.put("a.txt", "One ferret.")

    assert documents.versions() == before
    assert documents.search() == [(first, "One ferret.")]
    assert documents.get(f"files/{second}")["status"] == "completed"
    assert documents.get(f"files/{second}")["same_as"] == first

    documents.remove(first)

    assert documents.search() == [(second, "One ferret.")]


def test_other_attributes_make_one_that_equals_another_a_version_of_its_own(
    documents: Documents, client: openai.OpenAI
) -> None:
    documents.put("a.txt", "One ferret.")
    second, third = (documents.put("a.txt", "One ferret.") for _ in range(2))

    client.vector_stores.files.update(second, vector_store_id=documents.store_id, attributes={"year": 2021})

    only_2021 = {"type": "eq", "key": "year", "value": 2021}
    assert documents.search(filters=only_2021) == documents.search() == [(second, "One ferret.")]
    assert documents.get(f"files/{second}")["same_as"] is None
    assert documents.get(f"files/{third}/versions")["data"][0]["id"] == second


def test_deleting_the_upload_that_others_equal_leaves_the_document(documents: Documents, client: openai.OpenAI) -> None:
    first = documents.put("a.txt", "One ferret.")
    second = documents.put("a.txt", "One ferret.")

    client.files.delete(first)
    third = documents.put("b.txt", "Another ferret.")  # wakes the indexer

    assert {file_id for file_id, _ in documents.search()} == {second, third}


def test_other_attributes_are_a_new_version(documents: Documents) -> None:
    documents.put("a.txt", "One ferret.", attributes={"year": 2020})
    second = documents.put("a.txt", "One ferret.", attributes={"year": 2021})
    assert documents.search() == [(second, "One ferret.")]


def test_two_files_of_one_call_cannot_be_the_same_document(documents: Documents, client: openai.OpenAI) -> None:
    files = [client.files.create(file=("a.txt", text), purpose="assistants").id for text in (b"one", b"two")]
    with pytest.raises(openai.BadRequestError) as refused:
        client.vector_stores.file_batches.create(documents.store_id, file_ids=files)
    assert refused.value.code == "duplicate_key"
    assert "give each a `key`" in refused.value.message
    assert documents.listed() == set()


def test_as_of_answers_with_the_same_passages_and_scores_as_then(documents: Documents) -> None:
    for number in range(5):
        documents.put(f"{number}.txt", f"Ferret number {number} sleeps, " + "and a cat sleeps too. " * number)
    version = documents.versions()[0]
    moment = datetime.now(UTC)
    then = documents.answers("ferret sleeps")

    documents.put("0.txt", "A ferret that has nothing to do with it, and no cat.")
    documents.put("6.txt", "Ferret, ferret, ferret.")
    documents.remove(documents.search("number 3")[0][0])
    documents.post("optimize", {})

    assert documents.answers("ferret sleeps") != then
    assert documents.answers("ferret sleeps", as_of=version) == then
    assert documents.answers("ferret sleeps", as_of=moment.isoformat()) == then
    assert documents.answers("ferret sleeps", as_of=datetime.now(UTC).isoformat()) == documents.answers("ferret sleeps")


def test_as_of_before_the_first_document_finds_nothing(documents: Documents) -> None:
    moment = datetime.now(UTC)
    documents.put("a.txt", "One ferret.")
    # A store's own time is in whole seconds.
    assert documents.search(as_of=moment.isoformat()) == []


@pytest.mark.parametrize(
    ("as_of", "status"), [(99, 404), (0, 400), ("2001-01-01T00:00:00Z", 400), ("yesterday", 400), (True, 400)]
)
def test_an_as_of_that_means_nothing_is_refused(documents: Documents, as_of: object, status: int) -> None:
    documents.put("a.txt", "One ferret.")
    with pytest.raises(openai.APIStatusError) as refused:
        documents.search(as_of=as_of)
    assert refused.value.status_code == status
    assert "as_of" in str(refused.value.param)


def test_only_as_many_versions_are_kept_as_the_store_says(client: openai.OpenAI, documents: Documents) -> None:
    client.vector_stores.update(documents.store_id, extra_body={"retention": {"keep_versions": 2}})
    documents.put("0.txt", "Ferret 0.")
    documents.post("versions/1", {"pinned": True})
    early = datetime.now(UTC)
    for number in range(1, 5):
        documents.put(f"{number}.txt", f"Ferret {number}.")

    assert documents.versions() == [5, 4, 1]
    assert len(documents.search(as_of=4)) == 4
    assert len(documents.search(as_of=1)) == 1
    for gone in (3, early.isoformat()):
        with pytest.raises(openai.NotFoundError) as refused:
            documents.search(as_of=gone)
        assert refused.value.code == "version_gone"


def test_a_rollback_brings_back_what_was_found_and_can_be_rolled_back_itself(documents: Documents) -> None:
    kept = documents.put("a.txt", "The first ferret.", attributes={"year": 2020})
    removed = documents.put("b.txt", "The second ferret.")
    good = documents.versions()[0]
    then = documents.answers("ferret")
    documents.remove(removed)
    replaced = documents.put("a.txt", "A ferret that is wrong.")
    added = documents.put("c.txt", "A ferret too many.")
    bad = documents.versions()[0]
    found = documents.search()

    rolled = documents.post("rollback", {"version": good})

    assert (rolled["version"], rolled["files"]) == (bad + 1, 2)
    assert documents.answers("ferret") == then
    assert documents.listed() == {kept, removed}
    assert documents.get(f"files/{kept}")["attributes"] == {"year": 2020}
    assert {each["id"]: each["status"] for each in documents.get(f"files/{kept}/versions")["data"]} == {
        kept: "completed",
        replaced: "superseded",
    }

    documents.post("rollback", {"version": bad})
    assert documents.search() == found
    assert documents.listed() == {replaced, added}


def test_a_rollback_does_not_bring_back_uploads_that_were_deleted(documents: Documents, client: openai.OpenAI) -> None:
    secret = documents.put("secret.txt", "A ferret that nobody may know.")
    documents.put("b.txt", "A ferret for all.")
    version = documents.versions()[0]
    client.files.delete(secret)

    documents.post("rollback", {"version": version})

    assert [text for _, text in documents.search()] == ["A ferret for all."]


def test_a_rollback_to_a_version_that_is_not_kept_changes_nothing(documents: Documents) -> None:
    documents.put("a.txt", "One ferret.")
    with pytest.raises(openai.NotFoundError) as refused:
        documents.post("rollback", {"version": 7})
    assert refused.value.code == "version_gone"
    assert documents.versions() == [1]


def test_a_citation_names_the_version(documents: Documents) -> None:
    documents.put("a.txt", "One ferret.")
    documents.put("a.txt", "Two ferrets, or is it one ferret?")
    (found,) = documents.post("search", {"query": "ferret"})["data"]
    assert (found["key"], found["version"]) == ("a.txt", 2)
