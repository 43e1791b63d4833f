# The few commands of the project. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
INSTALLED := $(VENV)/.installed
RUN ?=
# A file's tests share servers and runs: a worker takes whole files, the longest first (tests/conftest.py).
WORKERS := -n auto --dist loadfile --no-loadscope-reorder
LOCK := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header
TARGET ?= lfm
SECONDS ?= 60
FIRST ?= 0

.PHONY: help setup demo bench components check test coverage fuzz lint ui image lock clean
.DEFAULT_GOAL := help

help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(INSTALLED) ## Make .venv with everything, hash-checked

$(UV): requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; run: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $@

$(INSTALLED): $(UV) requirements/all.txt pyproject.toml
	@echo "Setting up $(VENV) (some 6 GB with torch's CUDA build) ..."
	@$(UV) pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements/all.txt
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup ## Train CE and LFM on Fashion-MNIST-LT, compare, register (about 3 minutes on 2 cores)
	@$(BIN)/lfm run fashion-mnist-lt --baseline --json build/demo.json

ui: setup ## Open the MLflow UI on the runs
	@$(BIN)/lfm ui

bench: setup ## Every hot part beside the reference way of working (10 minutes on 2 idle cores)
	@$(BIN)/python -m benchmarks.speed --out docs/performance.md

components: setup ## List the pipeline's components in docs/components.md
	@$(BIN)/python -m lfm.components

image: ## Build the container image of this commit (TARGET=serve or mlflow for the others, BASE_IMAGE=...)
	@infra/docker/build.sh $(TARGET)

lint: setup ## Format check, lint, types, import rules, unused dependencies
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .

check: lint ## Lint, types, import rules, then the quick tests: a minute on 2 idle cores
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal -m "not slow" $(RUN)

test: lint ## Lint, types, import rules, then every test
	OMP_NUM_THREADS=1 $(BIN)/pytest $(WORKERS) $(RUN)

coverage: setup ## Every test again, and which lines they run: half as slow again, since each step is watched
	$(BIN)/coverage erase
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest $(WORKERS) $(RUN)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

fuzz: setup ## Damaged images into the decoder for SECONDS (60), from seed FIRST on, at most MOST
	$(BIN)/python -m tests.programs.fuzz_decoder --seconds $(SECONDS) --first $(FIRST) $(if $(MOST),--most $(MOST))

lock: $(UV) ## Resolve the dependencies again into requirements/*.txt
	$(LOCK) --all-extras --group dev pyproject.toml requirements/build.in -o requirements/all.txt
	$(LOCK) --all-extras -c requirements/all.txt pyproject.toml requirements/build.in -o requirements/run.txt
	$(LOCK) --no-emit-package triton -c requirements/run.txt requirements/serve.in -o requirements/serve.txt
	$(LOCK) -c requirements/run.txt requirements/server.in -o requirements/server.txt
	echo uv | $(LOCK) - -o requirements/uv.txt

clean: ## Remove the environment and build outputs (not .lfm: your data and runs)
	rm -rf $(VENV) build
