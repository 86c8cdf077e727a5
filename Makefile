PYTHON ?= python3
WORKDIR ?= runs/digits

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-slow check docs clean

demo: .venv/installed
	$(BIN)/python -m ladd_jax.main --config=configs/digits.py --workdir=$(WORKDIR) $(ARGS)

# A file of tests stays in one process, so that what it sets up serves all of them. The costliest
# are named at the end.
PARALLEL := --numprocesses=auto --maxprocesses=4 --dist=loadfile --durations=15

# Of lines that run in the tests' own processes; commands that tests start do not count.
COVERAGE := --cov --cov-report=term

test: .venv/installed-test
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL) $(COVERAGE)

# Most of their time is compilation, which keeps one core busy.
test-slow: .venv/installed-test
	$(BIN)/python -m pytest -m slow --numprocesses=2 --dist=loadfile --no-loadscope-reorder --durations=15

check: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy ladd_jax
	$(BIN)/lint-imports
# All tests together: two files of one name cannot be collected in one run.
	@tests=$$($(BIN)/python -m pytest --collect-only) || { echo "$$tests" | tail -n 40; exit 1; }
	$(MAKE) docs

docs: .venv/installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf .venv runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage

# Stamps: nothing is installed again until a requirement changes.
.venv/installed: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(INSTALL) --editable ".[test,docs]"
# Its torchvision, which tests do without, does not import beside PyTorch's CPU build.
	$(INSTALL) --no-deps torch-fidelity
	touch $@
