"""The same engine called directly, without Ray and HTTP. Run as a program: prints its greedy answers as a JSON list,
on a line that begins with `ANSWERS `, because vLLM prints too.
"""

import json
import sys
from typing import Any

from deployments.generator import parse_engine_arguments
from serve_app.config import GeneratorConfig


def main() -> None:
    from vllm import LLM, SamplingParams
    from vllm.engine.arg_utils import EngineArgs

    request: dict[str, Any] = json.load(sys.stdin)
    arguments = EngineArgs.from_cli_args(parse_engine_arguments(GeneratorConfig.model_validate(request["generator"])))
    llm = LLM.from_engine_args(arguments)
    conversations = [[{"role": "user", "content": prompt}] for prompt in request["prompts"]]
    outputs = llm.chat(conversations, SamplingParams(temperature=0, max_tokens=request["max_tokens"]), use_tqdm=False)
    print("ANSWERS", json.dumps([output.outputs[0].text for output in outputs]))


if __name__ == "__main__":
    main()
