# Two commands are all a newcomer needs: `make demo` and `make test`. Each sets up what it needs.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# The bundle's runtime is locked for CPython 3.11; the desk that builds it uses the same.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test check lint bench lab docs lock clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/'

demo: $(VENV)/.control ## Build a bundle, install it sealed, chat, tune, prove, audit (the whole job)
	@$(BIN)/python bundles/demo/demo.py

test: $(VENV)/.dev ## Everything CI runs: linters, types, all tests, the main job for real
	@$(MAKE) --no-print-directory lint
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/.dev ## Linters, types and the quick tests only (about a minute)
	@$(MAKE) --no-print-directory lint
	@$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

lint: $(VENV)/.dev ## ruff, mypy --strict, import-linter, ansible-lint, generated files are fresh
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@cd playbooks && ANSIBLE_COLLECTIONS_PATH=collections ../$(BIN)/ansible-lint -q --offline
	@$(BIN)/python -m appliance.manifests.schemas --check
	@$(BIN)/python -m appliance.errors_page | diff -q docs/errors.md - >/dev/null \
		|| { echo 'docs/errors.md is stale: make docs' >&2; exit 1; }

docs: $(VENV)/.control ## Regenerate docs/errors.md, docs/preflight.md and the JSON Schemas
	@$(BIN)/python -m appliance.manifests.schemas
	@$(BIN)/python -m appliance.errors_page >docs/errors.md
	@$(BIN)/python -m appliance.provision.checks_page >docs/preflight.md

lock: $(VENV)/.dev ## Resolve the locks anew (keeps pins that still fit)
	@$(BIN)/python .ci/lock

bench: $(VENV)/.dev ## Measure against the peers; prints the tables of docs/benchmarks.md
	@for script in tests/bench/*.py; do echo "== $$script"; $(BIN)/python $$script; done

lab: $(VENV)/.dev ## Boot three real hosts to try things on, as root (docs/lab.md)
	@$(BIN)/python -m tests.lab up

clean: ## Remove the environments and the demo (not the download cache)
	rm -rf $(VENV) .demo

# --- set-up ---------------------------------------------------------------------------------------

# A desk that builds and installs: light, no torch. Every file is checked against a hash.
$(VENV)/.control: .ci/control.lock pyproject.toml
	@PYTHON="$(PYTHON)" .ci/setup control

# A developer's machine: also torch and Ray (from the bundle's own cached wheels) and the tools.
$(VENV)/.dev: $(VENV)/.control .ci/dev.lock bundles/demo/runtime.lock
	@PYTHON="$(PYTHON)" .ci/setup dev
