"""The graph that `build_app` makes, as Serve reads it."""

from ray.serve._private.build_app import build_app as read

from deployments.app import build_app
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
