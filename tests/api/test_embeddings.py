import base64

import httpx
import numpy as np
import openai
import pytest
from openai.types import CreateEmbeddingResponse

from tests.api.conftest import Api
from tests.api.parts import DIMENSIONS
from tests.api.test_app import error_of

MODEL = "all-minilm-l6-v2"


def test_the_client_gets_vectors_in_the_order_of_its_texts(shared_api: Api) -> None:
    answer = shared_api.openai.embeddings.create(model=MODEL, input=["one text", "another text here"])

    CreateEmbeddingResponse.model_validate(answer.model_dump(), strict=True)
    assert [entry.index for entry in answer.data] == [0, 1]
    assert [len(entry.embedding) for entry in answer.data] == [DIMENSIONS, DIMENSIONS]
    assert np.linalg.norm(answer.data[0].embedding) == pytest.approx(1, abs=1e-6)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (5, 5)


def test_many_texts_are_embedded_a_few_at_a_time_and_keep_their_order(shared_api: Api) -> None:
    texts = [f"text {number}" for number in range(70)]
    embedder = shared_api.embedder
    embedder.calls.clear()

    answer = shared_api.openai.embeddings.create(model=MODEL, input=texts)

    assert [len(call) for call in embedder.calls] == [32, 32, 6]
    alone = [shared_api.openai.embeddings.create(model=MODEL, input=texts[index]) for index in (0, 40, 69)]
    assert [answer.data[index].embedding for index in (0, 40, 69)] == [each.data[0].embedding for each in alone]


def test_base64_and_float_are_the_same_numbers(shared_api: Api) -> None:
    def embed(encoding_format: str) -> httpx.Response:
        body = {"model": MODEL, "input": "a text", "encoding_format": encoding_format}
        return shared_api.http.post("/v1/embeddings", json=body)

    floats = embed("float").json()["data"][0]["embedding"]
    raw = base64.b64decode(embed("base64").json()["data"][0]["embedding"])

    assert len(raw) == 4 * DIMENSIONS
    assert np.frombuffer(raw, dtype="<f4").tolist() == floats


def test_the_models_own_dimensions_are_taken(shared_api: Api) -> None:
    assert shared_api.openai.embeddings.create(model=MODEL, input="a", dimensions=DIMENSIONS).data


def test_another_model_is_not_found(shared_api: Api) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        shared_api.openai.embeddings.create(model="text-embedding-3-small", input="a")

    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": [1, 2, 3]}, "input"),
        ({"input": [[1, 2], [3]]}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"input": None}, "input"),
        ({"dimensions": DIMENSIONS - 1}, "dimensions"),
        ({"dimensions": 0}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"model": 5}, "model"),
    ],
)
def test_bad_requests_name_the_field(shared_api: Api, change: dict[str, object], param: str) -> None:
    answer = shared_api.http.post("/v1/embeddings", json={"model": MODEL, "input": "a"} | change)

    assert error_of(answer, 400)["param"] == param
