# All targets but `help` and `clean` run in .venv, which the first of them makes.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
NEW_ENOUGH := import sys; sys.version_info >= (3, 11) or sys.exit("needs Python 3.11 or newer, this is " + sys.version.split()[0])
SNAKEMAKE := import sys, importlib.util as u; u.find_spec("snakemake") or sys.exit("sweep: Snakemake is not in $(VENV); it \
needs Python 3.11 to 3.13, this is " + sys.version.split()[0] + ": delete $(VENV), then: make PYTHON=python3.12 sweep, say")
WORKERS := --numprocesses logical --maxprocesses 8

.DEFAULT_GOAL := help
.NOTPARALLEL:  # targets share _build
.PHONY: help book archive check-book links test table sweep train-slice notebooks lint lab clean

help: ## list the targets
	@echo "make TARGET  (PYTHON=python3.12: another interpreter for a new .venv; VENV=DIR: an environment of yours)"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

book: $(STAMP) ## execute the notebooks and build _build/html/index.html  (OFFLINE=1: for pages that need no network)
	@$(RUN) book/build.py

archive: $(STAMP) ## the book as one file that opens without a network: _build/callkit-book.zip
	@OFFLINE=1 $(RUN) book/build.py
	@rm -f _build/callkit-book.zip
	@$(RUN) -m zipfile -c _build/callkit-book.zip _build/html LICENSE LICENSE-TEXT
	@echo "archive: _build/callkit-book.zip"

check-book: archive ## look at every page in a headless browser (needs Chromium or Chrome)
	@BOOK=_build/html $(RUN) -m pytest $(WORKERS) tests/test_browser.py

links: book ## check the book's links to other sites
	@$(VENV)/bin/jupyter-book build _build/src --toc $(CURDIR)/_build/src/book/_toc.yml \
		--path-output _build/links --builder linkcheck

test: $(STAMP) ## run the tests, a file at a time on each core
	@echo "test: running pytest in $(VENV)"
	@$(RUN) -m pytest $(WORKERS) --dist loadfile

table: $(STAMP) ## every table and result figure from the records alone, into _build/tables
	@$(RUN) -m callkit table --out _build/tables

sweep: $(STAMP) ## train and evaluate a grid of runs: GRID=digits  (PROFILE=slurm: on a cluster; REPORT=1: a page for each run; COMPILE=1)
	@$(RUN) -c '$(SNAKEMAKE)'
	@$(RUN) -m snakemake --snakefile sweeps/Snakefile --profile sweeps/profiles/$(or $(PROFILE),local) \
		--config grid=$(GRID) report=$(REPORT) compile=$(COMPILE)

train-slice: $(STAMP) ## train methods side by side for MINUTES=10 and measure them  (PROFILE, DATASET, IR, METHODS, ARGS)
	@$(RUN) sweeps/train_slice.py $(if $(MINUTES),--minutes $(MINUTES)) $(if $(PROFILE),--profile $(PROFILE)) \
		$(if $(DATASET),--dataset $(DATASET)) $(if $(IR),--imbalance-ratio $(IR)) $(if $(METHODS),--methods $(METHODS)) $(ARGS)

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
	@test -x $(RUN) || { $(PYTHON) -c '$(NEW_ENOUGH)' && echo "venv: creating $(VENV)" && $(PYTHON) -m venv $(VENV); }
	@$(RUN) -c 'import pip; $(NEW_ENOUGH)' || { echo "venv: delete $(VENV), then: make PYTHON=python3.12, say"; exit 1; }
	@echo "venv: installing callkit and its tools (the first time: some minutes and 7 GB)"
	@$(RUN) -m pip install --quiet --editable ".[dev]"
	@touch $@
