"""Which models and calls are compared: read by PyTorch, which writes the expected numbers, and by Keras."""

from __future__ import annotations

from typing import Any

import numpy as np

TINY: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32,
    "image_size": 16, "patch_size": 4, "encoder_stride": 4, "num_labels": 5,
}  # fmt: skip
BATCH = 3

# Name -> class, fields of the configuration that differ from TINY, arguments of the constructor.
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "model": ("DeiTModel", {}, {"use_mask_token": True}),
    "no_pooler": ("DeiTModel", {}, {"add_pooling_layer": False}),
    "pooler": ("DeiTModel", {"pooler_act": "gelu", "pooler_output_size": 7}, {}),
    "no_bias": ("DeiTModel", {"qkv_bias": False}, {}),
    "epsilon": ("DeiTModel", {"layer_norm_eps": 0.01}, {}),
    "relu": ("DeiTModel", {"hidden_act": "relu"}, {}),
    "prelu": ("DeiTModel", {"hidden_act": "prelu"}, {}),
    "xielu": ("DeiTModel", {"hidden_act": "xielu", "num_hidden_layers": 1}, {}),
    "oblong": ("DeiTModel", {"image_size": (16, 24), "patch_size": (4, 8)}, {}),
    "rest": ("DeiTModel", {"image_size": (18, 19)}, {}),
    "grey": ("DeiTModel", {"num_channels": 1, "num_hidden_layers": 1}, {}),
    "deit3": ("DeiTModel", {"layer_scale_init": 0.1, "pos_embed_prefix": False}, {}),
    "vit3": ("ViTForImageClassification", {"layer_scale_init": 0.1, "pos_embed_prefix": False}, {}),
    "pruned": ("DeiTModel", {"pruned_heads": {0: [1], 1: [0, 3]}}, {}),
    "rates": (
        "DeiTForImageClassification",
        {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2, "drop_path_rate": 0.4},
        {},
    ),
    "classifier": ("DeiTForImageClassification", {}, {}),
    "headless": ("DeiTForImageClassification", {"num_labels": 0}, {}),
    "one_label": ("DeiTForImageClassification", {"num_labels": 1}, {}),
    "regression": ("DeiTForImageClassification", {"problem_type": "regression"}, {}),
    "teacher": ("DeiTForImageClassificationWithTeacher", {}, {}),
    "soft": (
        "DeiTForImageClassificationWithTeacher",
        {"distillation_kind": "soft", "distillation_temperature": 3.0, "distillation_weight": 0.1},
        {},
    ),
    "probabilities": ("DeiTForImageClassificationWithTeacher", {"head_average": "probabilities"}, {}),
    "probabilities_of_many": (
        "DeiTForImageClassificationWithTeacher",
        {"head_average": "probabilities", "problem_type": "multi_label_classification"},
        {},
    ),
    "average_of_numbers": (
        "DeiTForImageClassificationWithTeacher",
        {"head_average": "probabilities", "problem_type": "regression"},
        {},
    ),
    "masked": ("DeiTForMaskedImageModeling", {}, {}),
    "masked_blocks": ("DeiTForMaskedImageModeling", {"image_size": 32}, {}),
    "masked_vit": ("ViTForMaskedImageModeling", {"image_size": 64, "patch_size": 16, "encoder_stride": 16}, {}),
    "vit": ("ViTModel", {}, {"use_mask_token": True}),
    "vit_classifier": ("ViTForImageClassification", {}, {}),
}


def _numbers(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pixels(name: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """Pixels for a model, (B, C, H, W)."""
    fields = {**TINY, **MODELS[name][1]}
    side = fields["image_size"]
    own = (side, side) if isinstance(side, int) else side
    return _numbers(BATCH, fields.get("num_channels", 3), *(size or own), seed=0)


HEADS = np.array([1.0, 0.0, 0.5, 2.0], np.float32)
HEADS_OF_BLOCKS = np.array([[1.0, 0.0, 0.5, 2.0], [0.0, 1.0, 1.0, 0.25]], np.float32)
MASK = np.random.default_rng(2).integers(0, 2, (BATCH, 16)).astype(bool)
CLASSES = np.array([0, 4, 2])

# Name of the call -> model, size of the image, further arguments.
CALLS: dict[str, tuple[str, tuple[int, int] | None, dict[str, Any]]] = {
    **{name: (name, None, {"output_hidden_states": True, "output_attentions": True}) for name in MODELS},
    "heads": ("classifier", None, {"head_mask": HEADS, "output_attentions": True}),
    "heads of blocks": ("model", None, {"head_mask": HEADS_OF_BLOCKS, "output_hidden_states": True}),
    "heads in five dimensions": ("model", None, {"head_mask": _numbers(2, BATCH, 4, 18, 18)}),
    "heads of a pruned model": ("pruned", None, {"head_mask": HEADS, "output_attentions": True}),
    "masked patches": ("model", None, {"bool_masked_pos": MASK}),
    "masked patches of a vit": ("vit", None, {"bool_masked_pos": MASK.astype(np.int64)}),
    "larger": ("model", (24, 24), {"interpolate_pos_encoding": True}),
    "smaller": ("model", (8, 12), {"interpolate_pos_encoding": True}),
    "wider": ("model", (13, 41), {"interpolate_pos_encoding": True}),
    "as trained": ("model", (16, 16), {"interpolate_pos_encoding": True}),
    "oblong, higher": ("oblong", (40, 16), {"interpolate_pos_encoding": True}),
    "deit3, larger": ("deit3", (20, 28), {"interpolate_pos_encoding": True}),
    "reconstruction": ("masked", None, {"bool_masked_pos": MASK}),
    "reconstruction, wider": (
        "masked", (8, 24), {"bool_masked_pos": MASK[:, :12], "interpolate_pos_encoding": True}
    ),
    "nothing masked": ("masked", None, {"bool_masked_pos": np.zeros_like(MASK)}),
    "classes": ("classifier", None, {"labels": CLASSES}),
    "some without a class": ("classifier", None, {"labels": np.array([3, -100, 1])}),
    "many labels": ("vit_classifier", None, {"labels": MASK[:, :5].astype(np.float32)}),
    "a number": ("one_label", None, {"labels": _numbers(BATCH)}),
    "a column of numbers": ("one_label", None, {"labels": _numbers(BATCH, 1)}),
    "numbers": ("regression", None, {"labels": _numbers(BATCH, 5)}),
    "both heads": ("teacher", None, {"labels": np.array([1, -100, 2])}),
    "shares of classes": ("teacher", None, {"labels": np.full((BATCH, 5), 0.2, np.float32)}),
    "hard": ("teacher", None, {"labels": CLASSES, "teacher_logits": _numbers(BATCH, 5)}),
    "soft with teacher": ("soft", None, {"labels": CLASSES, "teacher_logits": _numbers(BATCH, 5)}),
}  # fmt: skip

# Calls whose gradients are compared, of every weight.
GRADIENTS = (
    "model", "deit3", "larger", "heads", "reconstruction", "many labels", "numbers", "hard", "soft with teacher",
)  # fmt: skip

# Compared with transformers itself: model -> side of a block of its masks, type of the mask of the gradients.
MASKED_MODELS = {"masked_blocks": (8, "bool"), "masked_vit": (32, "int64")}

ACTIVATION_INPUTS = np.linspace(-12.0, 12.0, 97, dtype=np.float32)


def fields_of(name: str) -> dict[str, Any]:
    """Fields of the configuration of a model."""
    return {**TINY, **MODELS[name][1]}
