"""Lists the recipes for masked images (SimMIM, arXiv 2111.09886) and for fine-tuning after them."""

from __future__ import annotations

from typing import Any

from deit.train.recipes.named_recipe import NamedRecipe, recipe_of

_STUDENT = "deit-base-patch16-224"

# SimMIM's configurations; `lr` applies to 512 images. SimMIM also scales the start of the warm-up and the end of the
# cosine by the batch size. This package does not, so `warmup_lr` and `min_lr` hold the scaled values for 2048 images.
_SETTINGS: dict[str, Any] = {
    "augment.crop_scale": (0.67, 1.0),
    "augment.rand_augment": "",
    "augment.erase_rate": 0.0,
    "augment.mix_rate": 0.0,
    "batch_size": 2048,
    "optimizer.lr": 1e-4,
    "optimizer.clip_grad": 5.0,
    "label_smoothing": 0.0,
    "schedule.warmup_epochs": 10,
    "schedule.warmup_lr": 2e-6,
    "schedule.min_lr": 2e-5,
    "eval_epochs": 5,
}
_FINE_TUNING: dict[str, Any] = {
    "batch_size": 2048,
    "optimizer.lr": 1.25e-3,
    "optimizer.clip_grad": 5.0,
    "optimizer.layer_decay": 0.65,
    "schedule.epochs": 100,
    "schedule.warmup_epochs": 20,
    "schedule.warmup_lr": 1e-6,
    "schedule.min_lr": 1e-6,
}
_SOURCE = "arXiv 2111.09886; README.md, config.py and configs/ of microsoft/SimMIM"
_NOTE = (
    "For deit pretrain (masked images). Labels are not used. Images are resized bicubically. run_mim of transformers "
    "resizes bilinearly; set augment.interpolation=bilinear to do the same."
)

RECIPES = (
    NamedRecipe(
        name="simmim-100",
        summary="DeiT-base on the images of ImageNet-1k without labels (SimMIM), 100 epochs.",
        recipe=recipe_of(_STUDENT, {**_SETTINGS, "schedule.epochs": 100, "drop_path_rate": 0.0}),
        gpus=16,
        verb="pretrain",
        top1_note="Not published for a ViT. The model has no classifier until it is fine-tuned.",
        source=_SOURCE,
        notes=(
            _NOTE,
            "SimMIM published 100 epochs only for a Swin transformer. The epochs, the warm-up, drop path 0 and the "
            "cosine come from there; the learning rate and the batch size come from its ViT-base for 800 epochs.",
        ),
    ),
    NamedRecipe(
        name="simmim-800",
        summary="DeiT-base on the images of ImageNet-1k without labels (SimMIM), 800 epochs.",
        recipe=recipe_of(_STUDENT, {**_SETTINGS, "schedule.epochs": 800, "drop_path_rate": 0.1}),
        gpus=16,
        verb="pretrain",
        hardware="16 GPUs x 128 images for its Swin; not published for the ViT",
        top1_note="SimMIM published 83.8 on ImageNet-1k validation for its own ViT-base after fine-tuning.",
        source=_SOURCE,
        notes=(
            _NOTE,
            "SimMIM divides the learning rate by ten at epoch 700; this recipe uses a cosine. SimMIM's ViT has "
            "relative positions and layer scale; DeiT has neither.",
        ),
    ),
    NamedRecipe(
        name="simmim-fine-tune",
        summary="DeiT-base fine-tuned after simmim-800 with the labels of ImageNet-1k, 100 epochs.",
        recipe=recipe_of(_STUDENT, _FINE_TUNING, init="<simmim-800>"),
        gpus=16,
        top1_note="SimMIM published 83.8 on ImageNet-1k validation for its own ViT-base.",
        source=_SOURCE,
        notes=("The head of SimMIM's ViT reads the mean of the patches. The head of a DeiT reads the class token.",),
    ),
)
