# One command each. Needs Python 3.11 or newer, git, make and a C compiler; everything else goes into .venv.

.DEFAULT_GOAL := help
.PHONY: help setup repro test lint clean
.DELETE_ON_ERROR:

VENV := .venv
# The first Python that is new enough; PYTHON=... names another.
CANDIDATES := python3 python3.13 python3.12 python3.11 python
PYTHON ?= $(shell for p in $(CANDIDATES); do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

# dvc.yaml says `python`: this one. Nothing reports usage to its makers, nothing waits for a network.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export DVC_NO_ANALYTICS := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export HF_HUB_DISABLE_TELEMETRY := 1

# uv does not read the settings of pip; these are the ones that matter for reaching packages.
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
ifdef PIP_CERT
export SSL_CERT_FILE ?= $(PIP_CERT)
endif

# uv leaves compiling to the first import of each process, which costs seconds where none may be written.
INSTALL = $(VENV)/bin/uv pip install --quiet --compile-bytecode --python $(VENV)/bin/python --constraints constraints.txt

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.installed  ## make .venv, install everything, choose how DVC links files

repro: setup  ## run the pipeline, or what has changed of it (params.yaml, dvc.yaml)
	@python -m stages.inputs  # what DVC would stumble over without saying what it is
	dvc repro

test: setup  ## run the tests, a file at a time on each core
	pytest --numprocesses auto --maxprocesses 8 --dist loadfile

lint: $(VENV)/.installed-dev  ## check style and types
	ruff check .
	ruff format --check .
	mypy

clean:  ## remove .venv and all caches; data and the DVC cache stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(VENV)/bin/uv:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found ($(CANDIDATES)); install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet uv

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/uv
	$(INSTALL) --editable '.[test]'
	$(VENV)/bin/python -m pipeline.links
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) --editable '.[dev]'
	@touch $@
