# `make` lists the targets; each calls real tools, the logic is in Python.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := common orchestrator sandbox_service llm_gateway clients/python tests bench protos/generate.py
INSTALLED := $(VENV)/.installed-$(shell cat pyproject.toml requirements/dev.txt | cksum | cut -d' ' -f1)
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help install guest protos protos-check lock format lint typecheck test acceptance check run bench bench-peers clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

install: $(INSTALLED) ## make the virtual environment with the pinned dependencies

$(INSTALLED):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fathom needs Python 3.11 or newer; try make PYTHON=python3.12")'
	@echo "installing pinned dependencies into $(VENV) ..."
	@started=$$(date +%s); $(PYTHON) -m venv $(VENV) \
	  && $(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt \
	  && $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . \
	  && echo $$(( $$(date +%s) - started )) > $(VENV)/install-seconds \
	  && echo "installed in $$(cat $(VENV)/install-seconds) s"
	@rm -f $(VENV)/.installed-*; touch $@

guest: install ## prepare the Python guest (compiled once, cached afterwards)
	@$(BIN)/fathom-prepare-guest

run: install ## answer two questions over 1,000,000 lines, on this machine
	@$(BIN)/fathom demo --install-seconds "$$(cat $(VENV)/install-seconds)"

test: guest ## run every test
	@$(BIN)/python -m pytest

acceptance: guest ## run the tests of the built wheel with real processes
	@$(BIN)/python -m pytest tests/acceptance

bench: guest ## run every benchmark
	@$(BIN)/python -m bench all

bench-peers: guest ## measure LiteLLM's proxy beside the gateway, bare and with its duties
	@$(BIN)/python -m bench.peers

check: lint typecheck protos-check ## lint, types, protos

lint: install ## check style
	@$(BIN)/ruff check $(SOURCES) && $(BIN)/ruff format --check $(SOURCES)

typecheck: install ## check types
	@$(BIN)/mypy $(SOURCES)

format: install ## rewrite the sources in the house style
	@$(BIN)/ruff check --fix --quiet $(SOURCES); $(BIN)/ruff format $(SOURCES)

protos: install ## generate the Python stubs
	@$(BIN)/python protos/generate.py

protos-check: install ## lint the contracts, find breaking changes and stale stubs
	@$(BIN)/buf lint && $(BIN)/python protos/breaking.py && $(BIN)/python protos/generate.py --check

lock: install ## pin dependencies anew; needs uv
	@for extra in gateway sandbox orchestrator; do $(UV_COMPILE) --extra $$extra -o requirements/$$extra.txt; done
	@$(UV_COMPILE) --all-extras --group dev -o requirements/dev.txt

UV_COMPILE := uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-annotate --no-emit-index-url

clean: ## remove what the targets made; the guest's cache stays
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis clients/node/node_modules
