"""A model so small that Keras builds, trains and saves it in no time, and a batch for it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import deit
from deit.keras.deit import TFDeiTForImageClassification

BACKEND = keras.backend.backend()
EAGER = BACKEND == "tensorflow"
SIZES: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 16, "patch_size": 8, "encoder_stride": 8, "num_labels": 5, "initializer_range": 0.2,
}  # fmt: skip
# Where JAX would compile many small operations once, to run code that is the same on the other backends.
NOT_ON_JAX = pytest.mark.skipif(BACKEND == "jax", reason="the same code as on the others, and slower to compile")
X = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype("float32")
Y = np.array([0, 1, 2, 3])


def tiny(kind: Any = TFDeiTForImageClassification, *, dtype: Any = None, **fields: Any) -> Any:
    return kind(deit.DeiTConfig(**{**SIZES, **fields}), dtype=dtype)
