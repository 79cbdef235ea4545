# Every target sets up .venv by itself, once for each change of constraints.txt, pyproject.toml or setup.py.
PYTHON := $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed
DEMO := build/demo
# One thread for each process: the tests run in parallel, and tiny matrices gain nothing from more.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
NPM := apps/node_modules/.installed
NODE_20 := $(shell command -v npm >/dev/null && node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' && echo yes)

.PHONY: setup native apps demo demo-gemma test check bench docs

setup: $(STAMP)

$(STAMP): constraints.txt pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt setuptools
	$(BIN)/python tools/fetch_runtime_sdk.py || echo 'going on without the native library'
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[all,dev,docs]'
	$(BIN)/adadim doctor --install converter
	touch $@

# The native library, and what its tests run: only what changed is built.
native: $(STAMP)
	tools/build_native.sh

# The clients of a bundle in JavaScript: packages as the lock says, types checked, scripts built; only if something changed.
apps: $(if $(NODE_20),build/apps/.built build/apps/android/sample.jar)
	@$(if $(NODE_20),,echo 'going on without apps/: it needs npm and Node 20 or later')

$(NPM): apps/package-lock.json
	cd apps && npm ci --loglevel=error
	touch $@

build/apps/.built: $(NPM) $(shell find apps -name node_modules -prune -o -name dist -prune -o -type f -print)
	cd apps && npm run --workspaces --if-present check && npm run --workspaces --if-present build
	mkdir -p $(@D) && touch $@

# What the Android sample has that runs on a JVM, for the tests.
build/apps/android/sample.jar: $(STAMP) $(NPM) tools/build_android.py $(shell find apps/android tests/apps/jvm -type f)
	$(BIN)/python tools/build_android.py

demo: $(STAMP)
	$(BIN)/python tools/demo.py $(DEMO)

# Gemma 3 270M in both formats, under the Gemma Terms of Use (docs/evidence/gemma.md).
demo-gemma: $(STAMP)
	$(BIN)/python tools/make_gemma.py build/gemma
	$(BIN)/adadim run build/gemma/gemma-3-270m.gguf --out build/gemma/out --target llama.cpp --target onnxruntime \
		--target-size 241MB --calibration-tokens 4096

check: $(STAMP)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

test: check native apps
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2

bench: $(STAMP) native
	$(BIN)/python tools/bench_models.py
	$(BIN)/adadim bench kernel --json build/bench/kernel.json

# README, docs/ and the docstrings of the public API as a site; a broken link is an error.
docs: $(STAMP)
	$(BIN)/python tools/make_reference.py
	$(BIN)/python -m sphinx -q -W --keep-going -b html -c docs/site . build/site
	@echo build/site/docs/site/index.html
