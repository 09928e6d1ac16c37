from collections.abc import Iterator

import httpx
import openai
import pytest
from openai.types import FileDeleted, FileObject
from sqlalchemy import func, select, update

from serve_app.errors import Unavailable
from serve_app.storage.schema import files
from serve_app.types.knowledge import StoreFileRef
from tests.api.conftest import MAX_UPLOAD_BYTES, Api
from tests.api.test_app import error_of

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4


def file_rows(api: Api) -> int:
    with api.database.read() as connection:
        return connection.scalar(select(func.count()).select_from(files)) or 0


def post_form(api: Api, filename: bytes, content: bytes = b"text", fields: bytes = b"") -> httpx.Response:
    """A form as bytes, because clients escape what we want to send."""
    body = (
        b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nassistants\r\n'
        + fields
        + b'--x\r\ncontent-disposition: form-data; name="file"; filename="'
        + filename
        + b'"\r\n\r\n'
        + content
        + b"\r\n--x--\r\n"
    )
    return api.http.post("/v1/files", content=body, headers={"content-type": "multipart/form-data; boundary=x"})


def test_a_file_is_kept_listed_read_and_deleted(api: Api) -> None:
    content = "Père Noël\n".encode() * 1000
    file = api.openai.files.create(file=("notes.txt", content), purpose="user_data")

    FileObject.model_validate(file.model_dump(), strict=True)
    assert (file.filename, file.bytes, file.purpose) == ("notes.txt", len(content), "user_data")
    assert api.kept_files() == [file.id]
    assert api.openai.files.retrieve(file.id) == file
    assert list(api.openai.files.list()) == [file]
    assert api.openai.files.content(file.id).content == content

    deleted = api.openai.files.delete(file.id)

    FileDeleted.model_validate(deleted.model_dump(), strict=True)
    assert api.kept_files() == []
    assert list(api.openai.files.list()) == []
    with pytest.raises(openai.NotFoundError):
        api.openai.files.retrieve(file.id)


def test_content_comes_as_a_download_that_no_browser_runs(shared_api: Api) -> None:
    name = 'a\\"b é.txt'.encode()
    file_id = post_form(shared_api, name, b"<script>alert(1)</script>").json()["id"]

    headers = shared_api.http.get(f"/v1/files/{file_id}/content").headers

    assert headers["content-disposition"] == "attachment; filename*=utf-8''a%22b%20%C3%A9.txt"
    assert headers["content-type"] == "application/octet-stream"
    assert headers["x-content-type-options"] == "nosniff"


def test_lists_page_in_both_directions_and_by_purpose(api: Api) -> None:
    ids = [api.upload(f"{number}.txt") for number in range(5)]
    other = api.openai.files.create(file=("b.txt", b"{}"), purpose="batch").id

    listed = [file.id for file in api.openai.files.list(limit=2, order="asc", purpose="assistants")]
    assert sorted(listed) == sorted(ids)
    assert [file.id for file in api.openai.files.list(purpose="batch")] == [other]

    page = api.http.get("/v1/files", params={"limit": 2, "order": "asc", "purpose": "assistants"}).json()
    assert page["object"] == "list"
    assert (page["first_id"], page["last_id"], page["has_more"]) == (listed[0], listed[1], True)
    before = api.http.get(f"/v1/files?limit=2&order=asc&before={listed[4]}&purpose=assistants").json()
    assert [file["id"] for file in before["data"]] == listed[2:4]
    assert before["has_more"] is True
    down = api.http.get("/v1/files", params={"limit": 10, "after": listed[2], "purpose": "assistants"}).json()
    assert [file["id"] for file in down["data"]] == listed[1::-1]
    assert down["has_more"] is False


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (b"../../etc/passwd.txt", "passwd.txt"),
        (b"/etc/passwd.txt", "passwd.txt"),
        (b"C:\\\\Users\\\\me\\\\notes.txt", "notes.txt"),
        (b"  spaced name.txt ", "spaced name.txt"),
        ("R\u00e9sum\u00e9 \u202etxt.exe.txt".encode(), "R\u00e9sum\u00e9 txt.exe.txt"),
        (b"bell\x07.txt", "bell.txt"),
        (b"a" * 251 + b".txt", "a" * 251 + ".txt"),
    ],
)
def test_only_the_base_name_is_kept(shared_api: Api, given: bytes, kept: str) -> None:
    answer = post_form(shared_api, given)

    assert answer.status_code == 200, answer.text
    assert answer.json()["filename"] == kept
    assert answer.json()["id"] in shared_api.kept_files()


@pytest.mark.parametrize("name", [b"", b"..", b"a/..", b"folder/", b"a\x00b.txt", b"\x07", b"a" * 252 + b".txt"])
def test_a_name_that_is_none_is_refused_and_nothing_is_kept(api: Api, name: bytes) -> None:
    assert error_of(post_form(api, name), 400)["param"] == "file"
    assert (api.kept_files(), file_rows(api)) == ([], 0)


@pytest.mark.parametrize(
    ("name", "content", "statuses"),
    [
        ("empty.txt", b"", (400,)),
        ("picture.png", PNG, (415,)),
        ("picture.txt", PNG, (400, 415)),
        ("lie.pdf", b"no pdf at all", (400, 415)),
        ("program.exe", b"MZ\x00\x00", (415,)),
    ],
)
def test_what_cannot_be_read_is_refused_and_nothing_is_kept(
    api: Api, name: str, content: bytes, statuses: tuple[int, ...]
) -> None:
    answer = api.http.post("/v1/files", data={"purpose": "assistants"}, files={"file": (name, content)})

    assert answer.status_code in statuses
    error_of(answer, answer.status_code)
    assert (api.kept_files(), file_rows(api)) == ([], 0)


@pytest.mark.parametrize("size", [MAX_UPLOAD_BYTES + 1, 10 * MAX_UPLOAD_BYTES])
def test_an_upload_over_the_limit_is_refused_and_nothing_is_kept(api: Api, size: int) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        api.upload("large.txt", b"a" * size)

    assert refused.value.status_code == 413
    assert (api.kept_files(), file_rows(api)) == ([], 0)
    assert api.upload("largest.txt", b"a" * MAX_UPLOAD_BYTES)


def test_an_upload_that_does_not_say_its_size_is_counted(api: Api) -> None:
    def blocks() -> Iterator[bytes]:
        yield b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
        for _ in range(100):
            yield b"a" * (MAX_UPLOAD_BYTES // 10)

    answer = api.http.post("/v1/files", content=blocks(), headers={"content-type": "multipart/form-data; boundary=x"})

    error_of(answer, 413)
    assert (api.kept_files(), file_rows(api)) == ([], 0)


@pytest.mark.parametrize(
    ("data", "param"),
    [
        ({}, "purpose"),
        ({"purpose": "fun"}, "purpose"),
        (
            {"purpose": "batch", "expires_after[anchor]": "now", "expires_after[seconds]": "3600"},
            "expires_after.anchor",
        ),
        ({"purpose": "batch", "expires_after[anchor]": "created_at"}, "expires_after.seconds"),
        (
            {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"},
            "expires_after.seconds",
        ),
        ({"purpose": "batch", "expires_after": "never"}, "expires_after"),
    ],
)
def test_bad_fields_are_named(api: Api, data: dict[str, str], param: str) -> None:
    answer = api.http.post("/v1/files", data=data, files={"file": ("a.txt", b"text")})

    assert error_of(answer, 400)["param"] == param
    assert (api.kept_files(), file_rows(api)) == ([], 0)


def test_forms_that_are_none_are_refused(shared_api: Api) -> None:
    def post(content: bytes, content_type: str) -> None:
        error_of(shared_api.http.post("/v1/files", content=content, headers={"content-type": content_type}), 400)

    post(b"{}", "application/json")
    post(b"no form", "multipart/form-data")
    post(b"no form", "multipart/form-data; boundary=x")
    post(b"", "multipart/form-data; boundary=x")
    post(
        b'--x\r\ncontent-disposition: form-data; name="file"\r\n\r\ntext\r\n--x--\r\n',
        "multipart/form-data; boundary=x",
    )


def test_expired_files_are_gone(api: Api) -> None:
    file = api.openai.files.create(
        file=("a.txt", b"text"), purpose="assistants", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.expires_at == file.created_at + 3600
    with api.database.write() as connection:
        connection.execute(update(files).values(expires_at=file.created_at - 1))

    with pytest.raises(openai.NotFoundError):
        api.openai.files.retrieve(file.id)
    assert list(api.openai.files.list()) == []
    with pytest.raises(openai.NotFoundError, match=file.id):
        api.openai.vector_stores.create(file_ids=[file.id])


def test_deleting_a_file_takes_it_out_of_every_store(api: Api) -> None:
    file_id = api.upload()
    stores = [api.openai.vector_stores.create(file_ids=[file_id]).id for _ in range(2)]

    api.openai.files.delete(file_id)

    for store_id in stores:
        assert StoreFileRef(store_id, file_id) in api.indexer.told
        assert list(api.openai.vector_stores.files.list(store_id)) == []


def test_a_delete_that_fails_halfway_can_be_made_again(api: Api) -> None:
    file_id = api.upload()
    store_id = api.openai.vector_stores.create(file_ids=[file_id]).id
    api.indexer.error = Unavailable("The indexer is down")

    with pytest.raises(openai.APIStatusError) as refused:
        api.openai.files.delete(file_id)
    assert refused.value.status_code == 503
    assert api.openai.vector_stores.files.retrieve(file_id, vector_store_id=store_id).status == "cancelled"

    api.indexer.error = None
    assert api.openai.files.delete(file_id).deleted
    assert StoreFileRef(store_id, file_id) in api.indexer.told
