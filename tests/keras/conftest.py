"""The contract of the Keras models; tests/models/test_keras.py runs it, in a process of its own for each backend."""

from __future__ import annotations

import gc
import os

import pytest

# The ordinary collection leaves these files alone: TensorFlow and torchvision in one process abort.
collect_ignore_glob = [] if "DEIT_KERAS_CASES" in os.environ else ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    # TensorFlow's tensors under NumPy 2, wherever Keras makes an array of one.
    config.addinivalue_line("filterwarnings", "ignore:__array__ implementation doesn't accept:DeprecationWarning")


def pytest_runtest_setup() -> None:
    # Keras collects garbage for each matrix that it quantizes, and would look at all that was ever made.
    gc.freeze()
