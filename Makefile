# make demo: set up .venv and run the main job.   make test: set up .venv and run every check.
# make help lists the rest.

PYTHON ?= python3.11
VENV ?= .venv
# where to look for a CPU build of torch on a machine without an NVIDIA GPU
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PYTEST_FLAGS ?=

BIN := $(abspath $(VENV))/bin
RUN := PATH="$(BIN):$$PATH"

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint bench lock clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

setup: $(VENV)/runtime.stamp ## create .venv with the pinned packages

demo: $(VENV)/runtime.stamp ## generate, pretrain and evaluate: a transformer learns LinUCB in context
	$(BIN)/python -m cluster run configs/demo.yaml

test: lint ## every check, but for the slow ones
	$(RUN) pytest tests/unit tests/numerics -m "not slow" -n 2 $(PYTEST_FLAGS)
	$(RUN) pytest tests/integration -m "not slow" -n 3 --dist loadgroup $(PYTEST_FLAGS)

test-slow: $(VENV)/dev.stamp ## the checks that take minutes
	$(RUN) pytest -m slow $(PYTEST_FLAGS)

lint: $(VENV)/dev.stamp ## formatting, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/runtime.stamp ## the benchmarks, against the reference's way in the same run
	$(BIN)/python -m benchmarks

lock: ## write the lock files anew from requirements*.in
	PYTHON="$(PYTHON)" TORCH_INDEX="$(TORCH_INDEX)" sh scripts/lock.sh

clean: ## remove .venv and caches; data and runs stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(VENV)/runtime.stamp: requirements.lock scripts/install.sh
	PYTHON="$(PYTHON)" VENV="$(VENV)" TORCH_INDEX="$(TORCH_INDEX)" sh scripts/install.sh requirements.lock
	touch $@

$(VENV)/dev.stamp: requirements-dev.lock $(VENV)/s3-server.stamp $(VENV)/runtime.stamp
	$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements-dev.lock
	touch $@

$(VENV)/s3-server.stamp: requirements-s3-server.lock $(VENV)/runtime.stamp
	$(BIN)/python -m venv --clear $(VENV)/s3-server
	$(VENV)/s3-server/bin/python -m pip install -qq --disable-pip-version-check -r requirements-s3-server.lock
	touch $@
