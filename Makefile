SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
RUN := $(VENV)/bin/python
UV := .venv-uv/bin/uv
# The version of every package that is installed here.
LOCK := python-constraints.txt
PIP := -m pip install --quiet --disable-pip-version-check
REQUIREMENTS := python-requirements.txt tests/requirements.txt docs/requirements.txt
# What `make lock` does not renew. A checking machine may keep builds of torch, which are large, for one release only.
HELD ?= torch==2.13.0

# Tests do not access the hub, and use one thread for each worker.
TEST_ENV := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
PYTEST = $(TEST_ENV) $(RUN) -m pytest --timeout 600
WORKERS ?= 2
FAST = -n $(WORKERS) --dist loadfile -m "not slow and not slurm and not gpu"
SAMPLE ?= 25  # mutants of each file
MODEL_TESTS := any_model block_form embeddings encoder_decoder experts family models packing tables
MODEL_TESTS := $(MODEL_TESTS:%=tests/test_%.py)

.PHONY: help
help:  ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | while IFS=$$'\t' read -r name text; \
	do printf '  make %-12s %s\n' "$$name" "$$text"; done

.PHONY: venv
venv: $(VENV)/.installed  ## create .venv and install the requirements; again if they change

.PHONY: quickstart
quickstart: $(VENV)/.installed  ## run all steps on the built-in toy world: no network, about 2 minutes
	HF_HUB_OFFLINE=1 $(RUN) tools/quickstart.py

.PHONY: test
test: $(VENV)/.installed-tests  ## run the tests (all but the slow ones)
	$(PYTEST) $(FAST)

.PHONY: test-slow
test-slow: $(VENV)/.installed-tests  ## run the slow tests
	$(PYTEST) --timeout 3600 -n $(WORKERS) --dist loadfile -m "slow and not slurm and not gpu"

.PHONY: test-models
test-models: $(VENV)/.installed-tests  ## run every action on every architecture of the tests
	$(PYTEST) --timeout 3600 -n $(WORKERS) --dist load $(MODEL_TESTS)

.PHONY: test-slurm
test-slurm: $(VENV)/.installed-tests  ## run the tests with a SLURM of this machine (Debian: slurm-wlm, munge)
	$(PYTEST) --timeout 3600 -m slurm

.PHONY: test-newest
test-newest: RUN := .venv-newest/bin/python
test-newest: $(UV)  ## run the tests with the newest releases, also those that the requirements do not admit yet
	$(UV) venv --quiet --clear --seed --python "$(PYTHON)" .venv-newest
	"$(PYTHON)" -m tests.newest $(REQUIREMENTS) > .venv-newest/requirements.txt
	$(UV) pip install --quiet --upgrade --python .venv-newest -r .venv-newest/requirements.txt
	$(UV) pip freeze --python .venv-newest
	$(PYTEST) -p tests.deprecations $(FAST)

.PHONY: test-oldest
test-oldest: RUN := .venv-oldest/bin/python
test-oldest: $(UV)  ## run the tests with the oldest releases that the requirements admit
	$(UV) venv --quiet --clear --seed --python "$(PYTHON)" .venv-oldest
	$(UV) pip install --quiet --resolution lowest-direct --python .venv-oldest $(REQUIREMENTS:%=-r %)
	$(UV) pip freeze --python .venv-oldest
	$(PYTEST) $(FAST)

.PHONY: test-wheel
test-wheel:  ## build the wheel, install it in an environment of its own, and run the quickstart from it
	rm -rf .venv-wheel
	"$(PYTHON)" -m venv .venv-wheel
	PIP_CONSTRAINT=$(LOCK) .venv-wheel/bin/python -m pip wheel --quiet --no-deps --wheel-dir .venv-wheel/dist .
	.venv-wheel/bin/python $(PIP) -c $(LOCK) "$$(ls "$$PWD"/.venv-wheel/dist/*.whl)[program]"
	cd .venv-wheel && bin/heterolora --help && HF_HUB_OFFLINE=1 bin/heterolora quickstart

.PHONY: lock
lock: $(UV)  ## renew python-constraints.txt within the requirements, and show what changed
	@cp $(LOCK) .venv-uv/before.txt 2>/dev/null || : > .venv-uv/before.txt
	@printf '%s\n' $(HELD) > .venv-uv/held.txt
	$(UV) pip compile --quiet --universal --upgrade --python-version 3.11 --no-annotate --no-header \
	  --constraint .venv-uv/held.txt --output-file .venv-uv/after.txt $(REQUIREMENTS)
	sed -E '/^(cuda-|nvidia-|triton==)/d' .venv-uv/after.txt > $(LOCK)  # what builds of torch for CUDA add
	@diff .venv-uv/before.txt $(LOCK) && echo "nothing changed" || true

.PHONY: test-gpu
test-gpu: $(VENV)/.installed-tests  ## run the tests that need a CUDA device; they are skipped without one
	$(PYTEST) -m gpu -s tests/test_gpu.py

.PHONY: fuzz
fuzz: $(VENV)/.installed-tests  ## run 5,000 malformed inputs, and show how they ended; failures are kept as regressions
	$(TEST_ENV) $(RUN) -m tests.fuzz

.PHONY: mutants
mutants: $(VENV)/.installed-tests  ## change the files that decide, one operator at a time, and list what no test notices
	$(TEST_ENV) $(RUN) -m tests.mutants --sample $(SAMPLE)

.PHONY: lint
lint: $(VENV)/.installed-tests  ## check style, formatting and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

.PHONY: format
format: $(VENV)/.installed-tests  ## format the code
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

.PHONY: docs
docs: $(VENV)/.installed-docs  ## build the documentation in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

.PHONY: clean
clean:  ## remove environments, site and caches; runs stay
	rm -rf $(VENV) .venv-uv .venv-newest .venv-oldest .venv-wheel site .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are written last, so that make repeats an interrupted installation.
$(VENV)/.installed: python-requirements.txt $(LOCK)
	@[ -n "$(PYTHON)" ] && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: no Python 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	"$(PYTHON)" -m venv $(VENV)
	$(RUN) $(PIP) -c $(LOCK) -r python-requirements.txt
	touch $@

$(VENV)/.installed-tests: $(VENV)/.installed tests/requirements.txt docs/requirements.txt
	$(RUN) $(PIP) -c $(LOCK) -r tests/requirements.txt
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed docs/requirements.txt
	$(RUN) $(PIP) -c $(LOCK) -r docs/requirements.txt
	touch $@

$(UV):
	"$(PYTHON)" -m venv .venv-uv
	.venv-uv/bin/python $(PIP) "uv>=0.13,<0.14"
