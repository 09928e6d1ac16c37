"""How the YAML becomes vLLM's command line. vLLM itself is in tests/served."""

from deployments.generator import engine_command_line
from serve_app.config import GeneratorConfig


def test_engine_arguments_and_adapters_are_vllms_own_flags() -> None:
    config = GeneratorConfig(
        model_id="m",
        engine={"dtype": "float32", "enforce_eager": True, "max_lora_rank": 32},
        adapters={"m/pirate": "/adapters/pirate"},
    )

    line = engine_command_line(config, "/models/m")

    assert line[:4] == ["--model", "/models/m", "--served-model-name", "m"]
    assert line[line.index("--dtype") + 1] == "float32"
    assert "--enforce-eager" in line
    assert line[line.index("--max-lora-rank") + 1] == "32"
    assert line[-3:] == ["--enable-lora", "--lora-modules", '{"name": "m/pirate", "path": "/adapters/pirate"}']
