# make         installs everything into .venv (nothing outside this folder is touched)
# make demo    a simulated shop, a trained model and the page to look at it
# make test    what CI runs: ruff, mypy, pytest with coverage
# make bench   every benchmark in its quick version; the full ones are `.venv/bin/python benchmarks/NAME.py`
# make docs    writes the table of settings in docs/configuration.md anew
# make lock    resolves requirements.lock anew
# make clean   removes what make made

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COVERAGE := 85
# what needs a CUDA device or files that are not ours to keep is run by itself
ALONE := $(addprefix benchmarks/,decoding_gpu.py search_wands.py search_esci.py search_kuaisearch.py)
BENCHMARKS := $(filter-out benchmarks/_% $(ALONE),$(wildcard benchmarks/*.py))

.DEFAULT_GOAL := install
.PHONY: install demo test lint types unit bench docs lock clean help

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml tools/install.sh
	@PYTHON="$(PYTHON)" TORCH_PIP="$(TORCH_PIP)" tools/install.sh

# `make demo ARGS=--no-serve` stops before the server
demo: $(STAMP)
	@$(BIN)/rankloom demo $(ARGS)

test: lint types unit

lint: $(STAMP)
	@echo "== ruff"
	@$(BIN)/ruff check .

types: $(STAMP)
	@echo "== mypy --strict"
	@$(BIN)/mypy

# two processes with one thread each: more threads than cores makes torch slower, not faster; the pages of the guide are
# half of the work, so they must not all fall to one process
unit: $(STAMP)
	@echo "== pytest"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --cov=rankloom --cov-report=term:skip-covered --cov-fail-under=$(COVERAGE) $(ARGS)

bench: $(STAMP)
	@missed=; for benchmark in $(BENCHMARKS); do \
		name=$$(basename $$benchmark .py); \
		echo "== $$name"; \
		$(BIN)/python $$benchmark --quick --json runs/benchmarks/$$name.json || missed="$$missed $$name"; \
	done; \
	if [ -n "$$missed" ]; then echo "a check is missed in:$$missed"; exit 1; fi

docs: $(STAMP)
	@$(BIN)/python tools/config_docs.py

lock:
	@python3 -m venv .venv-lock && .venv-lock/bin/python -m pip install --quiet --disable-pip-version-check uv packaging
	@.venv-lock/bin/python tools/lock.py
	@rm -rf .venv-lock

clean:
	rm -rf $(VENV) .venv-lock build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis htmlcov .coverage .coverage.* runs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:
	@sed -n '/^# make/s/^# //p' Makefile
