# The targets `book`, `test`, `lint`, `lab` and `notebooks` run in .venv, which the first of them makes.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help book test notebooks lint lab clean

help: ## list the targets
	@echo "make TARGET  (PYTHON=python3.12 for another interpreter)"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

book: $(STAMP) ## execute the notebooks and build _build/html/index.html  (OFFLINE=1: for pages that need no network)
	@$(RUN) book/build.py

test: $(STAMP) ## run the tests
	@echo "test: running pytest in $(VENV)"
	@$(RUN) -m pytest

notebooks: $(STAMP) ## regenerate notebooks/*.ipynb from notebooks/*.py
	@$(RUN) book/pair.py

lint: $(STAMP) ## check the style of the code
	@$(RUN) -m ruff check .

lab: $(STAMP) ## open the notebooks in JupyterLab
	@$(RUN) -m jupyterlab notebooks

clean: ## delete what was built; keeps .venv, data and runs
	@rm -rf _build .pytest_cache .ruff_cache .hypothesis
	@echo "clean: deleted _build and the tools' caches"

$(STAMP): pyproject.toml
	@test -x $(VENV)/bin/pip || { echo "venv: creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "venv: installing callkit and its tools (the first time: some minutes and 7 GB)"
	@$(RUN) -m pip install --quiet --editable ".[dev]"
	@touch $@
