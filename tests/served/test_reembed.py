"""Two encoders in the served application: a store moves from one to the other while it is searched and changed."""

import threading

import httpx
import openai

from tests.served.application import Application, wait_until
from tests.served.conftest import ENCODER, OTHER_ENCODER

MOVE_S = 240
DOCUMENTS = 30


def text_of(number: int) -> str:
    return " ".join(f"Ledger {number} has on line {line} the sum of {number * line} crowns." for line in range(40))


class Load(threading.Thread):
    """Searches for one document after the other, until it is stopped."""

    def __init__(self, url: str, store_id: str) -> None:
        super().__init__()
        self.url = f"{url}/v1/vector_stores/{store_id}/search"
        self.ended = threading.Event()
        self.searches = 0
        self.wrong: list[object] = []

    def run(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self.ended.is_set():
                number = self.searches % DOCUMENTS
                body = {"query": f"the sum on line 3 of ledger {number}", "max_num_results": 50}
                answer = client.post(self.url, json=body)
                self.searches += 1
                if answer.status_code != 200 or not answer.json()["data"]:
                    self.wrong.append((answer.status_code, answer.text[:300]))


def test_store_moves_under_load_with_a_kill_and_goes_back(application: Application, client: openai.OpenAI) -> None:
    store_id = client.vector_stores.create(name="ledgers").id
    for number in range(DOCUMENTS):
        file = (f"ledger-{number}.txt", text_of(number).encode())
        client.vector_stores.files.upload(vector_store_id=store_id, file=file)
    path = f"/vector_stores/{store_id}"

    def store() -> dict[str, object]:
        answered: dict[str, object] = client.get(path, cast_to=httpx.Response).json()
        return answered

    wait_until(lambda: store()["status"] == "completed", MOVE_S, "the ingestion")
    load = Load(application.url, store_id)
    load.start()
    try:
        client.post(f"{path}/reembed", body={"model": OTHER_ENCODER}, cast_to=httpx.Response)
        application.kill("Indexer")
        added = client.vector_stores.files.upload_and_poll(
            vector_store_id=store_id, file=("added.txt", b"The ferry to Molene sails at nine.")
        )
        assert added.status == "completed"
        wait_until(lambda: store()["model"] == OTHER_ENCODER, MOVE_S, "the move")
        moved = client.get(f"{path}/statistics", cast_to=httpx.Response).json()
        client.post(f"{path}/reembed", body={"model": ENCODER}, cast_to=httpx.Response)
        wait_until(lambda: store()["model"] == ENCODER, MOVE_S, "the way back")
    finally:
        load.ended.set()
        load.join()
    back = client.get(f"{path}/statistics", cast_to=httpx.Response).json()

    assert load.wrong == []
    assert load.searches > 10
    assert (moved["documents"], back["documents"]) == (DOCUMENTS + 1, DOCUMENTS + 1)
    assert moved["passages"] > back["passages"]  # its window is shorter


def test_both_encoders_embed(client: openai.OpenAI) -> None:
    vectors = [
        client.embeddings.create(model=model, input="a ferry").data[0].embedding for model in (ENCODER, OTHER_ENCODER)
    ]

    assert vectors[0] != vectors[1]
