"""Ray's own classes of metrics, without a cluster: they take what they are given, and show it nowhere. And how handles
are set up for a call."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from ray.serve.handle import DeploymentHandle

from deployments.adapters import RayMetrics, RemoteGenerator
from serve_app.metrics import CATALOGUE, SEARCH_FAILURES, Metrics
from serve_app.types import GenerationRequest


def test_ray_takes_every_metric_of_the_catalogue() -> None:
    metrics: Metrics = RayMetrics()
    for metric in CATALOGUE:
        labels = dict.fromkeys(metric.labels, "any")
        match metric.kind:
            case "counter":
                metrics.add(metric, 2, **labels)
                metrics.add(metric, 0, **labels)
            case "gauge":
                metrics.set(metric, 0.5, **labels)
            case "histogram":
                metrics.observe(metric, 0.5, **labels)


def test_a_label_that_is_forgotten_is_an_error() -> None:
    with pytest.raises(ValueError, match="error"):
        RayMetrics().add(SEARCH_FAILURES)


class Recorder:
    """A handle that remembers how it was set up for the call that was made last."""

    def __init__(self, chosen: dict[str, object] | None = None, calls: list[dict[str, object]] | None = None) -> None:
        self.chosen = chosen or {}
        self.calls = calls if calls is not None else []

    def options(self, **chosen: object) -> "Recorder":
        return Recorder(self.chosen | chosen, self.calls)

    @property
    def complete(self) -> "Recorder":
        return self

    stream = complete

    # What comes back is awaited, or iterated and cancelled.
    def remote(self, request: GenerationRequest) -> Any:
        self.calls.append(self.chosen)
        return Events() if self.chosen.get("stream") else asyncio.sleep(0, {"id": request.request_id})


class Events:
    def __aiter__(self) -> AsyncIterator[str]:
        return self._events()

    async def _events(self) -> AsyncIterator[str]:
        yield "data: [DONE]\n\n"

    def cancel(self) -> None: ...


async def test_requests_of_a_session_ask_for_its_replica() -> None:
    handle = Recorder()
    generator = RemoteGenerator(cast(DeploymentHandle[Any], handle), timeout_s=1)
    request = GenerationRequest({}, "req_1", session_id="conv_1")

    await generator.complete(request)
    assert [event async for event in generator.stream(request)] == ["data: [DONE]\n\n"]

    assert handle.calls == [{"session_id": "conv_1"}, {"stream": True, "session_id": "conv_1"}]
