"""Lists the recipes of DeiT III (arXiv 2204.07118): ImageNet-1k, fine-tuning, ImageNet-21k."""

from __future__ import annotations

from typing import Any

from deit.train.recipes.named_recipe import NOT_PUBLISHED, NamedRecipe, recipe_of

_SOURCE = "README_revenge.md of facebookresearch/deit (DeiT III, arXiv 2204.07118)"
_ORIGINAL = {"schedule.updates": "original"}

_SIMPLE_VIEWS: dict[str, Any] = {
    "augment.rand_augment": "",
    "augment.three_augment": True,
    "augment.color_jitter": 0.3,
    "augment.erase_rate": 0.0,
}
# Both learning rates are published for 2048 images. Scaling them with other batch sizes is our choice.
# `clip_grad`: apex's FusedLAMB clips at 1 by default; see `build_optimizer`.
_LAMB: dict[str, Any] = {
    "batch_size": 2048,
    "optimizer.name": "lamb",
    "optimizer.reference_batch_size": 2048,
    "optimizer.clip_grad": 1.0,
    "drop_path_shape": "constant",
    "crop_ratio": 1.0,
}
_PRE_TRAINING: dict[str, Any] = {
    **_LAMB,
    **_SIMPLE_VIEWS,
    "schedule.epochs": 800,
    "loss": "bce",
    "label_smoothing": 0.0,
    "augment.num_repeats": 3,
}
_FINE_TUNING: dict[str, Any] = {
    "batch_size": 512,
    "optimizer.lr": 1e-5,
    "optimizer.reference_batch_size": 512,
    "optimizer.weight_decay": 0.1,
    "schedule.epochs": 20,
    "augment.erase_rate": 0.0,
    "drop_path_shape": "constant",
    "crop_ratio": 1.0,
}
_IMAGENET_21K: dict[str, Any] = {
    **_LAMB,
    **_SIMPLE_VIEWS,
    "optimizer.lr": 1e-3,
    "optimizer.weight_decay": 0.02,
    "augment.crop": "simple",
    "augment.mixup_alpha": 0.0,
}
_LAMB_NOTE = "The gradient is clipped at norm 1, the default of the optimizer that the original code used."


def _variant(size: str, side: int = 224) -> str:
    return f"deit3-{size}-patch{_patch(size)}-{side}"


def _patch(size: str) -> int:
    return 14 if size == "huge" else 16


def _machines(nodes: int, images: int) -> str:
    return f"{nodes} machine{'s' if nodes > 1 else ''} x 8 GPUs x {images} images"


def _edge_note(size: str, side: int) -> tuple[str, ...]:
    patch = _patch(size)
    if side % patch == 0:
        return ()
    seen = side - side % patch
    return (
        f"As in the authors' command, {side} pixels are not a multiple of the patch size {patch}: the network sees "
        f"{seen} x {seen} of them.",
    )


def _pre_training(size: str, side: int, lr: float, drop: float, nodes: int, top1: float) -> NamedRecipe:
    return NamedRecipe(
        name=f"deit3-{size}",
        summary=f"DeiT III {size} on ImageNet-1k at {side} pixels, 800 epochs.",
        recipe=recipe_of(
            _variant(size), {**_PRE_TRAINING, "optimizer.lr": lr, "drop_path_rate": drop}, image_size=side
        ),
        gpus=8,
        nodes=nodes,
        hardware=_machines(nodes, 256 // nodes),
        top1=top1,
        top1_note=f"ImageNet-1k validation, {side} pixels.",
        source=_SOURCE,
        notes=(_LAMB_NOTE, *_edge_note(size, side)),
        original=_ORIGINAL,
    )


def _fine_tuning(size: str, side: int, drop: float, nodes: int, top1: float) -> NamedRecipe:
    is_published = side == 224 or size == "small"
    return NamedRecipe(
        name=f"deit3-{size}-finetune-{side}",
        summary=f"DeiT III {size} at {side} pixels, fine-tuned after deit3-{size} on ImageNet-1k, 20 epochs.",
        recipe=recipe_of(_variant(size, side), {**_FINE_TUNING, "drop_path_rate": drop}, init=f"<deit3-{size}>"),
        gpus=8,
        nodes=nodes,
        hardware=_machines(nodes, 64 // nodes) if is_published else NOT_PUBLISHED,
        top1=top1,
        top1_note=f"ImageNet-1k validation, {side} pixels.",
        source=_SOURCE,
        notes=(f"DEIT3-{size.upper()} stands for the model directory that deit3-{size} made.",),
        original=_ORIGINAL,
    )


def _pre_training_21k(size: str, side: int, epochs: int, drop: float, nodes: int) -> NamedRecipe:
    return NamedRecipe(
        name=f"deit3-{size}-21k",
        summary=f"DeiT III {size} on ImageNet-21k at {side} pixels, {epochs} epochs.",
        recipe=recipe_of(
            _variant(size), {**_IMAGENET_21K, "schedule.epochs": epochs, "drop_path_rate": drop}, image_size=side
        ),
        gpus=8,
        nodes=nodes,
        hardware=_machines(nodes, 256 // nodes),
        top1_note="The published log has scores on ImageNet-1k only; none were published for the 21k classes.",
        source=_SOURCE,
        notes=(_LAMB_NOTE, "With batches of 4096 the authors use the learning rate 0.0015.", *_edge_note(size, side)),
        original=_ORIGINAL,
    )


def _fine_tuning_21k(size: str, drop: float, nodes: int, top1: float) -> NamedRecipe:
    return NamedRecipe(
        name=f"deit3-{size}-21k-finetune",
        summary=f"DeiT III {size} at 224 pixels, fine-tuned on ImageNet-1k after ImageNet-21k, 50 epochs.",
        recipe=recipe_of(
            _variant(size),
            {**_IMAGENET_21K, "schedule.epochs": 50, "optimizer.lr": 3e-4, "drop_path_rate": drop},
            init=f"<deit3-{size}-21k>",
        ),
        gpus=8,
        nodes=nodes,
        hardware=_machines(nodes, 256 // nodes),
        top1=top1,
        top1_note="ImageNet-1k validation, 224 pixels.",
        source=_SOURCE,
        notes=(
            _LAMB_NOTE,
            f"DEIT3-{size.upper()}-21K stands for the model directory that deit3-{size}-21k made; "
            "the authors never released theirs.",
        ),
        original=_ORIGINAL,
    )


# Top-1 is the last value of the published log.
RECIPES = (
    # Size, image size, learning rate, drop path rate, machines, top-1.
    _pre_training("small", 224, 4e-3, 0.05, 1, 81.4),
    _pre_training("base", 192, 3e-3, 0.2, 1, 82.8),
    _pre_training("large", 192, 3e-3, 0.45, 4, 84.0),
    _pre_training("huge", 160, 3e-3, 0.6, 4, 83.5),
    # Size, image size, drop path rate, machines, top-1.
    _fine_tuning("base", 224, 0.2, 1, 83.8),
    _fine_tuning("large", 224, 0.45, 1, 84.9),
    _fine_tuning("huge", 224, 0.55, 2, 85.2),
    _fine_tuning("small", 384, 0.0, 1, 83.4),
    _fine_tuning("base", 384, 0.15, 1, 85.0),
    _fine_tuning("large", 384, 0.4, 1, 85.8),
    # Size, image size, epochs, drop path rate, machines.
    _pre_training_21k("small", 224, 240, 0.05, 2),
    _pre_training_21k("base", 224, 240, 0.1, 4),
    _pre_training_21k("large", 224, 240, 0.3, 4),
    _pre_training_21k("huge", 128, 90, 0.5, 4),
    # Size, drop path rate, machines, top-1.
    _fine_tuning_21k("small", 0.05, 2, 83.1),
    _fine_tuning_21k("base", 0.15, 4, 85.7),
    _fine_tuning_21k("large", 0.4, 4, 87.0),
    _fine_tuning_21k("huge", 0.45, 4, 87.2),
)
