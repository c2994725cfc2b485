# Two commands do everything from a fresh clone: `make demo` and `make test`.
# PYTHON=python3.12 chooses the interpreter of a new environment, VENV=path where it is made, CXX=clang++ the compiler.

PYTHON ?= python3
VENV ?= .venv
MAKEFLAGS += --no-print-directory

.PHONY: demo test lint build native driver clean
.PHONY: check-native check-driver check-isas check-guards check-instructions check-sanitizers check-wheel check-neon
.PHONY: count-instructions
.DELETE_ON_ERROR: # an environment whose making broke off is no environment

demo: $(VENV)/.music-installed native
	$(VENV)/bin/dsmr demo --out demo --force

test: $(VENV)/.dev-installed native
	$(VENV)/bin/python -m pytest

lint: $(VENV)/.dev-installed
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

# The native CPU kernels, beside the Python modules that load them.
build: $(VENV)/.build-installed
	$(CONFIGURE)
	$(BUILD)

# The same for those who only want them if they can be had: a missing compiler is told, a failing compilation an error.
native: $(VENV)/.build-installed
	@if $(CONFIGURE); then $(BUILD); else echo "*** No native CPU kernels: see above. Going on without." >&2; fi

CONFIGURE = $(VENV)/bin/cmake -S . -B build --log-level=NOTICE
BUILD = $(VENV)/bin/cmake --build build --parallel $(JOBS)
JOBS = $(shell getconf _NPROCESSORS_ONLN)
TOOLS = PATH="$(abspath $(VENV))/bin:$$PATH"

# What CI asks of the native code. CHECKS is where builds of other kinds go.
CHECKS ?= build/checks
DRIVER = build/tests/native/driver

check-native: check-driver check-isas check-guards check-instructions check-sanitizers check-wheel

driver: $(VENV)/.build-installed
	$(CONFIGURE) -DDSMR_TESTS=ON
	$(BUILD)

# The kernels against the definition; and no instruction set's functions in place of another's.
check-driver: driver
	$(TOOLS) ctest --test-dir build --output-on-failure

# The tests of native code on every instruction set of this machine; `make test` runs them on the best one.
check-isas: $(VENV)/.dev-installed build
	for isa in $$($(VENV)/bin/python -c "$(OTHER_ISAS)"); do echo "on $$isa:"; \
		DSMR_KERNELS_ISA=$$isa $(VENV)/bin/python -m pytest -q $(NATIVE_TESTS) || exit; done
NATIVE_TESTS = tests/dsmr_kernels/test_laws.py tests/dsmr/model/test_native.py -k "cpu or native"
OTHER_ISAS = from dsmr_kernels.backends.cpu import library; print(*library.load().available[1:])

# The native step, with rings and weights against pages that must not be touched.
check-guards: $(VENV)/.dev-installed build
	$(VENV)/bin/python -m pytest -q -p tests.guarded tests/dsmr/model/test_native.py

# Instructions against bench/compiled/instructions.json, which count-instructions writes anew.
check-instructions: driver
	@if command -v valgrind >/dev/null; then $(PYTHON) bench/compiled/instructions.py check $(DRIVER); \
	else echo "*** NOT CHECKED: without valgrind the kernels' instructions cannot be counted" >&2; fi

count-instructions: driver
	$(PYTHON) bench/compiled/instructions.py update $(DRIVER)

check-sanitizers: $(VENV)/.dev-installed
	$(TOOLS) tests/native/sanitizers.sh $(CHECKS)/sanitizers

check-wheel: $(VENV)/.dev-installed
	$(TOOLS) tests/native/wheel.sh $(CHECKS)/wheel

check-neon: $(VENV)/.build-installed
	$(TOOLS) tests/native/neon.sh $(CHECKS)/neon

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
	$(VENV)/bin/python -m pip install --disable-pip-version-check --no-build-isolation \
		--config-settings wheel.cmake=false --config-settings editable.mode=inplace -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
