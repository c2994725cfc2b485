# Two commands do everything from a fresh clone: `make demo` and `make test`.
# PYTHON=python3.12 chooses the interpreter of a new environment, VENV=path where it is made.

PYTHON ?= python3
VENV ?= .venv

.PHONY: demo test lint clean
.DELETE_ON_ERROR: # an environment whose making broke off is no environment

demo: $(VENV)/.music-installed
	$(VENV)/bin/dsmr demo --out demo --force

test: $(VENV)/.dev-installed
	$(VENV)/bin/python -m pytest

lint: $(VENV)/.dev-installed
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

clean:
	rm -rf .venv demo build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find dsmr dsmr_kernels tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.music-installed: EXTRAS = music
$(VENV)/.dev-installed: EXTRAS = music,dev

# setuptools comes first and builds without isolation: an isolated build would fetch whatever version is the newest.
$(VENV)/.%-installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt setuptools
	$(VENV)/bin/python -m pip install --disable-pip-version-check --no-build-isolation -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
