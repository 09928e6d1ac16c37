"""The graph that `build_app` makes, as Serve reads it."""

import importlib.util
from importlib.machinery import ModuleSpec

import pytest
from ray.serve._private.build_app import build_app as read

from deployments import app
from deployments.app import build_app
from deployments.generator import Generator
from deployments.transformers_generator import TransformersGenerator
from serve_app.config import AppConfig, GeneratorConfig


def test_every_generator_is_a_deployment_with_its_own_model() -> None:
    config = AppConfig(further_generators=(GeneratorConfig(model_id="org/other", engine={"max_model_len": 99}),))

    graph = read(build_app(config), name="rayconteur")

    assert {each.name for each in graph.deployments} == {
        *("Gateway", "Sessions", "Embedder", "Retriever", "Indexer"),
        *("Generator", "Generator:org-other"),
    }
    models = {each.name: each.init_args[0].generator.model_id for each in graph.deployments}
    assert (models["Generator"], models["Generator:org-other"]) == ("smollm2-135m-instruct", "org/other")
    (gateway,) = (each for each in graph.deployments if each.name == "Gateway")
    assert list(gateway.init_kwargs["generators"]) == ["smollm2-135m-instruct", "org/other"]


def test_the_engine_is_vllm_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"vllm": ModuleSpec("vllm", None)}
    monkeypatch.setattr(importlib.util, "find_spec", installed.get)
    assert app._engine(GeneratorConfig()) is Generator
    assert app._engine(GeneratorConfig(backend="transformers")) is TransformersGenerator

    installed.clear()
    assert app._engine(GeneratorConfig()) is TransformersGenerator
    assert app._engine(GeneratorConfig(backend="vllm")) is Generator
    with pytest.raises(ValueError, match="need vLLM"):
        app._engine(GeneratorConfig(adapters={"pirate": "folder"}))
