"""The same engine called directly, without Ray and HTTP. Run as a program: prints its greedy answers as JSON, `base` to
all prompts and `adapted` to some with the adapter, on a line that begins with `ANSWERS `, because vLLM prints too.
"""

import json
import sys
from typing import Any

from deployments.generator import parse_engine_arguments
from serve_app.config import GeneratorConfig

ADAPTED = 4
"""Of the prompts."""


def main() -> None:
    from vllm import LLM, SamplingParams
    from vllm.engine.arg_utils import EngineArgs
    from vllm.lora.request import LoRARequest

    request: dict[str, Any] = json.load(sys.stdin)
    config = GeneratorConfig.model_validate(request["generator"])
    llm = LLM.from_engine_args(EngineArgs.from_cli_args(parse_engine_arguments(config)))
    conversations = [[{"role": "user", "content": prompt}] for prompt in request["prompts"]]
    sampling = SamplingParams(temperature=0, max_tokens=request["max_tokens"])
    ((name, path),) = config.adapters.items()
    answers = {
        "base": llm.chat(conversations, sampling, use_tqdm=False),
        "adapted": llm.chat(conversations[:ADAPTED], sampling, use_tqdm=False, lora_request=LoRARequest(name, 1, path)),
    }
    texts = {name: [output.outputs[0].text for output in outputs] for name, outputs in answers.items()}
    print("ANSWERS", json.dumps(texts))


if __name__ == "__main__":
    main()
