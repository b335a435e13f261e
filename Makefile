# `make demo` and `make test` work on a fresh machine with Python 3.10 or newer: they set up what they need in .venv.
PYTHON ?= python3
VENV ?= .venv
OLDEST_VENV ?= .venv-oldest
BIN = $(VENV)/bin
# Most tests wait for sessions to start: one more at once than there are cores (of the 2 that this was measured on).
JOBS ?= 3
PIP_INSTALL = pip install --quiet --disable-pip-version-check

.PHONY: demo test test-all test-oldest coverage lint typecheck bench clean

# The main job on a local cluster, end to end; its records stay out of the way of clusters that you run.
demo: $(VENV)/.installed
	DASK_CML_DASK_MAGICS__LOCAL=true DASK_CML_DASK_MAGICS__STATE_DIRECTORY=$(CURDIR)/$(VENV)/demo-state \
		$(BIN)/python notebooks/run.py notebooks/quickstart.ipynb

# What shares a cluster runs in one process.
PYTEST = -m pytest -n $(JOBS) --dist loadgroup

# Some minutes; what takes long, and rarely finds anything that the others do not, is left to `make test-all`.
test: $(VENV)/.tests-installed
	$(BIN)/python $(PYTEST) -m "not long" $(ARGS)

test-all: $(VENV)/.tests-installed
	$(BIN)/python $(PYTEST) $(ARGS)

# What the tests cover. It makes them half as slow again, so it is no part of the others.
coverage: $(VENV)/.tests-installed
	$(BIN)/python $(PYTEST) -m "not long" $(ARGS) --cov

# What touches Dask, on the oldest Dask that the package supports.
test-oldest: $(OLDEST_VENV)/.tests-installed
	$(OLDEST_VENV)/bin/python $(PYTEST) -m "dask and not long" $(ARGS)

lint: $(VENV)/.tests-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

typecheck: $(VENV)/.tests-installed
	$(BIN)/mypy

# About ten minutes, on a machine that has nothing else to do. Writes what the README says of it, too.
bench: $(VENV)/.tests-installed
	$(BIN)/python benchmarks/bench.py

clean:
	rm -rf $(VENV) $(OLDEST_VENV) .mypy_cache .pytest_cache .ruff_cache

$(VENV)/bin/python $(OLDEST_VENV)/bin/python:
	$(PYTHON) -m venv $(@D)/..

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/$(PIP_INSTALL) --editable '.[notebooks]'
	touch $@

# Other releases of ipykernel lie beside the installed one, for what a click does while a cell runs.
$(VENV)/.tests-installed: pyproject.toml Makefile | $(VENV)/bin/python
	$(BIN)/$(PIP_INSTALL) --editable '.[test]'
	$(BIN)/$(PIP_INSTALL) --no-deps --upgrade --target $(VENV)/ipykernel-6 'ipykernel==6.*'
	$(BIN)/$(PIP_INSTALL) --no-deps --upgrade --target $(VENV)/ipykernel-7.3 'ipykernel==7.3.*'
	touch $@ $(VENV)/.installed

$(OLDEST_VENV)/.tests-installed: pyproject.toml tests/oldest.txt | $(OLDEST_VENV)/bin/python
	$(OLDEST_VENV)/bin/$(PIP_INSTALL) --constraint tests/oldest.txt --editable '.[test]'
	touch $@
