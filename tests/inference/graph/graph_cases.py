"""Classifiers to rewrite, their contracts, and what they answer as they are, in float64."""

from __future__ import annotations

from typing import Any

import torch

import deit
from deit.inference.contract import Contract
from deit.models.classifier import head_logits, head_names
from tests.conftest import TINY

PROCESSOR = deit.DeiTImageProcessor(size=16, crop_size=16, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.25, 0.3])
# Class, fields of the configuration.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "two heads": ("DeiTForImageClassificationWithTeacher", {}),
    "one head": ("DeiTForImageClassification", {}),
    "ViT": ("ViTForImageClassification", {}),
    "DeiT III": ("ViTForImageClassification", {"layer_scale_init": 0.1, "pos_embed_prefix": False}),
    "one block": ("DeiTForImageClassificationWithTeacher", {"num_hidden_layers": 1}),
    "no bias": ("DeiTForImageClassification", {"qkv_bias": False}),
    "pruned": ("DeiTForImageClassification", {"pruned_heads": {0: [1], 1: [0, 2]}}),
    "three layers": ("ViTForImageClassification", {"fused_qkv": False}),
    "not square": ("ViTForImageClassification", {"image_size": (16, 24), "patch_size": (4, 8)}),
    "pixels left over": ("ViTForImageClassification", {"image_size": (18, 19)}),
    "gray": ("ViTForImageClassification", {"num_channels": 1}),
    "tanh GELU": ("ViTForImageClassification", {"hidden_act": "gelu_new"}),
    "quick GELU": ("ViTForImageClassification", {"hidden_act": "quick_gelu"}),
    "SiLU": ("ViTForImageClassification", {"hidden_act": "silu"}),
    "ReLU": ("ViTForImageClassification", {"hidden_act": "relu"}),
    "mean of probabilities": ("DeiTForImageClassificationWithTeacher", {"head_average": "probabilities"}),
    "several labels": (
        "DeiTForImageClassificationWithTeacher",
        {"head_average": "probabilities", "problem_type": "multi_label_classification"},
    ),
    "bfloat16": ("DeiTForImageClassificationWithTeacher", {"dtype": "bfloat16"}),
}


def model_of(case: str, redraw: Any, dtype: torch.dtype = torch.float64) -> Any:
    """Builds the model of a case with large random values."""
    name, fields = CASES[case]
    config = (deit.ViTConfig if name.startswith("ViT") else deit.DeiTConfig)(**{**TINY, **fields})
    return redraw(getattr(deit, name)(config)).to(dtype).eval()


def contract_of(model: Any, **fields: Any) -> Contract:
    return Contract(
        **{
            "processor": PROCESSOR,
            "label_names": [str(i) for i in range(model.config.num_labels)],
            "head_names": head_names(model),
            "image_size": model.config.grid_image_size,
            "num_channels": model.config.num_channels,
            **fields,
        }
    )


def pixels_of(model: Any, batch: int = 3, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, model.config.num_channels, *model.config.grid_image_size)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@torch.no_grad()
def answers_of(model: Any, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Returns the logits of each head, from a forward in which every token goes through every block."""
    logits = head_logits(lambda x: model(x, output_hidden_states=True), pixels)  # type: ignore[arg-type]
    return list(logits.values())
