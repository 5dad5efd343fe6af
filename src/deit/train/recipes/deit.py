"""Lists the recipes of DeiT (arXiv 2012.12877): training, distillation, 384 pixels, transfer."""

from __future__ import annotations

from typing import Any

from deit.train.recipes.named_recipe import NOT_PUBLISHED, NamedRecipe, recipe_of

_PAPER = "DeiT paper (arXiv 2012.12877)"
_TEACHER = "timm/regnety_160.deit_in1k"

# Table 9. Everything else is the default of `Recipe`.
_TABLE_9: dict[str, Any] = {"batch_size": 1024, "augment.num_repeats": 3}

# Settings of the paper's code that differ from its text, or from good practice.
_ORIGINAL: dict[str, Any] = {
    "schedule.updates": "original",
    "optimizer.decay_distillation_token": True,
    "distillation.reduction": "numel",
    "ema_decay": 0.99996,
    "ema_use": "keep",
}
_ORIGINAL_FINE_TUNING = {**_ORIGINAL, "student_mode": "eval"}

# Tables 3 and 5, in percent: labels alone, distilled for 300 epochs, distilled for 1000 epochs.
_TOP1 = {"tiny": (72.2, 74.5, 76.6), "small": (79.8, 81.2, 82.6), "base": (81.8, 83.4, 84.2)}
_GPUS = {"tiny": (4, 1), "small": (4, 1), "base": (8, 2)}  # in each machine, machines
_FOUR_GPUS, _SIXTEEN_GPUS = "4 GPUs x 256 images", "2 machines x 8 GPUs x 64 images"


def _from_labels(size: str) -> NamedRecipe:
    gpus, nodes = _GPUS[size]
    is_base = size == "base"
    return NamedRecipe(
        name=f"deit-{size}",
        summary=f"DeiT-{size} on ImageNet-1k from labels alone, 300 epochs.",
        recipe=recipe_of(f"deit-{size}-patch16-224", _TABLE_9),
        gpus=gpus,
        nodes=nodes,
        hardware=_SIXTEEN_GPUS if is_base else _FOUR_GPUS,
        expected_time="53 hours on 8 GPUs, 37 hours on 16" if is_base else "less than 3 days on 4 GPUs",
        top1=_TOP1[size][0],
        top1_note="ImageNet-1k validation, 224 pixels.",
        source=f"{_PAPER}, tables 3 and 9; README_deit.md of its code",
        original=_ORIGINAL,
    )


def _distilled(size: str, epochs: int, top1: float) -> NamedRecipe:
    gpus, nodes = _GPUS[size]
    is_published = (size, epochs) == ("base", 300)
    return NamedRecipe(
        name=f"deit-{size}-distilled{'-1000' if epochs == 1000 else ''}",
        summary=f"DeiT-{size} on ImageNet-1k with a RegNetY-16GF as teacher (hard distillation), {epochs} epochs.",
        recipe=recipe_of(
            f"deit-{size}-distilled-patch16-224", {**_TABLE_9, "schedule.epochs": epochs}, teacher=_TEACHER
        ),
        gpus=gpus,
        nodes=nodes,
        hardware=f"{_SIXTEEN_GPUS}, 32 GB each" if is_published else NOT_PUBLISHED,
        expected_time="20 % longer than deit-base" if is_published else NOT_PUBLISHED,
        top1=top1,
        top1_note="ImageNet-1k validation, 224 pixels, mean of both heads.",
        source=f"{_PAPER}, tables 3, 5 and 9",
        notes=("The paper gives 82.9 % for the teacher.",),
        original=_ORIGINAL,
    )


def _softly_distilled(size: str) -> NamedRecipe:
    gpus, nodes = _GPUS[size]
    return NamedRecipe(
        name=f"deit-{size}-distilled-soft",
        summary=f"DeiT-{size} on ImageNet-1k with a RegNetY-16GF as teacher (soft, T = 3, weight 0.1), 300 epochs.",
        recipe=recipe_of(
            f"deit-{size}-distilled-patch16-224", {**_TABLE_9, "distillation.kind": "soft"}, teacher=_TEACHER
        ),
        gpus=gpus,
        nodes=nodes,
        top1_note=f"{_TOP1[size][0]} was published for soft distillation without a distillation token.",
        source=f"{_PAPER}, section 4 and table 3",
        notes=("In the paper hard distillation is more accurate than this.",),
        original=_ORIGINAL,
    )


# README_deit.md: 2 machines x 8 GPUs x 32 images; the learning rate applies to 512 images.
_AT_384: dict[str, Any] = {
    "batch_size": 512,
    "augment.num_repeats": 3,
    "optimizer.lr": 5e-6,
    "optimizer.weight_decay": 1e-8,
    "schedule.epochs": 30,
    "schedule.min_lr": 5e-6,
}

RECIPES = (
    *(_from_labels(size) for size in _TOP1),
    *(_distilled(size, 300, top1) for size, (_, top1, _) in _TOP1.items()),
    *(_distilled(size, 1000, top1) for size, (_, _, top1) in _TOP1.items()),
    *(_softly_distilled(size) for size in _TOP1),
    NamedRecipe(
        name="deit-base-384",
        summary="DeiT-base at 384 pixels, fine-tuned from 224 pixels on ImageNet-1k, 30 epochs.",
        recipe=recipe_of("deit-base-patch16-384", _AT_384, init="facebook/deit-base-patch16-224"),
        gpus=8,
        nodes=2,
        hardware="2 machines x 8 GPUs x 32 images",
        expected_time="20 hours on 8 GPUs for the paper's 25 epochs",
        top1=83.1,
        top1_note="ImageNet-1k validation, 384 pixels; the published weights have 82.9.",
        source=f"{_PAPER}, table 3; README_deit.md of its code",
        notes=(
            "The paper says 25 epochs, its README 30. The authors fine-tuned in evaluation mode, without drop path. "
            "This recipe uses drop path 0.1; deit-base-384-original reproduces theirs.",
        ),
        original=_ORIGINAL_FINE_TUNING,
    ),
    NamedRecipe(
        name="deit-base-distilled-384",
        summary="Distilled DeiT-base at 384 pixels, fine-tuned from 224 pixels with a teacher on ImageNet-1k.",
        recipe=recipe_of(
            "deit-base-distilled-patch16-384",
            _AT_384,
            init="facebook/deit-base-distilled-patch16-224",
            teacher=_TEACHER,
        ),
        gpus=8,
        nodes=2,
        top1=84.5,
        top1_note="ImageNet-1k validation, 384 pixels, mean of both heads; 85.2 from 1000 epochs at 224.",
        source=f"{_PAPER}, tables 3 and 5",
        notes=(
            "The hyper-parameters of fine-tuning with a teacher were not published. These are those of deit-base-384.",
            "The paper's teacher was fine-tuned at 384 pixels and never released. This is the one at 224.",
        ),
    ),
)

# --- Transfer to other data sets -----------------------------------------------------------------------

# facebookresearch/deit issue 45, for CIFAR-10 and Cars; "the rest as on ImageNet".
_SGD: dict[str, Any] = {
    "batch_size": 768,
    "optimizer.name": "sgd",
    "optimizer.lr": 0.01,
    "optimizer.reference_batch_size": 768,
    "optimizer.weight_decay": 1e-4,
    "schedule.epochs": 1000,
    "drop_path_rate": 0.0,
    "augment.erase_rate": 0.0,
    "augment.num_repeats": 3,
}
# Issue 105, for iNaturalist; this learning rate is already scaled by the batch size.
_ADAMW: dict[str, Any] = {
    "batch_size": 768,
    "optimizer.lr": 7.5e-5,
    "optimizer.reference_batch_size": 768,
    "schedule.epochs": 360,
    "augment.erase_rate": 0.1,
    "augment.num_repeats": 3,
}
_SGD_NOTE = (
    "The source does not say whether 0.01 is already scaled by the batch size. This recipe uses it for 768 images."
)
_ADAMW_NOTE = "The published learning rate is already scaled by the batch size."
_TABLE_7 = f"{_PAPER}, table 7"
_ISSUE_45, _ISSUE_105 = (f"{_TABLE_7}; facebookresearch/deit issue {number}" for number in (45, 105))


def _transfer(name: str, data: str, settings: dict[str, Any], top1: float, source: str, note: str) -> NamedRecipe:
    return NamedRecipe(
        name=name,
        summary=f"DeiT-base from ImageNet-1k to {data}.",
        recipe=recipe_of("deit-base-patch16-224", settings, init="facebook/deit-base-patch16-224"),
        gpus=8,
        top1=top1,
        top1_note="Test images of the data set, 224 pixels, DeiT-base.",
        source=source,
        notes=(note,),
        original=_ORIGINAL_FINE_TUNING,
    )


# Name; data set with training images / test images / classes; settings; top-1 of DeiT-base (table 7); source; note.
TRANSFER_RECIPES = (
    _transfer("cifar10", "CIFAR-10 (50,000 / 10,000 / 10)", _SGD, 99.1, _ISSUE_45, _SGD_NOTE),
    _transfer("cifar100", "CIFAR-100 (50,000 / 10,000 / 100)", _SGD, 90.8, _TABLE_7,
              "The hyper-parameters for this data set were not published. These are those of cifar10."),
    _transfer("flowers", "Flowers (2,040 / 6,149 / 102)", _SGD, 98.4, _TABLE_7,
              "The hyper-parameters for this data set were not published. These are those of cars."),
    _transfer("cars", "Cars (8,144 / 8,041 / 196)", _SGD, 92.1, _ISSUE_45, _SGD_NOTE),
    _transfer("inaturalist18", "iNaturalist 2018 (437,513 / 24,426 / 8,142)", _ADAMW, 73.2, _ISSUE_105, _ADAMW_NOTE),
    _transfer("inaturalist19", "iNaturalist 2019 (265,240 / 3,003 / 1,010)", _ADAMW, 77.7, _ISSUE_105, _ADAMW_NOTE),
)  # fmt: skip
