# Every target sets up .venv by itself, once for each change of constraints.txt or pyproject.toml.
PYTHON := $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed
DEMO := build/demo
# One thread for each process: the tests run in parallel, and tiny matrices gain nothing from more.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: setup demo test check bench

setup: $(STAMP)

$(STAMP): constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt setuptools
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[all,dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python tools/demo.py $(DEMO)

check: $(STAMP)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

test: check
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2

bench: $(STAMP)
	$(BIN)/python tools/bench_decode.py
