# Everything here needs only git, make and a Python >= 3.11 with venv. The first lane makes .venv, from pyproject.toml, over the
# network; after that nothing is fetched until pyproject.toml changes. The tests on Kafka need OpenJDK >= 17 and Maven as well, and
# fetch the servers' jars when a test first asks for them; without these two they are skipped, with the reason.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# No cache in the tree: a clone that root made is then tested by a user as well.
PYTEST := $(BIN)/python -m pytest -p no:cacheprovider $(PYTEST_ARGS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo check test test-full bench fmt docs clean

help: ## list the lanes
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP) ## watch a live Postgres being replicated exactly once, through kills (< 90 s)
	$(BIN)/cdc demo $(ARGS)

check: $(STAMP) ## format, lint, types, unit tests and simulation (< 1 min, no server)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) tests/unit tests/simulation -m "not slow"

test: $(STAMP) ## everything that CI runs: real Postgres and Kafka servers, kills for a minute, each failpoint (<= 25 min)
	$(PYTEST) -n 2 --dist worksteal

test-full: $(STAMP) ## the full counts of kills and failpoints, written to docs/verification.md (hours)
	PENSTOCK_FULL=1 $(PYTEST) --timeout 14400

bench: $(STAMP) ## ratios to the machine's own limits; never in CI
	$(BIN)/python -m benchmarks $(ARGS)

fmt: $(STAMP) ## format, and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## write the reference pages that are made from the code
	$(BIN)/python -m docs.generate

clean: ## remove what the lanes made in this folder
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis build dist

$(STAMP): pyproject.toml
	@echo "Installing into $(VENV); this happens once, and when pyproject.toml changes."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=python3.12 …"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV) || { echo "On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
