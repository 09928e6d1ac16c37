"""How long the tokens of one step take to draw on a CPU: by our sampler, and by vLLM's own in the same run.

    python -m bench.sampling

The logits are the default model's, at 32 places of a text. Prints milliseconds, and the ratio. vLLM's sampler runs as
in the engine that we serve, without torch's compiler.
"""

import argparse
import os
import time
from functools import partial
from statistics import median
from typing import Any

from bench.figures import found, parse_arguments
from bench.servers import ROOT
from serve_app.config import GeneratorConfig
from serve_app.models import resolve_model

ROUNDS = 15
SEQUENCES = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse_arguments(parser)
    os.environ |= {"TORCH_COMPILE_DISABLE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    measure()


def measure() -> None:
    import torch
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    from deployments.cpu_sampler import CpuSampler

    logits = real_logits()
    print("| asked | sequences | vLLM's ms | ours ms | ratio |\n|---|---|---|---|---|")
    for rows in (1, 8, SEQUENCES):
        p, k = torch.full((rows,), 0.9), torch.full((rows,), 50, dtype=torch.int32)
        for name, top_k, top_p in (("neither", None, None), ("top_p", None, p), ("top_k", k, None), ("both", k, p)):
            theirs, ours = (
                in_ms(sampler, logits[:rows], top_k, top_p) for sampler in (TopKTopPSampler(), CpuSampler())
            )
            print(f"| {name} | {rows} | {theirs:.1f} | {ours:.1f} | {ours / theirs:.2f} |")
            if rows == SEQUENCES:
                found(f"drawing {rows} tokens, {name}: of the time of vLLM's own sampler", ours / theirs, at_most=1)


def real_logits() -> Any:
    """(sequences, vocabulary), at temperature 1."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = resolve_model(GeneratorConfig().model_source)
    tokenizer, model = AutoTokenizer.from_pretrained(source), AutoModelForCausalLM.from_pretrained(source)
    text = tokenizer((ROOT / "README.md").read_text()[:20_000], return_tensors="pt").input_ids[:, :1024]
    with torch.inference_mode():
        logits = model(text).logits[0].float()
    return logits[:: len(logits) // SEQUENCES][:SEQUENCES].clone()


def in_ms(sampler: Any, logits: Any, top_k: Any, top_p: Any) -> float:
    times = []
    for _ in range(ROUNDS):
        # vLLM's changes what it is given.
        draw = partial(sampler, logits.clone(), {}, top_k, top_p)
        began = time.perf_counter()
        draw()
        times.append(time.perf_counter() - began)
    return median(times) * 1e3


if __name__ == "__main__":
    main()
