# Every target says what it is about to do. `make` alone lists them.
PYTHON ?= python3
PYTHONS ?= 3.11 3.12 3.13 3.14
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
WINDOW ?= vllm-sweep
TESTS ?=

.DEFAULT_GOAL := help
.PHONY: help setup report test tests test-pythons lab check bench docs renew test-live lock

help:  ## what there is
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## .venv with every dependency, pinned by hash

$(STAMP): requirements.lock pyproject.toml
	@echo "==> Setting up $(VENV) (once; about 1.7 GB of packages)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "This needs Python 3.11 or newer; '$(PYTHON)' is not. Install it, or: make PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "Python cannot make virtual environments here. On Debian: apt-get install python3-venv"; exit 2; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

report: $(STAMP)  ## recorded telemetry of a real vLLM → reports/index.html
	@echo "==> Running the cost report on the recorded windows; the pages go to reports/"
	@$(BIN)/vllm-capacity report --examples --out reports

test: check tests  ## everything: checks, tests, notebooks

# Bytecode is kept, whatever the shell says: else each worker, and each process that a test starts,
# compiles everything anew.
tests: $(STAMP)
	@echo "==> Tests and notebooks"
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(TESTS)

test-pythons:  ## the tests (or TESTS="tests/cli …") on each of Python 3.11 to 3.14 that is installed
	@for version in $(PYTHONS); do \
	  python=; \
	  for found in python$$version $$HOME/.pyenv/versions/$$version.*/bin/python; do \
	    if $$found -c "" 2>/dev/null; then python=$$found; break; fi; \
	  done; \
	  if [ -z "$$python" ]; then echo "==> Python $$version is not installed here: left out"; continue; fi; \
	  echo "==> Python $$version, in .venv-$$version"; \
	  $(MAKE) --no-print-directory tests PYTHON=$$python VENV=.venv-$$version || exit 1; \
	done

lab: $(STAMP)  ## JupyterLab on notebooks/
	@echo "==> JupyterLab on notebooks/ (Ctrl-C ends it)"
	@cd notebooks && ../$(BIN)/jupyter lab

check: $(STAMP)  ## style, types, layers
	@echo "==> ruff, mypy --strict, import-linter"
	@$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet . && $(BIN)/mypy && $(BIN)/lint-imports --no-logo

bench: $(STAMP)  ## side-by-side ratios → bench/RESULTS.md
	@echo "==> Measuring; a few minutes"
	@$(BIN)/python -m bench

docs: $(STAMP)  ## the documentation as a site → site/index.html
	@echo "==> Building the documentation into site/"
	@$(BIN)/zensical build --strict

renew: $(STAMP)  ## the notebooks again, their kept outputs with them
	@echo "==> Running the notebooks and keeping their outputs"
	@$(BIN)/python tests/renew_notebooks.py

schema: $(STAMP)  ## answers.schema.json anew from the types
	@$(BIN)/python -c "import json; from vllm_capacity.answer import schema; print(json.dumps(schema(), indent=2))" \
		> vllm_capacity/answers.schema.json

test-live: $(STAMP)  ## the source tests against a real Parseable (PARSEABLE_BIN)
	@test -n "$(PARSEABLE_BIN)" || { echo "Set PARSEABLE_BIN to a parseable binary, 2.9.2 or newer."; exit 2; }
	@echo "==> Live tests against $(PARSEABLE_BIN)"
	@PARSEABLE_BIN="$(PARSEABLE_BIN)" $(BIN)/python -m tests.integration.live

COMPILE = $(BIN)/pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe --no-header \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host

lock: $(STAMP)  ## both locks anew from pyproject.toml (minutes)
	@echo "==> Locking everything, then what the image holds"
	@$(COMPILE) --all-extras -o requirements.lock pyproject.toml
	@$(COMPILE) --extra report --extra s3 --extra notify --extra build -c requirements.lock -o requirements-image.lock pyproject.toml
