# Every target sets up what it needs in .venv; say `make` for the list.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-lowest fuzz soak lint format errors bench bench-gpu lock clean

PYTHON ?= python3
LOCK_FLAGS ?=
SEED ?= 0
ifndef RUN
RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)
endif

VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
UV_READY := $(VENV)/.uv-$(UV_VERSION)
READY := $(VENV)/.remask-ready
LOWEST := .venv-lowest
LOWEST_READY := $(LOWEST)/.remask-ready
PEERS_READY := $(VENV)/.peers-ready

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' Makefile | expand -t 13

demo: $(READY) ## pre-train, probe and report on built-in pictures (RUN=DIR names the run folder, SEED=N its seed)
	$(BIN)/remask pretrain --recipe demo --out $(RUN) --seed $(SEED)
	$(BIN)/remask probe $(RUN) --data crops:train --val crops:test --shots 10
	@echo "report    $(RUN)/report.html"

test: $(READY) ## the whole test suite
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test-fast: $(READY) ## unit, contract, property and architecture tests alone
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile -m "not slow and not soak" \
		tests/unit tests/contract tests/property tests/architecture

test-lowest: $(LOWEST_READY) ## the same with the lowest versions that pyproject.toml allows, in .venv-lowest
	$(LOWEST)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

fuzz: $(READY) ## 100,000 damaged files for every fast reader and 10,000 for every slow one; goes on where it was stopped
	$(BIN)/python -m tests.fuzz --keep --replay --state runs/fuzz.json --workers $(shell nproc)

soak: $(READY) ## faults of every kind into small trainings, the table in docs/reliability.md; goes on where it was stopped
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults --workers $(shell nproc) --page docs/reliability.md
	$(BIN)/python -m pytest -m soak --numprocesses 2 --dist load

lint: $(READY) ## lint, format check, strict types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(READY) ## format, and repair what the linter can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

errors: $(READY) ## write docs/errors.md anew, the list of all messages
	$(BIN)/python -m tests.errors_page

bench: $(PEERS_READY) ## speed and memory, as ratios
	$(BIN)/python -m benchmarks

bench-gpu: $(READY) ## the same on a GPU
	$(BIN)/python -m benchmarks.gpu

lock: $(UV_READY) ## write requirements.lock anew (LOCK_FLAGS=--upgrade takes the newest versions)
	$(BIN)/uv pip compile pyproject.toml --python $(BIN)/python --extra dev --extra data --extra teachers --extra dense \
		--universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock" $(LOCK_FLAGS) \
		--quiet --output-file requirements.lock
	$(BIN)/uv pip compile pyproject.toml --python $(BIN)/python --extra bench --constraint requirements.lock \
		--universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock" $(LOCK_FLAGS) \
		--quiet --output-file benchmarks/requirements.lock
	@! grep -nE '[:]//|[+]cpu' requirements.lock benchmarks/requirements.lock || \
		{ echo "the lines above name an address or a CPU-only build" >&2; exit 1; }

clean: ## remove caches and build outputs; .venv, .venv-lowest and runs/ stay
	rm -rf .pytest_cache .hypothesis .mypy_cache .ruff_cache build dist
	find . -name $(VENV) -prune -o -name $(LOWEST) -prune -o -path ./runs -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# --python, because an activated environment elsewhere would otherwise receive the packages.
$(READY): requirements.lock pyproject.toml $(UV_READY)
	@echo "installing the locked packages into $(VENV) (the first time, a few GB of wheels)"
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python --no-build-isolation --no-deps --editable .
	@touch $@

# The lowest Python and, of what pyproject.toml names, the lowest versions; of what those need, the newest that fit.
$(LOWEST_READY): pyproject.toml $(UV_READY)
	@echo "installing the lowest versions into $(LOWEST) (the first time, a few GB of wheels)"
	@test -x $(LOWEST)/bin/python || $(BIN)/uv venv --quiet --python 3.11 $(LOWEST)
	$(BIN)/uv pip install --compile-bytecode --python $(LOWEST)/bin/python --resolution lowest-direct -r pyproject.toml \
		--extra dev --extra data --extra teachers --extra dense
	$(BIN)/uv pip install --compile-bytecode --python $(LOWEST)/bin/python --no-build-isolation --no-deps --editable .
	@touch $@

# Other libraries, to be measured beside this one.
$(PEERS_READY): benchmarks/requirements.lock $(READY)
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python --require-hashes -r benchmarks/requirements.lock
	@touch $@

$(UV_READY):
	@python=$(BIN)/python; test -x $$python || python=$(PYTHON); \
		$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "remask needs Python 3.11 or newer, and $$python is not: install one and say make PYTHON=python3.11" >&2; \
		exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@
