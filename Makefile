# `make demo` and `make test` need Python 3.11 or newer and pip; they do all the set-up themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests at a time; each computes on one thread. `make test JOBS=0 ARGS=tests/core` runs some in one process.
JOBS ?= 2

.PHONY: demo test check format clean

demo: $(VENV)/.demo
	rm -rf build/demo
	$(BIN)/deit demo --out build/demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# A stamp for each set of dependencies: a second run installs nothing unless pyproject.toml changed.
$(VENV)/.%: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "deit needs Python 3.11 or newer; run: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
