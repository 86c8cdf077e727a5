PYTHON ?= python3
WORKDIR ?= runs/digits

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check clean

# XLA's CPU programs allocate their scratch memory at every call. glibc hands such blocks back to the
# kernel at once and each page faults again; kept, a step of pretraining takes a quarter less time.
KEEP_MEMORY := MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=68719476736

demo: .venv/installed
	$(KEEP_MEMORY) $(BIN)/python -m ladd_jax.main --config=configs/digits.py --workdir=$(WORKDIR) $(ARGS)

test: .venv/installed-test
	$(BIN)/python -m pytest -m "not slow"

check: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy ladd_jax

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
