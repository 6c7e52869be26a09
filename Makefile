# Each target works in a fresh clone. It first creates .venv, and updates it after a change of pyproject.toml
# or this file.
#   make demo PYTHON=python3.12    uses another Python, if there is no .venv yet
#   make test TORCH=2.11.0 TORCHREC=1.6.1 FBGEMM_VERSION=1.6.0
#     uses other versions that ham_dist/backend.py supports; delete .venv first

PYTHON ?= python3
TORCH ?= 2.13.0
TORCHREC ?= 1.8.0
FBGEMM_VERSION ?= 1.8.0
TRITONCLIENT ?= 2.73.0
# Processes that run the tests.
WORKERS ?= 2
BIN := .venv/bin
INSTALLED := .venv/installed

# torchrec requires the CUDA build of fbgemm-gpu, also without a GPU. With --no-deps, the build for this
# machine is enough.
FBGEMM := $(if $(shell nvidia-smi >/dev/null 2>&1 && echo yes),fbgemm-gpu,fbgemm-gpu-cpu)

.PHONY: demo test lint docs bench bench-all peers

demo: $(INSTALLED)
	rm -rf runs/demo
	$(BIN)/ham-dist train --run-dir runs/demo

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Writes the site to build/docs. A broken link is an error (with --quiet, MkDocs would not count it).
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --config-file .mkdocs.yml
	@echo "build/docs/index.html"

# bench: the main measurements, in one table. bench-all: every measurement by itself, which takes longer.
bench: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python perf/bench.py

bench-all: $(INSTALLED)
	@set -e; for bench in $(wildcard perf/bench_*.py); do echo "$$bench"; $(BIN)/python $$bench; done

# Installs the programs that some benchmarks compare ham_dist with, in a separate environment. Without them,
# `bench` skips these comparisons.
peers: .venv-peers/installed

.venv-peers/installed: perf/peers-requirements.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --requirement $<
	touch $@

# tritonclient, with which tests ask the server, requires another urllib3 than torchx, which it does not
# import; pyproject.toml lists what it does import.
$(INSTALLED): pyproject.toml Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch==$(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps torchrec==$(TORCHREC) $(FBGEMM)==$(FBGEMM_VERSION)
	$(BIN)/python -m pip install --quiet --no-deps tritonclient==$(TRITONCLIENT)
	touch $@
