"""Handles become the Protocols of `serve_app/parts.py`, Ray's errors become ours, our metrics Ray's: the one place of
translation.

What is asked of the parts may be asked twice: searches change nothing, and every write is idempotent. So a call whose
replica died is made again on another replica, within its deadline; a stream, if nothing of it has come yet.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from ray import serve
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle
from ray.serve.metrics import Counter, Gauge, Histogram

from serve_app.errors import InternalError, NotFound, Overloaded, RayconteurError, Timeout, Unavailable
from serve_app.metrics import CATALOGUE, Metric
from serve_app.parts import Generator, Sessions
from serve_app.types import FloatMatrix, Json, Scores
from serve_app.types.generation import Capacity, GenerationRequest
from serve_app.types.knowledge import (
    AttributeChange,
    Optimization,
    Passage,
    RerankRequest,
    SearchQuery,
    StoreFileRef,
    StoreVersionRef,
    TableState,
)
from serve_app.vitals import Released, ReplicaVitals, Silence

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 2.0
"""What a client is told to wait where Ray names no time."""

READY_TIMEOUT_S = 5.0

_AGAIN_AFTER_S = 0.25
"""A replica whose engine is dead refuses at once, until Ray has noticed and replaced it."""

REPLICA_LOST = (
    ActorDiedError,
    ActorUnavailableError,
    RayActorError,
    ReplicaUnavailableError,
    DeploymentUnavailableError,
)


class RemoteEmbedder:
    def __init__(self, handle: DeploymentHandle[Any], timeout_s: float) -> None:
        self._handle, self._timeout_s = handle, timeout_s

    async def embed(self, texts: Sequence[str], model: str | None = None) -> FloatMatrix:
        matrix: FloatMatrix = await _call(self._handle.embed, tuple(texts), model, timeout_s=self._timeout_s)
        return matrix

    async def count_tokens(self, texts: Sequence[str], model: str | None = None) -> int:
        tokens: int = await _call(self._handle.count_tokens, tuple(texts), model, timeout_s=self._timeout_s)
        return tokens


class RemoteReranker:
    def __init__(self, handle: DeploymentHandle[Any], timeout_s: float) -> None:
        self._handle, self._timeout_s = handle, timeout_s

    async def rerank(self, request: RerankRequest) -> Scores:
        scores: Scores = await _call(self._handle.rerank, request, timeout_s=self._timeout_s)
        return scores


class RemoteRetriever:
    def __init__(self, handle: DeploymentHandle[Any], timeout_s: float) -> None:
        self._handle, self._timeout_s = handle, timeout_s

    async def search(self, query: SearchQuery) -> tuple[Passage, ...]:
        passages: tuple[Passage, ...] = await _call(self._handle.search, query, timeout_s=self._timeout_s)
        return passages


class RemoteIndexer:
    def __init__(self, handle: DeploymentHandle[Any], timeout_s: float, long_timeout_s: float) -> None:
        self._handle, self._timeout_s, self._long_timeout_s = handle, timeout_s, long_timeout_s

    async def wake(self) -> None:
        await _call(self._handle.wake, timeout_s=self._timeout_s)

    async def update_attributes(self, change: AttributeChange) -> None:
        await _call(self._handle.update_attributes, change, timeout_s=self._timeout_s)

    async def remove_file(self, ref: StoreFileRef) -> None:
        await _call(self._handle.remove_file, ref, timeout_s=self._timeout_s)

    async def roll_back(self, ref: StoreVersionRef) -> int:
        version: int = await _call(self._handle.roll_back, ref, timeout_s=self._timeout_s)
        return version

    async def drop_store(self, store_id: str) -> None:
        await _call(self._handle.drop_store, store_id, timeout_s=self._timeout_s)

    async def optimize(self, store_id: str) -> Optimization:
        done: Optimization = await _call(self._handle.optimize, store_id, timeout_s=self._long_timeout_s)
        return done

    async def describe(self, store_id: str) -> TableState:
        state: TableState = await _call(self._handle.describe, store_id, timeout_s=self._timeout_s)
        return state


class RemoteGenerator:
    """Requests of one session go to the replica that has the beginning of their prompts in its cache."""

    def __init__(self, handle: DeploymentHandle[Any], timeout_s: float) -> None:
        self._handle = handle
        self._streaming = handle.options(stream=True)
        self._timeout_s = timeout_s

    async def complete(self, request: GenerationRequest) -> Json:
        deadline_s = time.monotonic() + self._timeout_s
        complete = self._handle.options(session_id=request.session_id).complete
        while True:
            try:
                completion: Json = await _call(complete, request, timeout_s=deadline_s - time.monotonic())
                return completion
            except Unavailable:
                if time.monotonic() + _AGAIN_AFTER_S >= deadline_s:
                    raise
            await asyncio.sleep(_AGAIN_AFTER_S)

    async def stream(self, request: GenerationRequest) -> AsyncIterator[str]:
        deadline_s = time.monotonic() + self._timeout_s
        stream = self._streaming.options(session_id=request.session_id).stream
        while True:
            events = stream.remote(request)
            has_begun = False
            try:
                async for event in events:
                    has_begun = True
                    yield event
                return
            except (RayError, RayServeException) as error:
                if has_begun or not _is_lost(error) or time.monotonic() >= deadline_s:
                    _raise_ours(error)
            finally:
                # What was given to no replica raises why, if Ray's router has a loop of its own (DeploymentResponse).
                with suppress(RayError, RayServeException):
                    events.cancel()
            await asyncio.sleep(_AGAIN_AFTER_S)


class RemoteReplicas:
    """Asks every replica of the deployments behind these handles."""

    def __init__(self, handles: Sequence[DeploymentHandle[Any]], timeout_s: float) -> None:
        self._handles, self._timeout_s = handles, timeout_s

    async def vitals(self) -> list[ReplicaVitals | Silence]:
        return await self._ask("vitals", timeout_s=READY_TIMEOUT_S)

    async def release(self, caches: Sequence[str]) -> list[Released | Silence]:
        return await self._ask("release", tuple(caches), timeout_s=self._timeout_s)

    # What comes back has the type of the replicas' method.
    async def _ask(self, method: str, *arguments: object, timeout_s: float) -> list[Any]:
        asking = [_broadcast(handle, method, *arguments, timeout_s=timeout_s) for handle in self._handles]
        return [answer for answers in await asyncio.gather(*asking) for answer in answers]


async def _broadcast(handle: DeploymentHandle[Any], method: str, *arguments: object, timeout_s: float) -> list[Any]:
    """The answers of all replicas. One that has died meanwhile, and all of them if one is too slow, are a `Silence`."""
    name = handle.deployment_name
    try:
        answers = await handle.broadcast(method, *arguments).results_async(timeout_s=timeout_s, return_exceptions=True)
    except TimeoutError:
        return [Silence(name, f"not every replica has answered within {timeout_s:g} s")]
    except DeploymentUnavailableError:
        return [Silence(name, "there is no replica that could answer")]
    failures = [each for each in answers if isinstance(each, Exception)]
    for failure in failures:
        logger.warning("a replica of %s does not answer: %s", name, failure)
    silent = [Silence(name, "a replica has failed: the server's log says how") for _ in failures]
    return [each for each in answers if not isinstance(each, Exception)] + silent


def own_handle() -> DeploymentHandle[Any]:
    """Of the deployment that this replica is of."""
    context = serve.get_replica_context()
    # To look whether there is such a deployment would block the event loop.
    return serve.get_deployment_handle(context.deployment, context.app_name, _check_exists=False)


class GeneratorsByModel:
    """Each model's generator, for the requests that name it."""

    def __init__(self, generators: Mapping[str, Generator]) -> None:
        self._generators = generators

    async def complete(self, request: GenerationRequest) -> Json:
        return await self._of(request).complete(request)

    def stream(self, request: GenerationRequest) -> AsyncIterator[str]:
        return self._of(request).stream(request)

    def _of(self, request: GenerationRequest) -> Generator:
        model_id = request.payload["model"]
        # It can be a background response that was asked for before the configuration changed.
        if model_id not in self._generators:
            raise NotFound(f"The model {model_id!r} is not here any more", param="model", code="model_not_found")
        return self._generators[model_id]


def remote_sessions(handle: DeploymentHandle[Any], timeout_s: float) -> Sessions:
    """Calls about one log go to the replica that has it in memory, while that is alive (`session_id`)."""

    async def run(log_id: str, method: str, *arguments: object) -> Any:
        return await _call(handle.options(session_id=log_id).run, method, arguments, timeout_s=timeout_s)

    return Sessions(run)


class RayMetrics:
    """The catalogue as Ray's metrics, which its agent on each node shows to Prometheus. One in each replica.

    Ray adds the labels `deployment`, `replica` and `application`, `ray_` before a name and `_total` after a counter's.
    """

    def __init__(self) -> None:
        self._counters = {
            each: Counter(each.name, each.description, each.labels) for each in CATALOGUE if each.kind == "counter"
        }
        self._gauges = {
            each: Gauge(each.name, each.description, each.labels) for each in CATALOGUE if each.kind == "gauge"
        }
        self._histograms = {
            each: Histogram(each.name, each.description, list(each.boundaries), each.labels)
            for each in CATALOGUE
            if each.kind == "histogram"
        }

    def add(self, counter: Metric, amount: float = 1, **labels: str) -> None:
        # Ray refuses 0.
        if amount:
            self._counters[counter].inc(amount, labels)

    def set(self, gauge: Metric, value: float, **labels: str) -> None:
        self._gauges[gauge].set(value, labels)

    def observe(self, histogram: Metric, value: float, **labels: str) -> None:
        self._histograms[histogram].observe(value, labels)


async def part_status(handle: DeploymentHandle[Any]) -> str:
    """`ok`, or what is wrong with this part, for `/readyz`."""
    try:
        await _call(handle.ready, timeout_s=READY_TIMEOUT_S)
    except RayconteurError as error:
        return error.message
    return "ok"


async def read_capacities(handles: Mapping[str, DeploymentHandle[Any]]) -> dict[str, Capacity]:
    """By model id, of all replicas that answer together. A model of which none does is left out."""
    found = await asyncio.gather(*(_capacity(handle) for handle in handles.values()))
    return {model_id: capacity for model_id, capacity in zip(handles, found, strict=True) if capacity}


async def _capacity(handle: DeploymentHandle[Any]) -> Capacity | None:
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            answers = await handle.broadcast("capacity").results_async(return_exceptions=True)
    except (TimeoutError, RayError, RayServeException):
        return None
    known = [answer for answer in answers if isinstance(answer, Capacity)]
    return sum(known[1:], known[0]) if known else None


async def _call(method: Any, *arguments: object, timeout_s: float) -> Any:
    """One unary call. Raises our errors only: `Timeout` after `timeout_s`, `Unavailable` if no replica answers."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        response = method.remote(*arguments)
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline_s - time.monotonic()):
                return await response
        except asyncio.CancelledError:
            # Ray itself cancels only what belongs to a request of its own.
            response.cancel()
            raise
        except TimeoutError:
            response.cancel()
            raise Timeout(f"a part of the service did not answer within {timeout_s:g} s: try again") from None
        except REPLICA_LOST as error:
            if time.monotonic() >= deadline_s:
                _raise_ours(error)
            await asyncio.sleep(0.05)
        except (RayError, RayServeException) as error:
            _raise_ours(error)


def _is_lost(error: Exception) -> bool:
    """The replica has died, or its engine has."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return isinstance(cause, (*REPLICA_LOST, Unavailable))


def _raise_ours(error: Exception) -> NoReturn:
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, RayconteurError):
        raise cause from None
    if isinstance(cause, BackPressureError):
        retry_after_s = cause.retry_after_s or RETRY_AFTER_S
        raise Overloaded("the service is at its limit: try again shortly", retry_after_s=retry_after_s) from None
    if isinstance(cause, REPLICA_LOST):
        raise Unavailable(
            "a part of the service is being restarted: try again shortly", retry_after_s=RETRY_AFTER_S
        ) from error
    raise InternalError("an internal error occurred: the server's log has the details") from error
