"""The model, its batch, and one request in it.

A thread of transformers' own computes the batch (`ContinuousBatchingManager`), with pages of a key-value cache that
requests with the same beginning share. Its CUDA graphs are off: our sampler decides in Python.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig, GenerationConfig
from transformers.generation import LogitsProcessorList
from transformers.generation.continuous_batching.requests import GenerationOutput, RequestState
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, FIFOScheduler

from serve_app.config import GeneratorConfig
from serve_app.errors import InternalError, InvalidRequest, Unavailable
from serve_app.generation.transformers_engine.events import FinishReason
from serve_app.generation.transformers_engine.sampler import Asked, Sampler
from serve_app.generation.transformers_engine.sampling import Sampling, read_messages, read_sampling
from serve_app.models import resolve_model
from serve_app.types import Json
from serve_app.types.generation import Capacity

DEFAULT_CACHE_BYTES = 2**30
"""Of the key-value cache on a CPU. On a GPU it is what `gpu_memory_utilization` leaves."""

_CPU_PAGE_TOKENS = 64
_CPU_BATCH_TOKENS = 512
_CPU_REQUESTS = 32
_SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request that has been read and fits the context."""

    token_ids: list[int]
    sampling: Sampling
    max_tokens: int
    priority: int


@dataclass(frozen=True, slots=True)
class Step:
    """What came of one pass of the model: the end-of-text token is counted and not among them."""

    token_ids: Sequence[int]
    completion_tokens: int
    """So far."""
    finish_reason: FinishReason | None


class TransformersEngine:
    """Loads and starts in the constructor, which takes as long as that takes."""

    def __init__(self, config: GeneratorConfig, default_dtype: str) -> None:
        """`default_dtype` is transformers' name of one, or `auto`; `engine.dtype` goes before it.

        Raises `ValueError` if the cache cannot hold one whole context.
        """
        source = resolve_model(config.model_source)
        dtype = config.engine.get("dtype", default_dtype)
        self._tokenizer = AutoTokenizer.from_pretrained(source)
        options = {"dtype": dtype, "device_map": "auto", "attn_implementation": "sdpa", **config.transformers}
        self._model = AutoModelForCausalLM.from_pretrained(source, **options)
        own = self._model.generation_config
        self._defaults = {name: value for name in _SAMPLING_DEFAULTS if (value := getattr(own, name)) is not None}
        self._eos_ids = _eos_ids(own.eos_token_id, self._tokenizer.eos_token_id)
        self.max_model_len: int = config.engine.get("max_model_len") or self._model.config.max_position_embeddings
        self.tokenizer = self._tokenizer.backend_tokenizer
        self._numbers = count()
        # Greedy, because the sampler leaves one token to choose from.
        greedy = GenerationConfig(do_sample=False, eos_token_id=self._eos_ids)
        batching = _batching(config.engine, self._model, self.max_model_len)
        self._manager = self._model.init_continuous_batching(greedy, batching)
        sampling = self._manager.logit_processor
        sampling.logits_processor = LogitsProcessorList([Sampler()])
        sampling.tensors_required, sampling.do_processing = 1, True
        sampling._retrieve_processors_kwargs()
        self._manager.warmup()  # makes the cache
        cache_tokens = self._manager.batch_processor.cache.max_tokens_read
        _check_room(cache_tokens, self.max_model_len)
        self.capacity = Capacity(
            sequences=batching.max_requests_per_batch or math.inf,
            tokens=cache_tokens,
            step_tokens=batching.max_batch_tokens or math.inf,
            block_tokens=batching.page_size,
            context_tokens=self.max_model_len,
        )
        self._manager.start()

    def read(self, payload: Json, priority: int) -> Prompt:
        """Raises `InvalidRequest`. Takes milliseconds: it tokenises the prompt."""
        sampling = read_sampling(payload, self._defaults)
        goes_on = bool(payload.get("continue_final_message"))
        try:
            token_ids = self._tokenizer.apply_chat_template(
                read_messages(payload),
                continue_final_message=goes_on,
                add_generation_prompt=payload.get("add_generation_prompt", not goes_on),
                return_dict=False,
                **(payload.get("chat_template_kwargs") or {}),
            )
        except (TemplateError, ValueError) as error:
            raise InvalidRequest(f"the model's chat template refuses the messages: {error}", param="messages") from None
        room = self.max_model_len - len(token_ids)
        if room < (sampling.max_tokens or 1):
            raise InvalidRequest(
                f"This model's maximum context length is {self.max_model_len} tokens. However, you requested"
                f" {sampling.max_tokens or 1} output tokens and your prompt contains {len(token_ids)} input tokens",
                param="messages",
                code="context_length_exceeded",
            )
        return Prompt(token_ids, sampling, sampling.max_tokens or room, priority)

    async def generate(self, prompt: Prompt) -> AsyncGenerator[Step, None]:
        """The answer, token by token. Closing it takes the request out of the batch. Raises `Unavailable` if the engine
        has died.
        """
        manager, sampling = self._manager, prompt.sampling
        request_id = f"request_{next(self._numbers)}"
        outputs: asyncio.Queue[GenerationOutput] = asyncio.Queue()
        manager.register_result_handler(request_id, outputs.put_nowait)
        is_finished, seen = False, 0
        try:
            asked = Asked.build(sampling, prompt.priority, self._model.device)
            eos_ids = [] if sampling.ignore_eos else self._eos_ids
            if not manager.add_request(
                prompt.token_ids, request_id, prompt.max_tokens, True, eos_token_id=eos_ids, asked=asked
            ):
                raise self.lost()
            while not is_finished:
                output = await outputs.get()
                is_finished = output.is_finished()
                if output.error is not None:
                    raise self.lost() if self.has_died else InternalError(f"the model failed: {output.error}")
                new = output.generated_tokens[seen:]
                seen += len(new)
                has_ended = is_finished and bool(new) and new[-1] in eos_ids
                reason: FinishReason | None = "stop" if has_ended else "length" if is_finished else None
                yield Step(new[:-1] if has_ended else new, seen, reason)
        finally:
            if not is_finished:
                manager.cancel_request(request_id)
            # A request that was cancelled has no last output, which would take this out.
            manager.output_router.result_handlers.pop(request_id, None)

    @property
    def has_died(self) -> bool:
        """Or is about to: its requests fail from then on."""
        ends = self._manager.background_thread_status.can_accept_new_requests() is not None
        return ends or not self._manager.is_running()

    def lost(self) -> Unavailable:
        return Unavailable("the model is being restarted: try again shortly", retry_after_s=10)

    def stop(self) -> None:
        """Ends the thread. Requests in the batch fail."""
        self._manager.stop(block=True, timeout=10, hard_stop=True)


# transformers' classes have no types for mypy.
class _ByPriority(FIFOScheduler):  # type: ignore[misc]
    """Who waits for a place in the batch gets it by priority (lower is earlier), then in the order of arrival."""

    def _get_waiting_candidates(self) -> list[RequestState]:
        waiting = super()._get_waiting_candidates()
        return sorted(waiting, key=lambda state: state.logit_processor_kwargs["asked"].priority)


SCHEDULER_MAPPING["by_priority"] = _ByPriority


# vLLM's engine arguments have values of many types, and the model has no type for mypy.
def _batching(engine: dict[str, Any], model: Any, max_model_len: int) -> ContinuousBatchingConfig:
    """Of vLLM's engine arguments those that mean something here too."""
    is_on_cpu = model.device.type == "cpu"
    options: dict[str, Any] = {"page_size": _CPU_PAGE_TOKENS, "auto_switch_to_flash": False} if is_on_cpu else {}
    requests = engine.get("max_num_seqs", _CPU_REQUESTS if is_on_cpu else None)
    batch_tokens = engine.get("max_num_batched_tokens", _CPU_BATCH_TOKENS if is_on_cpu else None)
    # On a CPU transformers would take most of the machine's memory.
    cache_bytes = engine.get("kv_cache_memory_bytes", DEFAULT_CACHE_BYTES if is_on_cpu else None)
    if cache_bytes:
        page_size = options.get("page_size", ContinuousBatchingConfig.page_size)
        pages = cache_bytes // (page_size * _bytes_per_token(model))
        # The attention's mask is as wide as the cache: no wider than all requests can use.
        most = (requests or pages) * -(-max_model_len // page_size)
        options["num_blocks"] = max(1, min(pages, most))
    elif "gpu_memory_utilization" in engine:
        options["max_memory_percent"] = engine["gpu_memory_utilization"]
    return ContinuousBatchingConfig(
        max_requests_per_batch=requests,
        max_batch_tokens=batch_tokens,
        scheduler_type="by_priority",
        allow_block_sharing=engine.get("enable_prefix_caching", True),
        use_cuda_graph=False,
        use_async_batching=False,
        **options,
    )


def _check_room(cache_tokens: int, max_model_len: int) -> None:
    """A request that the whole cache cannot hold would end the thread. Raises `ValueError`."""
    if cache_tokens < max_model_len:
        raise ValueError(
            f"the key-value cache holds {cache_tokens} tokens, and a request may have {max_model_len}: raise"
            " kv_cache_memory_bytes, or lower max_model_len"
        )


def _bytes_per_token(model: Any) -> int:
    """Of the key-value cache."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * head_dim * torch.finfo(model.dtype).bits // 8)


def _eos_ids(*given: int | list[int] | None) -> list[int]:
    lists = [each if isinstance(each, list) else [each] for each in given if each is not None]
    return sorted({token_id for each in lists for token_id in each})
