"""What our code says, where Ray's dashboard shows it."""

import os
from pathlib import Path

import openai

from tests.served.application import DASHBOARD_PORT, ask_ray, wait_until


def test_the_log_of_a_gateway_tells_what_has_become_of_an_answer(client: openai.OpenAI) -> None:
    response = client.responses.create(input="Hello", max_output_tokens=2)
    session = ask_ray(f"http://127.0.0.1:{DASHBOARD_PORT}/api/version").json()["session_name"]
    logs = Path(os.environ.get("RAY_TMPDIR") or "/tmp", "ray", session, "logs", "serve")

    def is_told() -> bool:
        told = f"{response.id} is {response.status} after"
        return any(told in log.read_text() for log in logs.glob("replica_rayconteur_Gateway_*.log"))

    wait_until(is_told, 30, "the log has a line about the response")
