"""Lists the trainings on masked images (SimMIM, arXiv 2111.09886), and the fine-tuning that follows."""

from __future__ import annotations

from typing import Any

from deit.train.recipes.named_recipe import NamedRecipe, recipe_of

_STUDENT = "deit-base-patch16-224"

# SimMIM's configurations; learning rates are meant for 512 images. Ours of the two rates that it scales by the batch,
# but this package does not (the start of the warm-up and the end of the cosine), are those for 2048 images.
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
    "For masked-image trainings: deit pretrain. Labels are not used. Its views are resized bicubically; run_mim of "
    "transformers resizes bilinearly: --set augment.interpolation=bilinear."
)

RECIPES = (
    NamedRecipe(
        name="simmim-100",
        summary="DeiT-base on the images of ImageNet-1k without labels (SimMIM), 100 epochs.",
        recipe=recipe_of(_STUDENT, {**_SETTINGS, "schedule.epochs": 100, "drop_path_rate": 0.0}),
        gpus=16,
        verb="pretrain",
        top1_note="Not published for a ViT; a classifier has to be trained from it.",
        source=_SOURCE,
        notes=(
            _NOTE,
            "SimMIM published 100 epochs for a Swin transformer alone: from there are the epochs, the warm-up, drop "
            "path 0 and the cosine; learning rate and batch are those of its ViT-base for 800 epochs.",
        ),
    ),
    NamedRecipe(
        name="simmim-800",
        summary="DeiT-base on the images of ImageNet-1k without labels (SimMIM), 800 epochs.",
        recipe=recipe_of(_STUDENT, {**_SETTINGS, "schedule.epochs": 800, "drop_path_rate": 0.1}),
        gpus=16,
        verb="pretrain",
        hardware="16 GPUs x 128 images, the example for its Swin; for the ViT not published",
        top1_note="83.8 on ImageNet-1k validation was published after fine-tuning its own ViT-base.",
        source=_SOURCE,
        notes=(
            _NOTE,
            "SimMIM's rate falls to a tenth at epoch 700; here it is a cosine. Its ViT has relative positions and "
            "layer scale, which DeiT has not.",
        ),
    ),
    NamedRecipe(
        name="simmim-fine-tune",
        summary="A DeiT-base of simmim-800 with the labels of ImageNet-1k, 100 epochs.",
        recipe=recipe_of(_STUDENT, _FINE_TUNING, init="<simmim-800>"),
        gpus=16,
        top1_note="83.8 on ImageNet-1k validation was published of SimMIM's own ViT-base.",
        source=_SOURCE,
        notes=("SimMIM's ViT averages the patches for its head; a DeiT has its class token.",),
    ),
)
