# `make demo` and `make test` need Python 3.11 or newer and pip; they do all the set-up themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests at a time; each computes on one thread. `make test JOBS=0 ARGS=tests/core` runs some in one process.
JOBS ?= 2

.PHONY: demo test test-lowest check docs fuzz release-check format python clean

demo: $(VENV)/.demo
	rm -rf build/demo
	$(BIN)/deit demo --out build/demo

# Tests that load OpenVINO, ONNX Runtime and NNCF have processes of their own: in processes that had also run most of the
# other tests, some crashed (SIGSEGV) when they started another program.
ENGINE_TESTS := tests/test_docs_pages.py tests/inference tests/export tests/test_inference_benchmark.py
PYTEST = $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0
test: $(VENV)/.dev
	$(PYTEST) $(if $(ARGS),$(ARGS),$(addprefix --ignore=,$(ENGINE_TESTS)))
	$(if $(ARGS),,$(PYTEST) $(ENGINE_TESTS))

# Some of the tests, of every part, with the lowest version of each dependency that pyproject.toml allows, in an
# environment of its own. The first of them checks that these are the versions installed. trackio is not among them: it
# asks for a newer huggingface_hub than the rest.
LOWEST ?= .venv-lowest
LOWEST_EXTRAS := dev docs telemetry wandb ray s3
LOWEST_TESTS := tests/lowest_versions.py tests/core $(addprefix tests/,$(addsuffix .py,\
	data/test_augment data/test_listings data/test_shards data/test_stores data/test_tables \
	models/test_deit models/test_timm_models models/test_weights_of_training_scripts parity/test_models \
	train/test_recipes train/test_state train/test_step train/test_yaml_files \
	evaluate/test_report inference/test_predictor cli/test_classify cli/test_train \
	serve/test_classify_route serve/test_metrics serve/test_tracing client/test_client_and_server \
	inference/test_written_files train/test_training_log bulk/test_on_ray)) \
	"tests/inference/engines/test_engines.py::test_every_engine_answers_as_transformers_does" \
	"tests/export/test_exporting.py::test_one_folder_takes_every_format_of_a_model_and_describes_them" \
	"tests/export/test_quantize.py::test_a_slower_model_is_refused_unless_that_is_allowed" \
	"tests/models/test_keras.py::test_the_contract_holds_on[jax]"
test-lowest: $(LOWEST)/.lowest
	$(LOWEST)/bin/python -m pytest --numprocesses $(JOBS) --dist loadfile --max-worker-restart 0 $(ARGS) $(LOWEST_TESTS)

# uv alone resolves to the lowest versions; it is needed here and nowhere else. Click and pyparsing as typer 0.16
# and matplotlib 3.10 knew them: today's warn of what those import, and warnings are errors. From nothing each time,
# since an install keeps versions that are high enough.
$(LOWEST)/.lowest: pyproject.toml | python
	rm -rf $(LOWEST)
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.9"
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct \
		--requirement pyproject.toml $(addprefix --extra ,$(LOWEST_EXTRAS)) "click==8.2.1" "pyparsing==3.2.5" --editable .
	touch $@

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site in build/site, from docs/ and the docstrings; open build/site/index.html. Warnings are errors (`strict` in
# mkdocs.yml; --quiet would hide and pass them), and so is a page that loads anything from another site. The variable
# silences an advertisement.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	! grep -rnoE '<(script|link|img|iframe)[^>]* (src|href)="?(https?:)?//[^" >]*' build/site

# Random inputs for everything that is read, MINUTES for each target, two at a time; `ARGS=images` for one of them.
MINUTES ?= 10
fuzz: $(VENV)/.fuzz
	$(BIN)/python -m tests.fuzz.run --minutes $(MINUTES) $(ARGS)

# What can be checked of a release without a network, once its tools are installed: wheel and sdist with what is in them, the
# wheel as it is installed, the list of what it needs (SBOM), and the lowest versions against known holes.
RELEASE := build/release
release-check: $(VENV)/.dev $(VENV)/.release
	rm -rf $(RELEASE)
	$(BIN)/python -m build --no-isolation --outdir $(RELEASE) .
	$(BIN)/twine check --strict $(RELEASE)/*
	$(BIN)/python -m tests.release.contents $(RELEASE)
	$(BIN)/python -m pip install --quiet --no-deps --no-index --target $(RELEASE)/installed $(RELEASE)/*.whl
	cd $(RELEASE) && PYTHONPATH=installed $(abspath $(BIN))/python -m deit --version
	rm -rf $(RELEASE)/installed
	$(BIN)/python -m tests.release.sbom $(RELEASE)/deit.cdx.json
	$(BIN)/python -m pytest tests/test_dependencies.py tests/release

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# A stamp for each set of dependencies: a second run installs nothing unless pyproject.toml changed.
$(VENV)/.%: pyproject.toml | python
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	touch $@

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "deit needs Python 3.11 or newer; run: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }

clean:
	rm -rf $(VENV) $(LOWEST) build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
