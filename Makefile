# SPDX-License-Identifier: EUPL-1.2
# Each target sets itself up: Python 3.11 or later with venv, and make, are all it needs. Nothing asks for root.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
STAMP := $(VENV)/.installed

.PHONY: help setup demo test check bench accuracy fuzz emulated-signer emulated clean
.DEFAULT_GOAL := help

help:            ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 \2/p' $(MAKEFILE_LIST) | expand -t 22

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "evenlane needs Python 3.11 or later: make PYTHON=/path/to/python3.11"; exit 3; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@echo "installing evenlane and what its rooms need into $(VENV) (a minute or two)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

setup: $(STAMP)  ## make .venv with everything a developer needs

demo: $(STAMP)   ## emulate three operators, measure them, show what was found
	@$(BIN)/evenlane demo $(ARGS)

test: $(STAMP)   ## all tests that this machine can run; what it lacks is skipped with the reason
	@$(BIN)/python tests/two_passes.py $(ARGS)

check: $(STAMP)  ## lint, types, layers, generated files, documents
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest -q tests/docs -m 'not packaging'
	@$(BIN)/evenlane dashboards check

bench: $(STAMP)  ## slow simulations and measured figures, as ratios against a peer
	@$(BIN)/python -m pytest -m slow -s --timeout 1800 $(ARGS)

accuracy: $(STAMP)  ## the accuracy study (hours; goes on where it stopped), then its report
	@$(BIN)/evenlane lab accuracy $(ARGS); code=$$?; [ $$code -le 1 ] || exit $$code
	@$(BIN)/evenlane lab accuracy --report

# atheris is no part of the extra `dev`: its wheels exist for some Pythons only, and nothing but this target needs it.
FUZZ_SECONDS ?= 30
fuzz: $(STAMP)   ## every parser of strangers' bytes, guided by coverage, FUZZ_SECONDS each
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check 'atheris>=3,<4' || true
	@if $(BIN)/python -c 'import atheris' 2>/dev/null; then \
	  $(BIN)/python tests/fuzz/run.py --seconds $(FUZZ_SECONDS) $(ARGS); \
	else \
	  echo "atheris cannot be installed for this Python: hypothesis with 20,000 examples a target instead"; \
	  EVENLANE_FUZZ=1 $(BIN)/python -m pytest -q tests/fuzz --timeout 7200 $(ARGS); \
	fi

emulated-signer: $(STAMP)  ## the pure-Python signer under qemu-user: armhf, mipsel, arm64 (docs/footprint.md)
	@$(BIN)/python tests/bench/emulated_signer.py $(ARGS)

emulated: $(STAMP)  ## the router's package under qemu-user: armhf, mipsel, arm64, with memory (docs/footprint.md)
	@$(BIN)/python tests/bench/emulated_probe.py $(ARGS)

clean:           ## remove .venv and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
