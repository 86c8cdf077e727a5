PYTHON ?= python3
WORKDIR ?= runs/digits

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check clean

demo: .venv/installed
	$(BIN)/python -m ladd_jax.main --config=configs/digits.py --workdir=$(WORKDIR) $(ARGS)

# A file of tests stays in one process, so that what it sets up serves all of them.
PARALLEL := --numprocesses=auto --maxprocesses=4 --dist=loadfile

test: .venv/installed-test
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

check: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy ladd_jax
	$(BIN)/lint-imports

clean:
	rm -rf .venv runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Stamps: nothing is installed again until a requirement changes.
.venv/installed: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(INSTALL) --editable ".[test]"
	touch $@
