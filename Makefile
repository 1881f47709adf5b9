# `make` lists what there is. Needs make, git and Python 3.11 or newer; everything else is installed into .venv.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules
unexport MAKEFLAGS

# The first that runs and is new enough; `make PYTHON=/path/to/python test` takes another.
PYTHON ?= $(shell for each in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$each -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$each && break; \
	done; true)
# Most tests wait as long as they work: one process more than the two cores that CI has.
WORKERS ?= 3

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt
DECLARED := pyproject.toml constraints.txt
# Official clients that cannot be together in one environment, or are none of Python's: each has its own.
CLIENTS := .venv-clients
CLIENT_PINS := tests/clients/python
NODE_APP := tests/clients/node

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

# --- for users -------------------------------------------------------------------------------------------

DEMO_PROMPT := a red fox in the snow
DEMO_PICTURE := demo/red-fox.png

.PHONY: demo
demo: $(VENV)/.installed ## make a picture without an account, by the built-in emulator
	@echo '$$ imagen generate "$(DEMO_PROMPT)" -o $(DEMO_PICTURE)'
	@env -u REPLICATE_API_TOKEN IMAGEN_DATA_DIR=demo $(BIN)/imagen generate "$(DEMO_PROMPT)" \
		--backend emulator --output $(DEMO_PICTURE) --force </dev/null
	@echo
	@echo 'The picture is $(DEMO_PICTURE). It is practice: painted on this machine, free, no model was run.'
	@echo 'For a real one, with an account at Replicate:'
	@echo '    export REPLICATE_API_TOKEN=r8_...'
	@echo '    $(BIN)/imagen generate "$(DEMO_PROMPT)"'

# --- for those who change imagen --------------------------------------------------------------------------

.PHONY: test
test: $(VENV)/.installed-test $(CLIENTS)/.installed ## run every test
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)

.PHONY: check
check: $(VENV)/.installed-check ## format, lint, types, layers, architecture and docs: what CI runs before the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup tests/architecture tests/docs

.PHONY: format
format: $(VENV)/.installed-check ## format the code and mend what the linter can mend
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

.PHONY: bench
bench: $(VENV)/.installed ## measure what imagen adds to a prediction, as a library and as a gateway, how its limiter learns and keeps to it
	@$(BIN)/python bench/overhead.py
	@echo
	@$(BIN)/python bench/durable.py
	@echo
	@$(BIN)/python bench/gateway.py
	@echo
	@$(BIN)/python bench/pictures.py
	@echo
	@$(BIN)/python bench/watcher.py
	@echo
	@$(BIN)/python bench/limits.py
	@echo
	@$(BIN)/python bench/makespan.py

.PHONY: soak
soak: $(VENV)/.installed ## kill a gateway a thousand times while it works off batches, and count what is left
	@$(BIN)/python bench/soak.py $(ARGS)

.PHONY: docs
docs: $(VENV)/.installed-test ## write the generated pages of docs again
	$(BIN)/python docs/generate.py

.PHONY: constraints
constraints: ## pin the newest versions that pyproject.toml allows; then run check and test
	@$(require-python)
	rm -rf build/venv
	$(PYTHON) -m venv build/venv
	build/venv/bin/python -m pip install --quiet --upgrade pip
	build/venv/bin/python -m pip install --quiet --editable . --group test --group check
	build/venv/bin/python -m pip freeze --all --exclude-editable | grep -E '^[A-Za-z0-9._-]+==' > constraints.new
	mv constraints.new constraints.txt
	rm -rf build/venv

.PHONY: clean
clean: ## remove what the other targets made
	rm -rf $(VENV) $(CLIENTS) $(NODE_APP)/node_modules demo dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests docs -name __pycache__ -prune -exec rm -rf {} +

# --- the virtual environment: made once, renewed when pyproject.toml or constraints.txt change --------------

define require-python
[ -n "$(PYTHON)" ] || { \
	echo 'imagen needs Python 3.11 or newer, and none was found on the PATH ($(shell python3 --version 2>/dev/null || echo no python3 at all)).' >&2; \
	echo 'Install one, or name it: make PYTHON=/path/to/python3.11 demo' >&2; exit 1; }; \
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo 'imagen needs Python 3.11 or newer, and $(PYTHON) is not.' >&2; exit 1; }
endef

$(BIN)/python:
	@$(require-python)
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo 'The module venv is missing; on Debian and Ubuntu the package python3-venv brings it.' >&2; exit 1; }

$(VENV)/.installed: $(DECLARED) | $(BIN)/python
	@echo 'Installing imagen into $(VENV) ...'
	@$(INSTALL) --editable .
	@touch $@

# Dependency groups need pip 25.1.
$(VENV)/.installed-test: $(VENV)/.installed
	@echo 'Installing what the tests need ...'
	@$(INSTALL) --upgrade pip
	@$(INSTALL) --group test
	@touch $@

$(VENV)/.installed-check: $(VENV)/.installed-test
	@echo 'Installing what the checks need ...'
	@$(INSTALL) --group check
	@touch $@

# --- the official clients, to test with -------------------------------------------------------------------

.PHONY: clients
clients: $(CLIENTS)/.installed ## install the official clients that the tests speak with

.PHONY: conformance
conformance: $(VENV)/.installed-test $(CLIENTS)/conformance/.installed ## run the beta client's own tests: make conformance CHECKOUT=/path/to/replicate-python-beta
	@[ -n "$(CHECKOUT)" ] || { echo 'Say where the checkout is: make conformance CHECKOUT=/path/to/replicate-python-beta' >&2; exit 1; }
	@$(BIN)/python bench/conformance.py $(CHECKOUT) $(ARGS)

$(CLIENTS)/.installed: $(CLIENTS)/replicate-1/.installed $(CLIENTS)/replicate-2/.installed \
		$(CLIENTS)/openai/.installed $(CLIENTS)/node/.modules
	@touch $@

# A folder with its own interpreter, filled by the pip of $(VENV); the pins are whole, so nothing else is looked for.
$(CLIENTS)/%/.installed: $(CLIENT_PINS)/%.txt | $(VENV)/.installed-test
	@echo 'Installing the client $* into $(CLIENTS)/$* ...'
	@rm -rf $(CLIENTS)/$*
	@$(BIN)/python -m venv --without-pip $(CLIENTS)/$*
	@$(PIP) --python $(CLIENTS)/$*/bin/python install --quiet --no-deps --requirement $<
	@$(PIP) --python $(CLIENTS)/$*/bin/python check >/dev/null
	@touch $@

$(CLIENTS)/node/.modules: $(NODE_APP)/package-lock.json $(CLIENTS)/node/.installed
	@echo 'Installing the clients for Node into $(NODE_APP)/node_modules ...'
	@cd $(NODE_APP) && PATH="$(CURDIR)/$(CLIENTS)/node/bin:$$PATH" npm ci --no-audit --no-fund --loglevel=error
	@touch $@
