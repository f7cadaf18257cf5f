# make demo, make test and the rest set themselves up in $(VENV); PYTHON= chooses the interpreter.

PYTHON ?= python3
VENV ?= .venv
PORT ?= 8080
ARGS ?=
RUN ?= pytest

# Tests start the program a thousand times: it must not be compiled each time.
unexport PYTHONDONTWRITEBYTECODE

BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.stamp-run
DEV_STAMP := $(VENV)/.stamp-dev
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help demo test coverage coverage-protocols bench lint docs clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      the router on http://127.0.0.1:8080 before two embedded nodes (PORT=)"
	@echo "make test      every test (ARGS='tests/wire -k expect')"
	@echo "make coverage  every test, measured, with the gates"
	@echo "make lint      ruff, mypy, import-linter"
	@echo "make bench     beside nginx, HAProxy and uWSGI (ARGS='--only tiny --rounds 5')"
	@echo "make docs      write docs/options.md anew"
	@echo "make clean     remove what the others made"

demo: $(RUN_STAMP)
	@PORT=$(PORT) $(BIN)/python -m uwgate.demo

test: $(DEV_STAMP)
	$(BIN)/python -m $(RUN) $(ARGS)

# Reports even if a test failed; fails if a test or a gate did.
# The data lies where processes can write that gave up root.
coverage: $(DEV_STAMP)
	@data=$$(mktemp -d) || exit 1; chmod 1777 $$data; status=0; \
	export COVERAGE_FILE=$$data/coverage; \
	$(MAKE) --no-print-directory test RUN="coverage run -m pytest" || status=1; \
	$(BIN)/python -m coverage combine --quiet || status=1; \
	echo "the package: at least 90 %"; \
	$(BIN)/python -m coverage report --skip-covered --fail-under=90 || status=1; \
	echo "uwgate/protocols: 100 %"; \
	$(BIN)/python -m coverage report --include='uwgate/protocols/*' --fail-under=100 || status=1; \
	mv -f $$data/coverage .coverage || status=1; rm -rf $$data; \
	exit $$status

# The codecs alone, which no other test has to exercise: a few seconds of what the above takes.
coverage-protocols: $(DEV_STAMP)
	@data=$$(mktemp -d) || exit 1; status=0; export COVERAGE_FILE=$$data/coverage; \
	$(MAKE) --no-print-directory test RUN="coverage run -m pytest" ARGS="tests/unit/protocols $(ARGS)" \
		|| status=1; \
	$(BIN)/python -m coverage combine --quiet || status=1; \
	$(BIN)/python -m coverage report --skip-covered --include='uwgate/protocols/*' --fail-under=100 \
		|| status=1; \
	rm -rf $$data; exit $$status

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Installs nothing: it says what is missing and measures the rest.
bench:
	@if test -x $(BIN)/python; then exec $(BIN)/python -m benchmarks $(ARGS); \
	else exec $(PYTHON) -m benchmarks $(ARGS); fi

docs: $(RUN_STAMP)
	$(BIN)/python -m uwgate.config.docs > docs/options.md.new
	mv docs/options.md.new docs/options.md

clean:
	rm -rf $(VENV) $(VENV)-uwsgi .ci/.venv .ci/.venv-uwsgi build dist uwgate.egg-info htmlcov
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -f .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: installed once, and again when the dependencies may have changed.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(RUN_STAMP): pyproject.toml | $(BIN)/python
	$(PIP) install --editable .
	@touch $@

$(DEV_STAMP): pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[dev]'
	@touch $@ $(RUN_STAMP)
