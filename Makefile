# Everything a fresh clone needs: Python 3.11 or newer, and make. The environment goes into .venv, from uv.lock.
#
#   make demo     a whole migration under live traffic        DEMO_ARGS="--quick" and others: see dualwire demo --help
#   make test     the tests                                   PYTEST_ARGS="tests/wire -x"
#   make lint     ruff, mypy --strict, the import linter
#   make bench    the measurements

SHELL := /bin/sh
VENV := .venv
DEMO_ARGS ?=
PYTEST_ARGS ?=

# The first Python that is new enough, unless PYTHON names one.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)

.PHONY: demo test lint bench install clean

demo: $(VENV)/.demo
	$(VENV)/bin/dualwire demo $(DEMO_ARGS)

test: $(VENV)/.test
	$(VENV)/bin/pytest $(PYTEST_ARGS)

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(VENV)/.test
	$(VENV)/bin/pytest -m bench -s --timeout=0 $(PYTEST_ARGS)

install: $(VENV)/.test

clean:
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
	@if $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv \
		&& UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=$(VENV) \
			$(VENV)/bin/uv sync --quiet --locked --inexact --python $(VENV)/bin/python --extra $*; then :; \
	else \
		echo "uv could not install from uv.lock: taking pip and the newest versions allowed" >&2; \
		$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'; \
	fi
	@touch $@
