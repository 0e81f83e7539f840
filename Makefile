# make setup | demo | test | check | bench   (test-faults, test-gpu, test-all: the other parts)
PYTHON ?= python3
BIN := .venv/bin
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
endif
# Tests run in two processes of one thread each: on small models that is faster than one process of two threads.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q

.PHONY: setup demo test test-faults test-gpu test-all check bench
setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

demo: setup
	$(BIN)/aift demo

test: setup
	$(PYTEST) -m "not faults and not slow and not gpu"

test-faults: setup
	$(PYTEST) -m "faults"

test-gpu: setup
	$(BIN)/python -m pytest -q -m "gpu"

test-all: setup
	$(PYTEST) -m "not gpu"

check: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/architecture

bench: setup
	@echo "none yet: the first benchmark comes with the training-step issue"
