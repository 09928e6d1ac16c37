"""vLLM behind a handle: its engine, and its own OpenAI serving layer, in one replica.

This is vLLM itself and not Ray's `LLMServer` round it: that forces vLLM's Ray executor on GPUs and holds each first
token back in a batcher, while a fraction of a GPU, replicas and queues are Ray Serve's own business here, in
`serve_config.yaml`, as for every other deployment. Only this module imports vLLM, and only in a replica: importing it
takes about nine seconds and 0.8 GB.
"""

import json
import logging
import math
from argparse import Namespace
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psutil

from deployments.engine_memory import EngineMemory
from deployments.replica import Replica
from deployments.threads import use_all_cores
from deployments.worker_extension import WORKER_EXTENSION
from serve_app.config import AppConfig, GeneratorConfig
from serve_app.counts import Counted, Counts
from serve_app.errors import InternalError, InvalidRequest, NotFound, RayconteurError, Unavailable
from serve_app.generation.pulse import Pulse
from serve_app.models import resolve_model
from serve_app.types import Json
from serve_app.types.generation import Capacity, GenerationRequest
from serve_app.vitals import EngineVitals, GpuMemory, Releasable

if TYPE_CHECKING:
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.v1.engine.async_llm import AsyncLLM

    from deployments.engine_record import EngineRecord

logger = logging.getLogger(__name__)

ERROR_EVENT = 'data: {"error"'
ENGINE_DEAD = "the model is being restarted: try again shortly"


class Generator(Replica):
    # Serve awaits a constructor that is async.
    async def __init__(self, config: AppConfig) -> None:  # type: ignore[misc]
        super().__init__()
        self._counts = Counts()
        self._engine, self._chat, self._record = await start_engine(config.generator, self._counts)
        self.processes += self.processes[0].children(recursive=True)
        self._memory = EngineMemory(self._engine)
        await self._memory.end_with_this_process()
        self._pulse = Pulse(self._memory.ask, config.generator.hang_timeout_s)

    async def complete(self, request: GenerationRequest) -> Json:
        """The whole chat completion. Raises `InvalidRequest` for what vLLM refuses, e.g. a prompt over the context."""
        answer = await self._answer(request)
        completion: Json = answer.model_dump(mode="json")
        return completion

    async def stream(self, request: GenerationRequest) -> AsyncIterator[str]:
        """vLLM's server-sent events as it writes them; raises like `complete`, before the first.

        A failure in mid-stream raises too, since vLLM's own error event would look like an answer to a client. It is
        `Unavailable` if the engine has died: then another replica can go on.
        """
        async for event in await self._answer(request):
            if event.startswith(ERROR_EVENT):
                if self._engine.errored:
                    raise Unavailable(ENGINE_DEAD, retry_after_s=10)
                error = json.loads(event[len("data: ") :])["error"]
                raise _refusal(error["message"], error["code"], error.get("param"))
            yield event

    async def capacity(self) -> Capacity:
        vllm = self._engine.vllm_config
        step_tokens = vllm.scheduler_config.max_num_batched_tokens
        chunk_tokens = vllm.scheduler_config.long_prefill_token_threshold or math.inf
        return Capacity(
            sequences=vllm.scheduler_config.max_num_seqs,
            # None where the cache is not made of blocks.
            tokens=vllm.cache_config.kv_cache_size_tokens or math.inf,
            step_tokens=step_tokens,
            block_tokens=vllm.cache_config.block_size or 1,
            chunk_tokens=chunk_tokens,
            long_prompts=max(step_tokens // chunk_tokens - 1, 1),
            context_tokens=vllm.model_config.max_model_len,
        )

    async def ready(self) -> None:
        await self._engine.check_health()

    async def check_health(self) -> None:
        """Ends this process, and the engine's, if the engine is dead or hangs.

        Ray believes an error only when it has come three times, but that a process is gone at once. The requests in
        flight end or go on as with any replica that is lost.
        """
        await super().check_health()
        try:
            await self._engine.check_health()
            await self._pulse.check()
        except Exception:
            logger.exception("the engine is replaced")
            for process in reversed(self.processes):
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def caches(self) -> Sequence[Releasable]:
        return self._memory.caches()

    def engine_vitals(self) -> EngineVitals:
        return self._record.vitals()

    def counted(self) -> Counted:
        return self._counts.read()

    def gpu_memory(self) -> GpuMemory | None:
        return self._memory.gpu

    # vLLM's answer is one object, or an async iterator of strings if the payload says `stream`.
    async def _answer(self, request: GenerationRequest) -> Any:
        from pydantic import ValidationError
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.entrypoints.serve.engine.protocol import ErrorResponse
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            chat_request = ChatCompletionRequest(
                **request.payload | {"request_id": request.request_id, "priority": request.priority}
            )
            answer = await self._chat.create_chat_completion(chat_request)
        except ValidationError as error:
            raise _invalid_payload(error.errors()[0]) from None
        except EngineDeadError:
            raise Unavailable(ENGINE_DEAD, retry_after_s=10) from None
        except (VLLMClientError, ValueError) as error:
            answer = self._chat.create_error_response(error)
        if isinstance(answer, ErrorResponse):
            raise _refusal(answer.error.message, answer.error.code, answer.error.param)
        return answer


async def start_engine(config: GeneratorConfig, counts: Counts) -> "tuple[AsyncLLM, OpenAIServingChat, EngineRecord]":
    """Start vLLM's engine as its own server would with the same arguments, with its metrics going to Ray's, and what
    `/v1/stats` says of it to the record and the `counts`.
    """
    from starlette.datastructures import State
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

    from deployments.engine_record import EngineRecord

    if current_platform.is_cpu():
        use_all_cores()
    arguments = parse_engine_arguments(config)
    engine_args = AsyncEngineArgs.from_cli_args(arguments)
    record = EngineRecord(config.model_id, counts)
    engine = AsyncLLM.from_vllm_config(
        engine_args.create_engine_config(UsageContext.OPENAI_API_SERVER),
        usage_context=UsageContext.OPENAI_API_SERVER,
        stat_loggers=[RayPrometheusStatLogger, record.of_engine],
    )
    if current_platform.is_cpu():
        await engine.collective_rpc("rayconteur_use_cpu_sampler")
    state = State()
    await init_app_state(engine, state, arguments, await engine.get_supported_tasks())
    return engine, state.openai_serving_chat, record


def parse_engine_arguments(config: GeneratorConfig) -> Namespace:
    """vLLM's own parser reads the YAML's `engine:`, so that its defaults and its error messages hold here too."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    model = resolve_model(config.model_source)
    parser = make_arg_parser(FlexibleArgumentParser(exit_on_error=False))
    arguments: Namespace = parser.parse_args(engine_command_line(config, model))
    return arguments


def engine_command_line(config: GeneratorConfig, model: str) -> list[str]:
    """The arguments with which `vllm serve` would start the same engine."""
    line = ["--model", model, "--served-model-name", config.model_id]
    # Without the details a client would not see how much of its prompt came from the cache.
    defaults = {"dtype": fastest_dtype(), "enable_prompt_tokens_details": True}
    ours = {"worker_extension_cls": WORKER_EXTENSION}
    for name, value in (defaults | config.engine | ours).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            line.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list):
            line += [f"--{flag}", *map(str, value)]
        else:
            line += [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]
    if config.adapters:
        modules = [json.dumps({"name": name, "path": source}) for name, source in config.adapters.items()]
        line += ["--enable-lora", "--lora-modules", *modules]
    return line


def fastest_dtype() -> str:
    """vLLM's `auto`, but float32 on a CPU without bfloat16 instructions, which then emulates it at half the speed."""
    import torch

    has_no_bfloat16 = not torch.cuda.is_available() and not torch.cpu._is_avx512_bf16_supported()
    return "float32" if has_no_bfloat16 else "auto"


def _invalid_payload(error: Any) -> InvalidRequest:
    field = ".".join(str(part) for part in error["loc"]) or None
    return InvalidRequest(f"{field or 'the request'}: {error['msg']}", param=field)


def _refusal(message: str, code: int, param: str | None) -> RayconteurError:
    """vLLM's error as ours."""
    if message.startswith("Grammar error"):
        # The schema is first read inside the engine, and vLLM takes what it finds there for its own fault.
        return InvalidRequest(message, param="response_format")
    if code == 404:
        return NotFound(message, param=param)
    if code < 500:
        is_too_long = "context length" in message
        return InvalidRequest(message, param=param, code="context_length_exceeded" if is_too_long else None)
    return InternalError(message)
