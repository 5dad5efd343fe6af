"""Keras on TensorFlow against PyTorch's own models: tests/keras in a process of its own."""

from __future__ import annotations

import pytest

from tests.models.keras_contract import cases, check_contract


@pytest.mark.slow
def test_the_contract_holds(tmp_path_factory, tmp_path):
    check_contract("tensorflow", cases(tmp_path_factory), tmp_path)
