# make setup | demo | test | check | bench   (format, wheel, wheelhouse, test-faults, test-gpu, test-all, bench-peers: the other parts)
PYTHON ?= python3
BIN := .venv/bin
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
endif
# Tests run in two processes of one thread each: on small models that is faster than one process of two threads.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q

.PHONY: setup demo test test-faults test-gpu test-all format check wheel wheelhouse bench bench-peers bench-peers-setup bench-preference bench-quantization bench-scaling docs links
setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	@echo "Installing into .venv (about 2 GB, several minutes) / .venv にインストールします（約 2 GB、数分かかります）"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,docs]"
	@touch $@

demo: setup
	$(BIN)/aift demo

test: setup
	$(PYTEST)

test-faults: setup
	$(PYTEST) -m "faults"

test-gpu: setup
	$(BIN)/python -m pytest -q -m "gpu"

test-all: setup
	$(PYTEST) -m "not gpu"

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/bandit -q -r src -ll -c pyproject.toml
	$(BIN)/python .ci/audit.py
	$(BIN)/vermin -t=3.10- --no-tips --violations --quiet --exclude long src tests benchmarks recipes examples .ci hatch_build.py
	$(BIN)/python -m pytest -q tests/architecture
	@$(MAKE) --no-print-directory wheel

wheel: setup
	$(BIN)/python .ci/wheel.py

# build/wheelhouse: what a PC like this one installs from without a network (docs/offline.md).
wheelhouse: setup
	$(BIN)/python .ci/wheelhouse.py build/wheelhouse

# The training step against a plain loop on a tiny model, then starting, tokens, saving, evaluation and generation: a few minutes;
# `make bench-peers` is the real thing (docs/performance.md).
bench: setup
	$(BIN)/python benchmarks/training_step.py --quick
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/latency.py --quick

bench-peers: setup build/peers/.ready build/peers-lf/.ready
	$(BIN)/python benchmarks/training_step.py --plot

# DPO against TRL's DPOTrainer, seven minutes each on two quiet cores.
bench-preference: setup build/peers/.ready
	$(BIN)/python benchmarks/preference.py --method lora --kind dolly
	$(BIN)/python benchmarks/preference.py --method lora --kind long
	$(BIN)/python benchmarks/preference.py --method full --kind dolly

bench-peers-setup: build/peers/.ready build/peers-lf/.ready

build/peers/.ready: benchmarks/requirements-peers.txt
	$(PYTHON) -m venv build/peers
	build/peers/bin/python -m pip install --quiet -r $<
	@touch $@

build/peers-lf/.ready: benchmarks/requirements-llamafactory.txt
	$(PYTHON) -m venv build/peers-lf
	build/peers-lf/bin/python -m pip install --quiet -r $<
	build/peers-lf/bin/python -m pip install --quiet --no-deps llamafactory==0.9.5
	@touch $@

# Every way to quantize against bf16, a few minutes (docs/quantization.md); needs the extra torchao.
bench-quantization: setup
	$(BIN)/python -m benchmarks.quantization

# What several processes gain, about ten minutes on two quiet cores (docs/performance.md).
bench-scaling: setup
	$(BIN)/python benchmarks/scaling.py --plot

# The site of docs/ in build/site, without warnings, and every link of the repository.
docs: setup links
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

links: setup
	$(BIN)/python .ci/check_links.py
