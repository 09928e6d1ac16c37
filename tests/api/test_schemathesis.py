"""Requests made up from our own OpenAPI document, many of them wrong: none may be answered with our fault."""

import os
from contextlib import suppress
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import SearchStrategy, one_of
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation

from tests.api.conftest import Api

# Its parameters are classes of schemathesis's own, and nothing here depends on them.
Operation = APIOperation[Any, Any, Any, Any]

PREFIXES = (
    "/v1/files",
    "/v1/vector_stores",
    "/v1/embeddings",
    "/v1/models",
    "/v1/backups",
    "/v1/conversations",
    "/v1/insights",
    "/v1/stats",
    "/v1/admin",
)
# Tested on their own: they talk to the model, or take nothing.
OTHERS = ("/v1/chat/completions", "/v1/responses", "/healthz", "/readyz")
EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "3"))
"""For each operation, of each kind: right and wrong."""


# Its context has no type, and is not needed.
@schemathesis.serializer("application/jsonl")
def lines(_context: Any, value: object) -> bytes:
    return str(value).encode(errors="surrogatepass")


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_request_is_answered_with_a_5xx(shared_api: Api, mode: GenerationMode) -> None:
    failures: list[str] = []
    with requests.Session() as session:
        for operation in operations(shared_api):
            requests_made_up = operation.as_strategy(mode)
            if "{" in operation.path:
                # Some about what is there, some about anything.
                about_known = operation.as_strategy(mode, path_parameters=known_ids(shared_api, operation))
                requests_made_up = one_of(about_known, requests_made_up)
            failures += failures_of(requests_made_up, session)

    assert not failures


def operations(api: Api) -> list[Operation]:
    schema = schemathesis.openapi.from_url(f"{api.url}/openapi.json")
    results = list(schema.get_all_operations())
    assert all(isinstance(result, Ok) for result in results)
    every = [result.ok() for result in results if isinstance(result, Ok)]
    ours = [operation for operation in every if operation.path.startswith(PREFIXES)]
    assert [each.path for each in every if not each.path.startswith(PREFIXES + OTHERS)] == []
    assert {prefix for prefix in PREFIXES for each in ours if each.path.startswith(prefix)} == set(PREFIXES)
    return ours


def known_ids(api: Api, operation: Operation) -> dict[str, str]:
    file_id = api.upload()
    store_id = api.openai.vector_stores.create(file_ids=[file_id]).id
    batch_id = api.openai.vector_stores.file_batches.create(store_id, file_ids=[file_id]).id
    items = {"items": [{"role": "user", "content": "Hi"}]}
    conversation_id = api.http.post("/v1/conversations", json=items).json()["id"]
    ids = {
        "conversation_id": conversation_id,
        "item_id": api.http.get(f"/v1/conversations/{conversation_id}/items").json()["first_id"],
        "store_id": store_id,
        "file_id": file_id,
        "batch_id": batch_id,
        "version": "1",
        "model_id": "all-minilm-l6-v2",
        "backup_id": api.http.post("/v1/backups", json={}).json()["id"],
        "restore_id": "restore_0",
    }
    return {parameter.name: ids[parameter.name] for parameter in operation.path_parameters}


def failures_of(requests_made_up: SearchStrategy[Case[Any]], session: requests.Session) -> list[str]:
    failures = []

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=requests_made_up)
    def ask(case: Case[Any]) -> None:
        answer = case.call(session=session)
        if answer.status_code >= 500:
            failures.append(f"{answer.status_code}: {case.as_curl_command()}")

    # Some operations take nothing that could be wrong.
    with suppress(Unsatisfiable):
        ask()
    return failures
