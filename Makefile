# Each target works from a fresh clone: it makes .venv first, and again after pyproject.toml or this file has changed.
#   make demo PYTHON=python3.12    another Python, before .venv is there
#   make test TORCH=2.11.0 TORCHREC=1.6.1 FBGEMM_VERSION=1.6.0    another trio that ham_dist/backend.py supports, into a new .venv

PYTHON ?= python3
TORCH ?= 2.13.0
TORCHREC ?= 1.8.0
FBGEMM_VERSION ?= 1.8.0
BIN := .venv/bin
INSTALLED := .venv/installed

# torchrec requires the CUDA build of fbgemm-gpu even where there is no GPU; with --no-deps the build that fits is enough.
FBGEMM := $(if $(shell nvidia-smi >/dev/null 2>&1 && echo yes),fbgemm-gpu,fbgemm-gpu-cpu)

.PHONY: demo test lint docs bench bench-all peers

demo: $(INSTALLED)
	rm -rf runs/demo
	$(BIN)/ham-dist train --run-dir runs/demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, into build/docs. A broken link is an error (with --quiet, MkDocs would count none).
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --config-file .mkdocs.yml
	@echo "build/docs/index.html"

# The figures that ham_dist is held to, in one table; bench-all: every measurement on its own, which takes longer.
bench: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python perf/bench.py

bench-all: $(INSTALLED)
	@set -e; for bench in $(wildcard perf/bench_*.py); do echo "$$bench"; $(BIN)/python $$bench; done

# The programs that some benchmarks measure ham_dist against, in an environment of their own; `bench` leaves them out where they are not installed.
peers: .venv-peers/installed

.venv-peers/installed: perf/peers-requirements.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --requirement $<
	touch $@

$(INSTALLED): pyproject.toml Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch==$(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps torchrec==$(TORCHREC) $(FBGEMM)==$(FBGEMM_VERSION)
	touch $@
