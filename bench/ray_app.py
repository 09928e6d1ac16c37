"""Ray's own OpenAI application over the same model and engine arguments: a peer for `overhead.py`.

It runs with what makes it fastest: HAProxy, Ray Serve's throughput mode, and no batching of tokens.
"""

import signal
import sys

ENVIRONMENT = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
"""Read by Ray Serve when it is imported, and by all its processes: set it before this module is run."""


def main() -> None:
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions
    from ray.serve.llm import LLMConfig, build_openai_app

    from bench.servers import read_config
    from deployments.generator import fastest_dtype
    from deployments.threads import openmp_threads
    from serve_app.models import resolve_model

    generator, engine_environment, gpus = read_config()
    ray.init(address="local", num_cpus=2, include_dashboard=False)
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=int(sys.argv[1])))
    config = LLMConfig(
        model_loading_config={"model_id": generator.model_id, "model_source": resolve_model(generator.model_source)},
        engine_kwargs={"dtype": fastest_dtype()} | generator.engine,
        accelerator_config={"kind": "gpu" if gpus else "cpu"},
        placement_group_config={"bundle_per_worker": {"CPU": 1, "GPU": 1} if gpus else {"CPU": 1}},
        # Ray would give OpenMP one thread, as many as the replica has CPUs.
        runtime_env={"env_vars": {"OMP_NUM_THREADS": str(openmp_threads()), **engine_environment}},
        experimental_configs={"stream_batching_interval_ms": 0},
        deployment_config={
            "num_replicas": 1,
            "max_ongoing_requests": 1000,
            "ray_actor_options": {"num_cpus": 0.5},
        },
    )
    ingress = {"num_replicas": 1, "max_ongoing_requests": 1000, "ray_actor_options": {"num_cpus": 0.2}}
    serve.run(build_openai_app({"llm_configs": [config], "ingress_deployment_config": ingress}), name="peer")
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
