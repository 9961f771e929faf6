# vision_lang. A machine needs Python 3.11 or later and make, nothing else: `make train` and
# `make test` make their environment first, once, and again only when the requirements change.

PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/diffusion.py
ARGS ?=

# `make setup LOCKED=no` takes the ranges of requirements.txt although a lock matches this machine.
LOCKED ?= yes

# `make setup ACCELERATOR=cuda13` (or cuda12, tpu) adds what JAX needs for it, at the same versions.
# It is remembered in the environment: a plain `make train` afterwards keeps it, ACCELERATOR=cpu ends it.
ACCELERATOR := $(shell cat $(VENV)/accelerator 2>/dev/null)
ifneq ($(filter-out cpu cuda12 cuda13 tpu,$(ACCELERATOR)),)
$(error ACCELERATOR=$(ACCELERATOR) is not known: use cpu, cuda12, cuda13 or tpu)
endif

BIN := $(VENV)/bin
PIP_INSTALL := -m pip install --disable-pip-version-check --no-input
READY := $(VENV)/.ready$(ACCELERATOR:%=-%)
REQUIREMENTS := requirements.txt requirements/dev.txt $(wildcard requirements/lock-*.txt)
PARITY := .venv-parity
LOCKING := .venv-lock

# The name of a lock: what the exact versions depend on. `make lock` and `make setup` both use it.
PLATFORM := import platform, sys; \
	print(f"py3.{sys.version_info.minor}-{sys.platform}-{platform.machine()}".lower())

.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow test-parity lint format papers tensorboard lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(READY)  ## the environment: .venv with all dependencies (options: PYTHON=, ACCELERATOR=cuda13)
	@$(BIN)/python -c 'import sys; from importlib.metadata import version; \
	print("$(VENV) is ready: Python", sys.version.split()[0] + ", jax", version("jax"))'

# A mark written last, so that a set-up that was interrupted starts again from nothing.
$(READY): $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "vision_lang needs Python 3.11 or later, which '$(PYTHON)' is not:" \
	    "name another one, as in 'make setup PYTHON=python3.12'." >&2; exit 1; }
	@echo "Setting up $(VENV): one to four minutes, this once."
	@$(PYTHON) -m venv --clear $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed: on Debian and Ubuntu, install the package python3-venv." >&2; \
	  exit 1; }
	@lock=requirements/lock-$$($(BIN)/python -c '$(PLATFORM)').txt; \
	if [ "$(LOCKED)" != yes ]; then \
	  echo "Installing within the ranges of requirements.txt, as LOCKED=$(LOCKED) asks."; \
	  wanted=requirements/dev.txt; \
	elif [ -f $$lock ]; then \
	  echo "Installing the tested versions of $$lock."; wanted=$$lock; \
	else \
	  echo "There is no $$lock: installing within the ranges of requirements.txt," \
	    "versions that may not have been tested together."; \
	  wanted=requirements/dev.txt; \
	fi; \
	$(BIN)/python $(PIP_INSTALL) -r $$wanted $(if $(ACCELERATOR),"jax[$(ACCELERATOR)]")
	@echo "$(ACCELERATOR)" > $(VENV)/accelerator
	@touch $@

# glibc then asks for large pages where it maps memory: a step's 200 MB of temporaries, which XLA
# allocates anew each time, take a thousand faults instead of fifty thousand.
train: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
train: $(READY)  ## train the default config (options: CONFIG=configs/diffusion.py:tiny=true, ARGS=...)
	$(BIN)/python -m vision_lang.main --config=$(CONFIG) $(ARGS)

test: $(READY)  ## the tests (option: ARGS="-k name")
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-slow: $(READY)  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow $(ARGS)

test-parity: $(PARITY)/.ready-parity  ## comparisons with the reference libraries, in their own environment
	$(PARITY)/bin/python -m pytest -m parity $(ARGS)

$(PARITY)/.ready-parity: requirements/parity.txt $(REQUIREMENTS)
	$(MAKE) setup VENV=$(PARITY) ACCELERATOR=
	$(PARITY)/bin/python $(PIP_INSTALL) -r requirements/parity.txt
	# Alone: it wants a torchvision, which the tests do without, and which has to fit torch's build.
	$(PARITY)/bin/python $(PIP_INSTALL) --no-deps torch-fidelity==0.4.0
	@touch $@

lint: $(READY)  ## ruff (rules and format) and mypy
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy

format: $(READY)  ## let ruff mend what it can
	$(BIN)/python -m ruff check --fix
	$(BIN)/python -m ruff format

papers: $(READY)  ## every table and figure of the studies again, from their committed records
	$(BIN)/python -m experiments.papers

tensorboard: $(READY)  ## compare the runs in a browser
	$(BIN)/python -m tensorboard.main --logdir=runs $(ARGS)

# The ranges are installed afresh and the tests decide: a lock holds versions that passed them.
lock:  ## write the lock for this Python and platform (option: PYTHON=python3.12)
	rm -rf $(LOCKING)
	$(MAKE) setup VENV=$(LOCKING) LOCKED=no ACCELERATOR=
	$(LOCKING)/bin/python -m pip check
	$(LOCKING)/bin/python -m pytest
	@echo "# Versions that passed 'make test' together: written by 'make lock', not by hand." \
	  > $(LOCKING)/lock.txt
	$(LOCKING)/bin/python -m pip freeze >> $(LOCKING)/lock.txt
	mv $(LOCKING)/lock.txt requirements/lock-$$($(LOCKING)/bin/python -c '$(PLATFORM)').txt
	rm -rf $(LOCKING)

clean:  ## remove environments and caches (runs and data stay)
	rm -rf $(VENV) $(PARITY) $(LOCKING) .cache .pytest_cache .ruff_cache .mypy_cache
