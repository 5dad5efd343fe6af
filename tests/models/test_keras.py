"""Keras on JAX against PyTorch, and what any backend needs to start; what the models do alone is in tests/keras.

TensorFlow and PyTorch have files of their own, which other processes of the suite can take.
"""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.models.keras_contract import RUN, cases, check_contract, run

if find_spec("keras") is None:
    pytest.skip("Keras is not installed", allow_module_level=True)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax"])
def test_the_contract_holds_on(backend, tmp_path_factory, tmp_path):
    check_contract(backend, cases(tmp_path_factory), tmp_path)


def test_importing_the_package_and_the_pytorch_classes_starts_no_keras():
    code = "import sys, deit; deit.DeiTModel, deit.Predictor; print([m for m in sys.modules if m.split('.')[0] in "
    result = run("tensorflow", code + "('keras', 'tensorflow', 'jax')])")
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_a_backend_that_is_not_installed_is_named_each_time_it_is_asked_for(backend):
    code = RUN.split("import pytest")[0].format(hidden=(backend,), arguments=None) + (
        "import deit\nfor _ in range(2):\n    try:\n        deit.TFDeiTModel\n"
        "    except ModuleNotFoundError as error:\n        print(error)\n"
    )
    result = run(backend, code)
    lines = result.stdout.strip().splitlines()
    assert len(lines) == 2, result.stderr
    for line in lines:
        assert f"KERAS_BACKEND={backend}" in line
        assert f'pip install "deit[{backend}]"' in line


def test_without_keras_a_model_says_how_to_install_it():
    code = RUN.split("import pytest")[0].format(hidden=("keras",), arguments=None) + "import deit\ndeit.KerasViTModel"
    last = run("jax", code).stderr.strip().splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: deit.KerasViTModel needs the 'keras' package. Install it with: pip")


def test_a_backend_that_changes_after_the_import_is_refused():
    code = (
        "import os, deit\ndeit.TFDeiTModel\nos.environ['KERAS_BACKEND'] = 'tensorflow'\n"
        "try:\n    deit.TFDeiTModel(deit.DeiTConfig())\nexcept RuntimeError as error:\n    print(error)"
    )
    result = run("jax", code)
    assert result.stdout.startswith("Keras runs on 'jax' in this process, and KERAS_BACKEND asks for 'tensorflow'.")
