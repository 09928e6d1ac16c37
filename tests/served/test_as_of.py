"""What a version of a store answered it answers still, after optimisation and after its processes have died.

And what was counted stays counted.
"""

from typing import Any

import httpx
import openai

from tests.served.application import Application


def test_as_of_and_statistics_survive_the_death_of_every_part_that_searches(
    application: Application, client: openai.OpenAI
) -> None:
    store_id = client.vector_stores.create(name="timetable").id
    path = f"/vector_stores/{store_id}"
    for departure in ("nine", "ten", "eleven"):
        file = ("ferry.txt", f"The ferry to Molene sails at {departure}.".encode())
        added = client.vector_stores.files.upload_and_poll(vector_store_id=store_id, file=file)
        assert added.status == "completed"

    def answers(as_of: int) -> list[tuple[str, float]]:
        found = client.vector_stores.search(store_id, query="When does the ferry sail?", extra_body={"as_of": as_of})
        return [(each.content[0].text, each.score) for each in found.data]

    def statistics() -> dict[str, Any]:
        shown = client.get(f"{path}/statistics", cast_to=httpx.Response).json()
        return {name: shown[name] for name in ("documents", "passages", "searches", "query_cache")}

    versions = client.get(f"{path}/versions", cast_to=httpx.Response).json()["data"]
    then = {each["version"]: answers(each["version"]) for each in versions}
    assert [then[number][0][0].split()[-1] for number in (1, 2, 3)] == ["nine.", "ten.", "eleven."]

    client.post(f"{path}/optimize", cast_to=httpx.Response)
    assert {number: answers(number) for number in then} == then

    before = statistics()
    assert (before["documents"], before["passages"], before["searches"]["count"]) == (1, 1, 6)
    assert before["query_cache"] == {"hits": 5, "misses": 1}

    application.kill("Indexer", "Retriever", "Gateway")

    assert statistics() == before
    assert {number: answers(number) for number in then} == then
