# Everything a fresh clone needs: Python 3.11 or newer, and make. The environment goes into .venv, from uv.lock.
#
#   make demo     a whole migration under live traffic        DEMO_ARGS="--quick" and others: see dualwire demo --help
#   make test     the tests, as many at a time as there are cores (four at most), each with servers of its own
#                                                             PYTEST_ARGS="tests/wire -x", PARALLEL= for one at a time
#   make lint     ruff, mypy --strict, the import linter
#   make docs     docs/rewriting.md, from the planner itself
#   make bench    the measurements, of the compiled build where there is a C compiler; PURE=1 takes the sources
#
#   make bench-rewrite    writes, reads and plans in the middle of a migration, beside triggers
#   make conformance      test suites of others, through a sidecar     SUITE=asyncpg CONFORMANCE_ARGS="--replicas 1"
#   make compile          extension modules beside the sources: everything above then runs them
#   make clean-compiled   removes them
#   make test-compiled    the tests of the hot path against a compiled wheel     TESTS="tests/wire tests/session"

SHELL := /bin/sh
VENV := .venv
DEMO_ARGS ?=
PYTEST_ARGS ?=
PARALLEL ?= -n auto --maxprocesses=4 --dist=loadfile
PURE ?=
SUITE ?=
CONFORMANCE_ARGS ?=
TESTS ?= tests/build tests/wire tests/session tests/server tests/integration

# The first Python that is new enough, unless PYTHON names one.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)

.PHONY: demo test lint docs bench bench-rewrite conformance install clean compile clean-compiled test-compiled

# The compiled wheel, an environment that has it, and a copy of the tests: sources never meet compiled modules there.
COMPILED := build/compiled
SOURCES := $(shell find proxy migrator -name '*.py')

demo: $(VENV)/.demo
	$(VENV)/bin/dualwire demo $(DEMO_ARGS)

test: $(VENV)/.test
	$(VENV)/bin/pytest $(PARALLEL) $(PYTEST_ARGS)

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

docs: $(VENV)/.test
	$(VENV)/bin/python -m tests.docs

bench: $(VENV)/.test
	@if [ -z "$(PURE)" ] && $(MAKE) --no-print-directory $(COMPILED)/tree; then \
		cd $(COMPILED)/tree && ../venv/bin/python -m pytest -m bench -s --timeout=0 $(PYTEST_ARGS); \
	else \
		echo "no compiled wheel: measuring the sources of this tree" >&2; \
		$(VENV)/bin/python -m pytest -m bench -s --timeout=0 $(PYTEST_ARGS); \
	fi

bench-rewrite:
	@$(MAKE) --no-print-directory bench \
		PYTEST_ARGS="tests/bench/test_rewrite_plans.py tests/bench/test_rewrite_writes.py $(PYTEST_ARGS)"

# Without SUITE all of them; docs/conformance.md says what each needs.
conformance: $(VENV)/.test
	$(VENV)/bin/python -m tests.conformance $(SUITE) $(CONFORMANCE_ARGS)

install: $(VENV)/.test

compile: $(VENV)/bin/python clean-compiled
	rm -rf build/place
	DUALWIRE_COMPILE=require $(VENV)/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps \
		--wheel-dir build/place .
	$(VENV)/bin/python -m zipfile -e build/place/dualwire-*.whl build/place/files
	cd build/place/files && tar cf ../compiled.tar $$(find proxy -name '*.so' -o -name compiled.stamp)
	tar xf build/place/compiled.tar
	rm -rf build/place

clean-compiled:
	find proxy -name '*.so' -exec rm -f {} +
	rm -f proxy/compiled.stamp

test-compiled: $(COMPILED)/tree
	cd $(COMPILED)/tree && DUALWIRE_TEST_COMPILED=1 ../venv/bin/python -m pytest $(TESTS) $(PYTEST_ARGS)

# The other packages are those of the development environment; its editable install of this one is not seen.
$(COMPILED)/venv: $(VENV)/.test $(SOURCES) pyproject.toml
	rm -rf $(COMPILED)
	DUALWIRE_COMPILE=require $(VENV)/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps \
		--wheel-dir $(COMPILED) .
	$(VENV)/bin/python -m venv --without-pip $(COMPILED)/venv
	$(VENV)/bin/python -m pip --python $(COMPILED)/venv/bin/python install --quiet --disable-pip-version-check \
		--no-deps --no-index $(COMPILED)/dualwire-*.whl
	$(VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$(echo $(COMPILED)/venv/lib/python*/site-packages)/development.pth
	@touch $@

.PHONY: $(COMPILED)/tree
$(COMPILED)/tree: $(COMPILED)/venv
	rm -rf $@
	mkdir -p $@
	cp -R tests config pyproject.toml $@

clean: clean-compiled
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist

$(VENV)/bin/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "No Python 3.11 or newer was found: install one, or name it: make PYTHON=/path/to/python3.11" >&2; \
		exit 1; \
	fi
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make environments: install its venv package (Debian: apt install python3-venv)" >&2; \
		exit 1; \
	}
	"$(PYTHON)" -m venv $(VENV)

# uv installs exactly what uv.lock says, with hashes. Where uv cannot be had, pip takes the newest that pyproject.toml
# allows. --inexact keeps what the other target has installed.
$(VENV)/.demo $(VENV)/.test: $(VENV)/.%: $(VENV)/bin/python pyproject.toml uv.lock
	@export DUALWIRE_COMPILE=never; \
	if $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv \
		&& UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=$(VENV) \
			$(VENV)/bin/uv sync --quiet --locked --inexact --python $(VENV)/bin/python --extra $*; then :; \
	else \
		echo "uv could not install from uv.lock: taking pip and the newest versions allowed" >&2; \
		$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'; \
	fi
	@touch $@
