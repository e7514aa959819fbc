# Needs Python 3.10 or newer and make; everything else is installed into .venv.

PYTHON ?= python3
EXTRA ?= cuda12
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.installed-$(EXTRA)
DEV_STAMP := $(VENV)/.installed-$(EXTRA)-dev

.DEFAULT_GOAL := help
.PHONY: help run test lint format docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

run: $(RUN_STAMP) ## run the gating kernel of the language document and check its output
	$(BIN)/tessera run examples/gdn/gdn_part1.md::gating_function_kernel --dims B=2,S=300,D=128 --arg layer_distance=3

test: lint ## lint, type-check and run every test
	$(BIN)/python -m pytest -n $(WORKERS)

lint: $(DEV_STAMP) ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(DEV_STAMP) ## format the sources
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(DEV_STAMP) ## write the generated pages and type stubs from the tables
	$(BIN)/python -m tools.make_docs

clean: ## remove the virtual environment and everything that was built
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(RUN_STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRA)]'
	touch $@

# The development install contains the other one.
$(DEV_STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRA),dev]'
	touch $(RUN_STAMP) $@
