# Two commands do everything from a fresh clone: `make demo` and `make test`.
# PYTHON=python3.12 chooses the interpreter of a new environment, VENV=path where it is made, CXX=clang++ the compiler.

PYTHON ?= python3
VENV ?= .venv
MAKEFLAGS += --no-print-directory

.PHONY: demo test lint build native clean
.DELETE_ON_ERROR: # an environment whose making broke off is no environment

demo: $(VENV)/.music-installed native
	$(VENV)/bin/dsmr demo --out demo --force

test: $(VENV)/.dev-installed native
	$(VENV)/bin/python -m pytest

lint: $(VENV)/.dev-installed
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

# The native CPU kernels, beside the Python modules that load them.
build: $(VENV)/.build-installed
	$(CONFIGURE)
	$(BUILD)

# The same for those who only want them if they can be had: a missing compiler is told, a failing compilation an error.
native: $(VENV)/.build-installed
	@if $(CONFIGURE); then $(BUILD); else echo "*** No native CPU kernels: see above. Going on without." >&2; fi

CONFIGURE = $(VENV)/bin/cmake -S . -B build --log-level=NOTICE
BUILD = $(VENV)/bin/cmake --build build --parallel $(shell getconf _NPROCESSORS_ONLN)

clean:
	rm -rf .venv demo build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find dsmr dsmr_kernels tests -name __pycache__ -type d -prune -exec rm -rf {} +
	find dsmr dsmr_kernels \( -name 'lib*.so' -o -name 'lib*.dylib' \) -delete

$(VENV)/.music-installed: EXTRAS = music
$(VENV)/.dev-installed: EXTRAS = music,dev

# What builds comes first and builds without isolation: an isolated build would fetch whatever version is the newest.
# The installation leaves the native code to `make build`, which compiles anew only what has changed.
$(VENV)/.build-installed: $(VENV)/bin/python constraints.txt
	$(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt scikit-build-core cmake
	touch $@

$(VENV)/.%-installed: $(VENV)/.build-installed pyproject.toml
	$(VENV)/bin/python -m pip install --disable-pip-version-check --no-build-isolation -C wheel.cmake=false \
		-c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
