"""What the adapters make of Ray's handles and metrics, without a cluster."""

import asyncio
from collections.abc import AsyncIterator, Generator, Sequence
from dataclasses import replace
from typing import Any, Self, cast

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from deployments import adapters
from deployments.adapters import GeneratorsByModel, RayMetrics, RemoteGenerator, RemoteReplicas, read_capacities
from serve_app.errors import InvalidRequest, NotFound, RayconteurError, Timeout, Unavailable
from serve_app.metrics import CATALOGUE, SEARCH_FAILURES, Metrics
from serve_app.types.generation import Capacity, GenerationRequest
from serve_app.vitals import Released, Silence
from tests.fakes import FakeGenerator

REQUEST = GenerationRequest({}, "req_1")


class Stream:
    """What a handle's streaming call returns: items, then perhaps an error."""

    def __init__(self, steps: Sequence[str | Exception]) -> None:
        self._steps = steps
        self.is_cancelled = False

    async def __aiter__(self) -> AsyncIterator[str]:
        for step in self._steps:
            if isinstance(step, Exception):
                raise step
            yield step

    def cancel(self) -> None:
        self.is_cancelled = True
        # As Ray does where the call was given to no replica.
        if self._steps and isinstance(self._steps[0], Exception):
            raise self._steps[0]


class Handle:
    """A deployment's handle. Each call gets the next of the streams."""

    def __init__(self, *streams: Sequence[str | Exception]) -> None:
        self.streams = [Stream(steps) for steps in streams]
        self.calls = 0
        self.complete = self.stream = self

    def options(self, **chosen: object) -> Self:
        return self

    def remote(self, request: GenerationRequest) -> Stream:
        assert request is REQUEST
        self.calls += 1
        return self.streams[self.calls - 1]


async def read(handle: Handle, timeout_s: float = 60) -> list[str]:
    # As much of a handle as a stream takes.
    generator = RemoteGenerator(cast("DeploymentHandle[Any]", handle), timeout_s)
    return [event async for event in generator.stream(REQUEST)]


def raised_there(error: RayconteurError) -> RayTaskError:
    return RayTaskError("stream", "traceback", error)


@pytest.fixture
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "_AGAIN_AFTER_S", 0)


@pytest.mark.usefixtures("_no_pause")
@pytest.mark.parametrize("loss", [ActorDiedError(), raised_there(Unavailable("its engine is dead"))])
async def test_stream_of_which_nothing_came_is_asked_for_again(loss: Exception) -> None:
    handle = Handle([loss], [loss], ["a", "b"])

    assert await read(handle) == ["a", "b"]
    assert [stream.is_cancelled for stream in handle.streams] == [True, True, True]


async def test_stream_that_had_begun_is_not_begun_again() -> None:
    handle = Handle(["a", ActorDiedError()], ["a", "b"])

    with pytest.raises(Unavailable):
        await read(handle)

    assert handle.calls == 1


async def test_stream_is_not_asked_for_after_its_deadline() -> None:
    handle = Handle([ActorDiedError()], ["a"])

    with pytest.raises(Unavailable):
        await read(handle, timeout_s=0)


async def test_what_the_model_refuses_is_not_asked_again() -> None:
    handle = Handle([raised_there(InvalidRequest("too long"))], ["a"])

    with pytest.raises(InvalidRequest, match="too long"):
        await read(handle)


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


class Call:
    """What a handle's unary call returns."""

    def __init__(self, answer: dict[str, Any] | Exception) -> None:
        self._answer = answer

    def __await__(self) -> Generator[Any, None, Any]:
        if isinstance(self._answer, Exception):
            raise self._answer
        yield from asyncio.sleep(0).__await__()
        return self._answer

    def cancel(self) -> None: ...


class Answering(Handle):
    """Each call gets the next of the answers."""

    def __init__(self, *answers: dict[str, Any] | Exception) -> None:
        super().__init__()
        self._answers = iter(answers)

    def remote(self, request: GenerationRequest) -> Any:
        self.calls += 1
        return Call(next(self._answers))


@pytest.mark.usefixtures("_no_pause")
async def test_completion_of_a_dead_engine_is_asked_for_again() -> None:
    handle = Answering(raised_there(Unavailable("its engine is dead")), ActorDiedError(), {"id": "chatcmpl_1"})

    generator = RemoteGenerator(cast("DeploymentHandle[Any]", handle), timeout_s=60)

    assert await generator.complete(REQUEST) == {"id": "chatcmpl_1"}
    assert handle.calls == 3


@pytest.mark.parametrize("error", [Unavailable("its engine is dead"), InvalidRequest("too long")])
async def test_completion_is_not_asked_for_after_its_deadline_or_once_it_is_refused(error: RayconteurError) -> None:
    handle = Answering(raised_there(error), {"id": "chatcmpl_1"})

    with pytest.raises(type(error)):
        await RemoteGenerator(cast("DeploymentHandle[Any]", handle), timeout_s=0.01).complete(REQUEST)

    assert handle.calls == 1


class Events:
    def __aiter__(self) -> AsyncIterator[str]:
        return self._events()

    async def _events(self) -> AsyncIterator[str]:
        yield "data: [DONE]\n\n"

    def cancel(self) -> None: ...


class Held:
    """A handle whose call is never answered."""

    def __init__(self) -> None:
        self.is_awaited = asyncio.Event()
        self.is_cancelled = False
        self.complete = self

    def options(self, **chosen: object) -> Self:
        return self

    def remote(self, request: GenerationRequest) -> Self:
        return self

    def __await__(self) -> Generator[Any, None, Any]:
        self.is_awaited.set()
        return asyncio.Event().wait().__await__()

    def cancel(self) -> None:
        self.is_cancelled = True


async def test_a_call_that_nobody_waits_for_any_more_is_cancelled() -> None:
    handle = Held()
    call = asyncio.create_task(RemoteGenerator(cast("DeploymentHandle[Any]", handle), timeout_s=60).complete(REQUEST))
    await handle.is_awaited.wait()

    call.cancel()
    await asyncio.wait([call])

    assert call.cancelled()
    assert handle.is_cancelled


async def test_a_call_whose_time_is_over_is_cancelled() -> None:
    handle = Held()

    with pytest.raises(Timeout):
        await RemoteGenerator(cast("DeploymentHandle[Any]", handle), timeout_s=0).complete(REQUEST)

    assert handle.is_cancelled


async def test_requests_of_a_session_ask_for_its_replica() -> None:
    handle = Recorder()
    generator = RemoteGenerator(cast(DeploymentHandle[Any], handle), timeout_s=1)
    request = GenerationRequest({}, "req_1", session_id="conv_1")

    await generator.complete(request)
    assert [event async for event in generator.stream(request)] == ["data: [DONE]\n\n"]

    assert handle.calls == [{"session_id": "conv_1"}, {"stream": True, "session_id": "conv_1"}]


class Broadcasting:
    """A handle whose replicas each give the next answer, or raise together."""

    def __init__(self, name: str, *answers: object, failure: Exception | None = None) -> None:
        self.deployment_name = name
        self.asked: list[tuple[object, ...]] = []
        self._answers, self._failure = answers, failure

    def broadcast(self, method: str, *arguments: object) -> Self:
        self.asked.append((method, *arguments))
        return self

    async def results_async(self, *, timeout_s: float, return_exceptions: bool) -> list[object]:
        assert return_exceptions
        if self._failure:
            raise self._failure
        return list(self._answers)


async def test_all_replicas_are_asked_and_those_that_fail_are_named() -> None:
    released = Released("Gateway", "gateway_1", "node_1", 2, 1, ())
    handles = [
        Broadcasting("Gateway", released, released),
        Broadcasting("Embedder", released, ActorDiedError()),
        Broadcasting("Retriever", failure=TimeoutError()),
        Broadcasting("Generator", failure=DeploymentUnavailableError(DeploymentID("Generator", "rayconteur"))),
    ]
    replicas = RemoteReplicas(cast("list[DeploymentHandle[Any]]", handles), timeout_s=30)

    answers = await replicas.release(["prefix"])

    assert handles[0].asked == [("release", ("prefix",))]
    assert [each for each in answers if isinstance(each, Released)] == [released] * 3
    silent = {each.deployment: each.message for each in answers if isinstance(each, Silence)}
    assert list(silent) == ["Embedder", "Retriever", "Generator"]
    assert silent["Retriever"] == "not every replica has answered within 30 s"


class Broadcast:
    """A handle whose replicas say this."""

    def __init__(self, answers: Sequence[object] | Exception) -> None:
        self._answers = answers

    def broadcast(self, method: str) -> Self:
        assert method == "capacity"
        return self

    async def results_async(self, *, return_exceptions: bool) -> Sequence[object]:
        assert return_exceptions
        if isinstance(self._answers, Exception):
            raise self._answers
        return self._answers


async def test_capacities_are_of_all_replicas_that_answer() -> None:
    one = Capacity(
        40, tokens=8000, step_tokens=256, block_tokens=16, chunk_tokens=96, long_prompts=2, context_tokens=2048
    )
    handles = {
        "two": Broadcast([one, ActorDiedError(), one]),
        "none": Broadcast([ActorDiedError()]),
        "starting": Broadcast(ReplicaUnavailableError("none yet")),
    }

    # As much of a handle as this takes.
    capacities = await read_capacities(cast("dict[str, DeploymentHandle[Any]]", handles))

    assert capacities == {"two": replace(one, sequences=80, tokens=16000, step_tokens=512, long_prompts=4)}


async def test_each_request_goes_to_the_generator_of_its_model() -> None:
    one, other = FakeGenerator(), FakeGenerator()
    generators = GeneratorsByModel({"one": one, "org/other": other})

    await generators.complete(GenerationRequest({"model": "one"}, "req_1"))
    async for _ in generators.stream(GenerationRequest({"model": "org/other"}, "req_2")):
        pass

    assert [[each.request_id for each in fake.requests] for fake in (one, other)] == [["req_1"], ["req_2"]]
    with pytest.raises(NotFound, match="gone"):
        await generators.complete(GenerationRequest({"model": "gone"}, "req_3"))
