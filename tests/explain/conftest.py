"""What the tests of explanations share: models with large weights, and the same ones in transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deit.models.deit import DeiTForImageClassification, DeiTForImageClassificationWithTeacher
from deit.models.vit import ViTForImageClassification

CLASSES = {
    "distilled": DeiTForImageClassificationWithTeacher,
    "deit": DeiTForImageClassification,
    "vit": ViTForImageClassification,
}


@pytest.fixture
def model_of(tiny_config: Any, tiny_vit_config: Any, redraw: Any) -> Callable[..., Any]:
    """Makes a tiny classifier by its kind, a key of `CLASSES`; keywords override fields of its configuration."""

    def make(kind: str, **fields: Any) -> Any:
        config = (tiny_vit_config if kind == "vit" else tiny_config)(**{"num_hidden_layers": 3, **fields})
        return redraw(CLASSES[kind](config)).eval()

    return make


@pytest.fixture
def pixels() -> torch.Tensor:
    """One image of 4 x 4 patches."""
    return torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def theirs(tmp_path: Path) -> Callable[[Any], Any]:
    """Opens a model in transformers, whose eager attention returns its probabilities."""

    def open_in_transformers(model: Any) -> Any:
        import transformers

        model.save_pretrained(tmp_path / "model")
        kind = getattr(transformers, type(model).__name__)
        return kind.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()

    return open_in_transformers
