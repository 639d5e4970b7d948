# SPDX-License-Identifier: Apache-2.0
# Start here: `make demo` shows Orc at work, `make test` runs every test.
# ARGS goes on to pytest or the benchmark: make test ARGS="-k scheduler"

PYTHON := .venv/bin/python
SOURCES := orchestrator tests

.DEFAULT_GOAL := help
.PHONY: help demo test quick sim chaos vm-test lint lock bench scale deb wheel reference docs pictures install \
    format clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# These targets install packages or create namespaces; other users than root run them by `sudo`.
AS_ROOT := demo test chaos vm-test bench scale pictures install
ifneq ($(shell id -u),0)
ifneq ($(filter $(AS_ROOT),$(MAKECMDGOALS)),)
BECOME_ROOT := yes
endif
endif

ifdef BECOME_ROOT
export ARGS
.PHONY: $(MAKECMDGOALS)
$(MAKECMDGOALS):
	@command -v sudo >/dev/null || { \
	    echo "make $@: needs root: run it as root, or install sudo" >&2; exit 1; }
	@exec sudo "$(MAKE)" --no-print-directory $@ "ARGS=$$ARGS"
else

demo: install ## Start a dev cluster and show a service on it (root)
	@scripts/demo

# Unit, contract and simulation tests run in parallel. The end-to-end tests run on two clusters side
# by side, each file on one of them.
PARALLEL := tests/chaos tests/contract tests/scale tests/sim tests/unit
PYTEST := $(PYTHON) -m pytest --durations=25

test: install ## Run all tests, the end-to-end ones on real dev clusters included (root)
ifneq ($(ARGS),)
	@$(PYTHON) -m pytest $(ARGS)
else
	@$(PYTEST) $(PARALLEL) --numprocesses auto --maxprocesses 4 --dist worksteal
	@$(PYTEST) tests/e2e --numprocesses 2 --dist loadfile
endif

quick: install ## Run the unit tests of the packages that changed (BASE=main)
	@$(PYTHON) scripts/quick $(ARGS)

sim: install ## Simulate 10,000 clusters with faults, each from a seed (ARGS="2000": that number)
	@$(PYTHON) tests/sim/manyseeds.py $(ARGS)

chaos: install ## Break a dev cluster by faults from a seed, and judge its history (root; ARGS="--seed 7 --minutes 30")
	@$(PYTHON) -m tests.chaos $(ARGS)

vm-test: install ## Test other kernels in virtual machines, and the Vagrant testbed (root, slow)
	@$(PYTHON) -m tests.vm $(ARGS)

lint: install ## Check style, types and the direction of imports
	@.venv/bin/ruff check $(SOURCES)
	@.venv/bin/ruff format --check $(SOURCES)
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@scripts/import-cycles
	@scripts/spdx --check
	@! find tests -name 'test_*.py' -printf '%f\n' | sort | uniq -d | sed 's/$$/: two test files have this name/' | grep .

bench: install ## Run benchmarks, also of Docker where it is installed (root)
	@$(PYTHON) -m tests.bench $(ARGS)

scale: install ## Load a manager with simulated agents (root; ARGS="--nodes 500 --tasks 5000")
	@$(PYTHON) -m tests.scale $(ARGS)

reference: install ## Write docs/reference and docs/docker-api.md from the commands and routes
	@$(PYTHON) scripts/reference
	@$(PYTHON) scripts/docker-api

lock: ## Pin the Python packages that pyproject.toml asks for (ARGS=--upgrade: the newest)
	@scripts/lock $(ARGS)

docs: install ## Build the documentation as a site with search, into build/site
	@$(PYTHON) scripts/docs

pictures: install ## Regenerate the README's pictures from a real run (root)
	@$(PYTHON) scripts/docs --install
	@$(PYTHON) scripts/pictures

install: ## Install what is missing: Debian packages, .venv, generated code, /usr/local/bin/orc
	@scripts/setup

deb: ## Build the Debian packages, into dist/ (ARGS=--source: from a source package)
	@scripts/deb $(ARGS)

wheel: install ## Build the Python wheel, into dist/
	@.venv/bin/pip wheel --quiet --no-deps --wheel-dir dist .

format: install ## Format the sources
	@.venv/bin/ruff check --fix $(SOURCES)
	@.venv/bin/ruff format $(SOURCES)

clean: ## Remove what was built; a running dev cluster is removed by 'orc dev down'
	@rm -rf .venv build dist *.egg-info orchestrator/pb .mypy_cache .ruff_cache .pytest_cache \
	    .hypothesis .import_linter_cache
	@find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

endif
