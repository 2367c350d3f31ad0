# Two commands set everything up: `make demo` and `make test`. Needed: Python >= 3.11 with venv, and make.
# Another interpreter: make test PYTHON=/path/to/python3.12

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The first of these that is 3.11 or newer and can make an environment.
CANDIDATES := python3 python3.13 python3.12 python3.11 python3.14 python
PYTHON ?= $(shell for p in $(CANDIDATES); do \
	if "$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	then echo "$$p"; break; fi; done)

.PHONY: help demo test lint bench clean

help:
	@echo "make demo   install, simulate a small data set of a 68-atom gold cluster, find its atoms (a few minutes)"
	@echo "make test   install and run the tests"
	@echo "make lint   ruff, mypy, import-linter"
	@echo "make bench  the speed and accuracy tables of the README"
	@echo "make clean  remove the environment and what the demo wrote"

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "Python 3.11 or newer with its venv module was not found (looked for: $(CANDIDATES))." >&2; \
		echo "Install it (Debian, Ubuntu: apt-get install python3 python3-venv) or say PYTHON=/path/to/python3." >&2; \
		exit 1; fi
	$(PYTHON) -m venv $(VENV)

# One stamp for each set of packages; made again when the pins change.
$(VENV)/run.stamp: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/test.stamp: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,formats,multislice,denoise]'
	@touch $@

$(VENV)/lint.stamp: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[lint]'
	@touch $@

$(VENV)/bench.stamp: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	@touch $@

demo: $(VENV)/run.stamp
	$(BIN)/spr simulate --out demo/particles --n-images 500 --snr 1 --seed 1 --overwrite
	$(BIN)/spr reconstruct demo/particles/particles.star --element Au --out demo/run
	@echo "The report: $(CURDIR)/demo/run/report.html"

# The report is looked at in a browser where there is one; CI installs it.
BROWSER := $(shell for b in chromium chromium-browser google-chrome chrome; do command -v $$b && break; done)
WITHOUT := $(if $(BROWSER),,--ignore tests/common/report/test_browser.py)

# One thread for each worker, so that the workers do not stand in each other's way.
test: $(VENV)/test.stamp
	@[ -n "$(BROWSER)" ] || echo "No Chromium here: the tests of the report in a browser are left out." >&2
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(WITHOUT) $(PYTEST_ARGUMENTS)

lint: $(VENV)/lint.stamp
	@status=0; for check in "ruff check ." mypy lint-imports; do \
		echo "== $$check"; $(BIN)/$$check || status=1; done; exit $$status

bench: $(VENV)/bench.stamp
	$(BIN)/python tests/benchmarks/run_all.py

clean:
	rm -rf $(VENV) demo
