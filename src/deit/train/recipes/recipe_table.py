"""Named recipes: the trainings of DeiT and DeiT III, SimMIM, transfer, and our own for small data, as data.

Every published number has its source beside it. What was not published is said to be so, with what we chose instead.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deit.core.errors import UserError
from deit.train.recipes.named_recipe import NamedRecipe, name_recipe
from deit.train.recipes.recipe import Recipe

NOT_PUBLISHED = "not published"
ORIGINAL = "-original"

_PAPER = "DeiT paper (arXiv 2012.12877)"
_REVENGE = "README_revenge.md of facebookresearch/deit (DeiT III, arXiv 2204.07118)"
_TEACHER = "timm/regnety_160.deit_in1k"


def list_recipes() -> list[str]:
    """Returns the names of the recipes; most can also be had with `-original` behind the name.

    Example:
        >>> list_recipes()[:3]
        ['deit-tiny', 'deit-small', 'deit-base']
    """
    return list(_RECIPES)


def named_recipe(name: str) -> NamedRecipe:
    """Returns a named recipe.

    Args:
        name: One of `list_recipes()`. With `-original` behind it: as the paper's code trained, its slips included; see
            `NamedRecipe.original`.

    Raises:
        ValueError: There is none of that name, or the original's code never did that training.

    Example:
        >>> named_recipe("deit-small").recipe.batch_size
        1024
    """
    plain = name.removesuffix(ORIGINAL)
    if plain not in _RECIPES:
        near = difflib.get_close_matches(plain, _RECIPES, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"Unknown recipe {name!r}.{hint} `deit recipes` lists all.")
    found = _RECIPES[plain]
    if plain == name:
        return found
    if not found.original:
        raise UserError(f"The recipe {plain!r} has no original form: no published code did it. Received: {name!r}.")
    return dataclasses.replace(
        found,
        name=name,
        summary=f"{found.summary} As the original code ran it.",
        recipe=found.recipe.with_settings(found.original),
        command=found.command.replace(f"--recipe {plain} ", f"--recipe {name} "),
    )


def open_recipe(name_or_path: str | Path) -> Recipe:
    """Returns the recipe of a name, or of a YAML file.

    Args:
        name_or_path: A file (which wins over a name), or a name that `named_recipe` knows.

    Raises:
        FileNotFoundError: It looks like a path, and there is no file.
        ValueError: There is no recipe of that name, or the file is none.
    """
    if is_recipe_file(name_or_path):
        return Recipe.load(Path(name_or_path))
    return named_recipe(str(name_or_path)).recipe


def is_recipe_file(name_or_path: str | Path) -> bool:
    """Whether a file is meant, and not the name of a recipe."""
    text, path = str(name_or_path), Path(name_or_path)
    return path.is_file() or path.suffix in (".yaml", ".yml") or os.sep in text or "/" in text


# --- DeiT -------------------------------------------------------------------------------------------------------------

# Table 9. All else is the default of `Recipe`.
_DEIT: dict[str, Any] = {"batch_size": 1024, "augment.num_repeats": 3}

# What the paper's code did otherwise than its text, or than is good.
_ORIGINAL_DEIT: dict[str, Any] = {
    "schedule.updates": "original",
    "optimizer.decay_distillation_token": True,
    "distillation.reduction": "numel",
    "ema_decay": 0.99996,
    "ema_use": "keep",
}
_ORIGINAL_FINE_TUNING = {**_ORIGINAL_DEIT, "student_mode": "eval"}

# Tables 3 and 5, in percent: labels alone, distilled for 300 epochs, distilled for 1000 epochs.
_DEIT_TOP1 = {"tiny": (72.2, 74.5, 76.6), "small": (79.8, 81.2, 82.6), "base": (81.8, 83.4, 84.2)}
_FOUR_GPUS = "4 GPUs x 256 images"
_SIXTEEN_GPUS = "2 machines x 8 GPUs x 64 images"


def _deit() -> Iterable[NamedRecipe]:
    for size, scores in _DEIT_TOP1.items():
        is_base = size == "base"
        machine: dict[str, Any] = {"gpus": 8, "nodes": 2} if is_base else {"gpus": 4}
        yield name_recipe(
            f"deit-{size}", f"deit-{size}-patch16-224", _DEIT, **machine,
            summary=f"DeiT-{size} on ImageNet-1k from labels alone, 300 epochs.",
            hardware=_SIXTEEN_GPUS if is_base else _FOUR_GPUS,
            expected_time="53 hours on 8 GPUs, 37 hours on 16" if is_base else "less than 3 days on 4 GPUs",
            top1=scores[0], top1_note="ImageNet-1k validation, 224 pixels.",
            source=f"{_PAPER}, tables 3 and 9; README_deit.md of its code", original=_ORIGINAL_DEIT,
        )  # fmt: skip
    for epochs, column in ((300, 1), (1000, 2)):
        for size, scores in _DEIT_TOP1.items():
            yield _distilled(size, epochs, scores[column])
    for size in _DEIT_TOP1:
        yield _softly_distilled(size)
    yield _deit_384()
    yield _deit_distilled_384()


def _distilled(size: str, epochs: int, top1: float) -> NamedRecipe:
    is_base, is_long = size == "base", epochs == 1000
    machine: dict[str, Any] = {"gpus": 8, "nodes": 2} if is_base else {"gpus": 4}
    if is_base and not is_long:
        hardware, time = f"{_SIXTEEN_GPUS}, 32 GB each", "20 % longer than deit-base"
    else:
        hardware, time = NOT_PUBLISHED, NOT_PUBLISHED
    return name_recipe(
        f"deit-{size}-distilled{'-1000' if is_long else ''}", f"deit-{size}-distilled-patch16-224",
        {**_DEIT, "schedule.epochs": epochs}, **machine, teacher=_TEACHER,
        summary=f"DeiT-{size} on ImageNet-1k with a RegNetY-16GF as teacher (hard distillation), {epochs} epochs.",
        hardware=hardware, expected_time=time,
        top1=top1, top1_note="ImageNet-1k validation, 224 pixels, mean of both heads.",
        source=f"{_PAPER}, tables 3, 5 and 9", original=_ORIGINAL_DEIT,
        notes=("The teacher has 82.9 % by the paper.",),
    )  # fmt: skip


def _softly_distilled(size: str) -> NamedRecipe:
    is_base = size == "base"
    machine: dict[str, Any] = {"gpus": 8, "nodes": 2} if is_base else {"gpus": 4}
    return name_recipe(
        f"deit-{size}-distilled-soft", f"deit-{size}-distilled-patch16-224",
        {**_DEIT, "distillation.kind": "soft"}, **machine, teacher=_TEACHER,
        summary=f"DeiT-{size} on ImageNet-1k with a RegNetY-16GF as teacher, softly (T = 3, weight 0.1), 300 epochs.",
        hardware=NOT_PUBLISHED, expected_time=NOT_PUBLISHED,
        top1=None, top1_note=f"{_DEIT_TOP1[size][0]} was published of soft distillation without a distillation token.",
        source=f"{_PAPER}, section 4 and table 3", original=_ORIGINAL_DEIT,
        notes=("The paper compares hard distillation with this one, and hard wins.",),
    )  # fmt: skip


# README_deit.md: 2 machines x 8 GPUs x 32 images; the learning rate is meant for 512 images.
_DEIT_384: dict[str, Any] = {
    "batch_size": 512,
    "augment.num_repeats": 3,
    "optimizer.lr": 5e-6,
    "optimizer.weight_decay": 1e-8,
    "schedule.epochs": 30,
    "schedule.min_lr": 5e-6,
}


def _deit_384() -> NamedRecipe:
    return name_recipe(
        "deit-base-384", "deit-base-patch16-384", _DEIT_384, gpus=8, nodes=2,
        init="facebook/deit-base-patch16-224",
        summary="DeiT-base at 384 pixels, fine-tuned from 224 pixels on ImageNet-1k, 30 epochs.",
        hardware="2 machines x 8 GPUs x 32 images",
        expected_time="20 hours on 8 GPUs for the paper's 25 epochs",
        top1=83.1, top1_note="ImageNet-1k validation, 384 pixels; the published weights have 82.9.",
        source=f"{_PAPER}, table 3; README_deit.md of its code", original=_ORIGINAL_FINE_TUNING,
        notes=("The paper says 25 epochs, its README 30. It fine-tuned in evaluation mode, without drop path; this "
               "recipe trains with drop path 0.1, and deit-base-384-original as it did.",),
    )  # fmt: skip


def _deit_distilled_384() -> NamedRecipe:
    return name_recipe(
        "deit-base-distilled-384", "deit-base-distilled-patch16-384", _DEIT_384, gpus=8, nodes=2,
        init="facebook/deit-base-distilled-patch16-224", teacher=_TEACHER,
        summary="Distilled DeiT-base at 384 pixels, fine-tuned from 224 pixels with a teacher on ImageNet-1k.",
        hardware=NOT_PUBLISHED, expected_time=NOT_PUBLISHED,
        top1=84.5, top1_note="ImageNet-1k validation, 384 pixels, mean of both heads; 85.2 from 1000 epochs at 224.",
        source=f"{_PAPER}, tables 3 and 5",
        notes=(
            "Hyper-parameters of fine-tuning with a teacher were not published; these are deit-base-384's.",
            "The paper's teacher was fine-tuned at 384 pixels and never released; the one at 224 takes its place.",
        ),
    )  # fmt: skip


# --- DeiT III ---------------------------------------------------------------------------------------------------------

_SIMPLE_VIEWS: dict[str, Any] = {
    "augment.rand_augment": "",
    "augment.three_augment": True,
    "augment.color_jitter": 0.3,
    "augment.erase_rate": 0.0,
}
# Both learning rates are published as they are, for 2048 images; in proportion to the batch is our reading for others.
# `clip_grad`: apex's FusedLAMB clips at 1 by default; see `build_optimizer`.
_LAMB: dict[str, Any] = {
    "batch_size": 2048,
    "optimizer.name": "lamb",
    "optimizer.reference_batch_size": 2048,
    "optimizer.clip_grad": 1.0,
    "drop_path_shape": "constant",
    "crop_ratio": 1.0,
}
_DEIT_III: dict[str, Any] = {
    **_LAMB,
    **_SIMPLE_VIEWS,
    "schedule.epochs": 800,
    "loss": "bce",
    "label_smoothing": 0.0,
    "augment.num_repeats": 3,
}
_DEIT_III_FINE_TUNING: dict[str, Any] = {
    "batch_size": 512,
    "optimizer.lr": 1e-5,
    "optimizer.reference_batch_size": 512,
    "optimizer.weight_decay": 0.1,
    "schedule.epochs": 20,
    "augment.erase_rate": 0.0,
    "drop_path_shape": "constant",
    "crop_ratio": 1.0,
}
_DEIT_III_21K: dict[str, Any] = {
    **_LAMB,
    **_SIMPLE_VIEWS,
    "optimizer.lr": 1e-3,
    "optimizer.weight_decay": 0.02,
    "augment.crop": "simple",
    "augment.mixup_alpha": 0.0,
}
_ORIGINAL_DEIT_III = {"schedule.updates": "original"}
_LAMB_NOTE = "LAMB clips the gradient at 1, the default of the optimizer the original used."
_V3_TIME: dict[str, Any] = {"expected_time": NOT_PUBLISHED, "source": _REVENGE, "original": _ORIGINAL_DEIT_III}

# Size: image size, learning rate, drop path rate, machines, top-1 at the end of the published log.
_PRE_TRAINING = {
    "small": (224, 4e-3, 0.05, 1, 81.4),
    "base": (192, 3e-3, 0.2, 1, 82.8),
    "large": (192, 3e-3, 0.45, 4, 84.0),
    "huge": (160, 3e-3, 0.6, 4, 83.5),
}
# Size, image size, drop path rate, machines, top-1.
_FINE_TUNING = (
    ("base", 224, 0.2, 1, 83.8),
    ("large", 224, 0.45, 1, 84.9),
    ("huge", 224, 0.55, 2, 85.2),
    ("small", 384, 0.0, 1, 83.4),
    ("base", 384, 0.15, 1, 85.0),
    ("large", 384, 0.4, 1, 85.8),
)
# Size: drop path rates of pre-training on ImageNet-21k and of fine-tuning on 1k, machines, top-1 after fine-tuning.
_PRE_TRAINING_21K = {
    "small": (0.05, 0.05, 2, 83.1),
    "base": (0.1, 0.15, 4, 85.7),
    "large": (0.3, 0.4, 4, 87.0),
    "huge": (0.5, 0.45, 4, 87.2),
}


def _machines(nodes: int, images: int) -> str:
    return f"{nodes} machine{'s' if nodes > 1 else ''} x 8 GPUs x {images} images"


def _patch(size: str) -> int:
    return 14 if size == "huge" else 16


def _edge_note(size: str, side: int) -> tuple[str, ...]:
    patch = _patch(size)
    if side % patch == 0:
        return ()
    seen = side - side % patch
    return (f"As in the authors' command: {side} pixels are no multiple of {patch}, so their convolution of {patch} x "
            f"{patch} patches sees {seen} x {seen} of them.",)  # fmt: skip


def _deit_iii() -> Iterable[NamedRecipe]:
    for size, (side, lr, drop, nodes, top1) in _PRE_TRAINING.items():
        yield name_recipe(
            f"deit3-{size}", f"deit3-{size}-patch{_patch(size)}-224",
            {**_DEIT_III, "optimizer.lr": lr, "drop_path_rate": drop}, gpus=8, nodes=nodes, image_size=side,
            summary=f"DeiT III {size} on ImageNet-1k at {side} pixels, 800 epochs.",
            hardware=_machines(nodes, 256 // nodes),
            top1=top1, top1_note=f"ImageNet-1k validation, {side} pixels.",
            notes=(_LAMB_NOTE, *_edge_note(size, side)), **_V3_TIME,
        )  # fmt: skip
    for size, side, drop, nodes, top1 in _FINE_TUNING:
        is_written = side == 224 or size == "small"
        yield name_recipe(
            f"deit3-{size}-finetune-{side}", f"deit3-{size}-patch{_patch(size)}-{side}",
            {**_DEIT_III_FINE_TUNING, "drop_path_rate": drop}, gpus=8, nodes=nodes,
            init=f"<deit3-{size}>",
            summary=f"DeiT III {size} at {side} pixels, fine-tuned after deit3-{size} on ImageNet-1k, 20 epochs.",
            hardware=_machines(nodes, 64 // nodes) if is_written else NOT_PUBLISHED,
            top1=top1, top1_note=f"ImageNet-1k validation, {side} pixels.",
            notes=(f"DEIT3-{size.upper()} stands for the model directory that deit3-{size} made.",), **_V3_TIME,
        )  # fmt: skip
    yield from _deit_iii_21k()


def _deit_iii_21k() -> Iterable[NamedRecipe]:
    for size, (drop, _, nodes, _) in _PRE_TRAINING_21K.items():
        side, epochs = (128, 90) if size == "huge" else (224, 240)
        yield name_recipe(
            f"deit3-{size}-21k", f"deit3-{size}-patch{_patch(size)}-224",
            {**_DEIT_III_21K, "schedule.epochs": epochs, "drop_path_rate": drop}, gpus=8, nodes=nodes, image_size=side,
            summary=f"DeiT III {size} on ImageNet-21k at {side} pixels, {epochs} epochs.",
            hardware=_machines(nodes, 256 // nodes),
            top1=None, top1_note="The published log scores it on ImageNet-1k, so there is no number for 21k classes.",
            notes=(_LAMB_NOTE, "With 4096 images the authors use the learning rate 0.0015.", *_edge_note(size, side)),
            **_V3_TIME,
        )  # fmt: skip
    for size, (_, drop, nodes, top1) in _PRE_TRAINING_21K.items():
        yield name_recipe(
            f"deit3-{size}-21k-finetune", f"deit3-{size}-patch{_patch(size)}-224",
            {**_DEIT_III_21K, "schedule.epochs": 50, "optimizer.lr": 3e-4, "drop_path_rate": drop},
            gpus=8, nodes=nodes, init=f"<deit3-{size}-21k>",
            summary=f"DeiT III {size} at 224 pixels, fine-tuned on ImageNet-1k after ImageNet-21k, 50 epochs.",
            hardware=_machines(nodes, 256 // nodes),
            top1=top1, top1_note="ImageNet-1k validation, 224 pixels.",
            notes=(_LAMB_NOTE, f"DEIT3-{size.upper()}-21K stands for the model directory that deit3-{size}-21k made; "
                   "the authors never released theirs."), **_V3_TIME,
        )  # fmt: skip


# --- Transfer ---------------------------------------------------------------------------------------------------------

# facebookresearch/deit issue 45, for CIFAR-10 and Cars; "the rest as on ImageNet".
_TRANSFER_SGD: dict[str, Any] = {
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
# Issue 105, for iNaturalist; this learning rate is the one after the scaling by the batch size.
_TRANSFER_ADAMW: dict[str, Any] = {
    "batch_size": 768,
    "optimizer.lr": 7.5e-5,
    "optimizer.reference_batch_size": 768,
    "schedule.epochs": 360,
    "augment.erase_rate": 0.1,
    "augment.num_repeats": 3,
}
_SGD_NOTE = (
    "Whether 0.01 was meant before or after the scaling by the batch size is unknown; we take it for 768 images."
)
_ISSUE_45, _ISSUE_105 = (f"{_PAPER}, table 7; facebookresearch/deit issue {number}" for number in (45, 105))
# Name: data set with training images / test images / classes, settings, top-1 of DeiT-B at 224 (table 7), source, note.
_TRANSFER: dict[str, tuple[str, dict[str, Any], float, str, str]] = {
    "cifar10": ("CIFAR-10 (50,000 / 10,000 / 10)", _TRANSFER_SGD, 99.1, _ISSUE_45, _SGD_NOTE),
    "cifar100": ("CIFAR-100 (50,000 / 10,000 / 100)", _TRANSFER_SGD, 90.8, f"{_PAPER}, table 7",
                 "Hyper-parameters for this data set were not published for DeiT; these are cifar10's."),
    "flowers": ("Flowers (2,040 / 6,149 / 102)", _TRANSFER_SGD, 98.4, f"{_PAPER}, table 7",
                "Hyper-parameters for this data set were never published; these are those of cars."),
    "cars": ("Cars (8,144 / 8,041 / 196)", _TRANSFER_SGD, 92.1, _ISSUE_45, _SGD_NOTE),
    "inaturalist18": ("iNaturalist 2018 (437,513 / 24,426 / 8,142)", _TRANSFER_ADAMW, 73.2, _ISSUE_105,
                      "The published learning rate is the one after scaling."),
    "inaturalist19": ("iNaturalist 2019 (265,240 / 3,003 / 1,010)", _TRANSFER_ADAMW, 77.7, _ISSUE_105,
                      "The published learning rate is the one after scaling."),
}  # fmt: skip


def _transfer() -> Iterable[NamedRecipe]:
    for name, (data, settings, top1, source, note) in _TRANSFER.items():
        yield name_recipe(
            name, "deit-base-patch16-224", settings, gpus=8, init="facebook/deit-base-patch16-224",
            summary=f"DeiT-base from ImageNet-1k to {data}.",
            hardware=NOT_PUBLISHED, expected_time=NOT_PUBLISHED,
            top1=top1, top1_note="Test images of the data set, 224 pixels, DeiT-base.",
            source=source, notes=(note,), original=_ORIGINAL_FINE_TUNING,
        )  # fmt: skip


# --- SimMIM -----------------------------------------------------------------------------------------------------------

_LIGHT_VIEWS: dict[str, Any] = {
    "augment.crop_scale": (0.67, 1.0),
    "augment.rand_augment": "",
    "augment.erase_rate": 0.0,
    "augment.mix_rate": 0.0,
}
# SimMIM's configurations; learning rates are meant for 512 images. Ours of the two rates that it scales by the batch,
# but this package does not (the start of the warm-up and the end of the cosine), are those for 2048 images.
_SIMMIM: dict[str, Any] = {
    **_LIGHT_VIEWS,
    "batch_size": 2048,
    "optimizer.lr": 1e-4,
    "optimizer.clip_grad": 5.0,
    "label_smoothing": 0.0,
    "schedule.warmup_epochs": 10,
    "schedule.warmup_lr": 2e-6,
    "schedule.min_lr": 2e-5,
    "eval_epochs": 5,
}
_SIMMIM_SOURCE = "arXiv 2111.09886; README.md, config.py and configs/ of microsoft/SimMIM"
_SIMMIM_NOTE = (
    "Of masked-image trainings: deit pretrain. Labels are not looked at. Its views are resized bicubically; run_mim of "
    "transformers resizes bilinearly: --set augment.interpolation=bilinear."
)


def _simmim() -> Iterable[NamedRecipe]:
    yield name_recipe(
        "simmim-100", "deit-base-patch16-224", {**_SIMMIM, "schedule.epochs": 100, "drop_path_rate": 0.0},
        gpus=16, verb="pretrain",
        summary="DeiT-base on the images of ImageNet-1k without labels (SimMIM), 100 epochs.",
        hardware=NOT_PUBLISHED, expected_time=NOT_PUBLISHED,
        top1=None, top1_note="Not published for a ViT; a classifier has to be trained from it.",
        source=_SIMMIM_SOURCE,
        notes=(
            _SIMMIM_NOTE,
            "SimMIM published 100 epochs for a Swin transformer alone: from there are the epochs, the warm-up, drop "
            "path 0 and the cosine; learning rate and batch are those of its ViT-base for 800 epochs.",
        ),
    )  # fmt: skip
    yield name_recipe(
        "simmim-800", "deit-base-patch16-224", {**_SIMMIM, "schedule.epochs": 800, "drop_path_rate": 0.1},
        gpus=16, verb="pretrain",
        summary="DeiT-base on the images of ImageNet-1k without labels (SimMIM), 800 epochs.",
        hardware="16 GPUs x 128 images, the example for its Swin; for the ViT not published",
        expected_time=NOT_PUBLISHED,
        top1=None, top1_note="83.8 on ImageNet-1k validation was published after fine-tuning its own ViT-base.",
        source=_SIMMIM_SOURCE,
        notes=(
            _SIMMIM_NOTE,
            "SimMIM's rate falls to a tenth at epoch 700; here it is a cosine. Its ViT has relative positions and "
            "layer scale, which DeiT has not.",
        ),
    )  # fmt: skip
    yield name_recipe(
        "simmim-fine-tune", "deit-base-patch16-224",
        {"batch_size": 2048, "optimizer.lr": 1.25e-3, "optimizer.clip_grad": 5.0, "optimizer.layer_decay": 0.65,
         "schedule.epochs": 100, "schedule.warmup_epochs": 20, "schedule.warmup_lr": 1e-6, "schedule.min_lr": 1e-6},
        gpus=16, init="<simmim-800>",
        summary="A DeiT-base of simmim-800 with the labels of ImageNet-1k, 100 epochs.",
        hardware=NOT_PUBLISHED, expected_time=NOT_PUBLISHED,
        top1=None, top1_note="83.8 on ImageNet-1k validation was published of SimMIM's own ViT-base.",
        source=_SIMMIM_SOURCE,
        notes=("SimMIM's ViT averages the patches for its head; a DeiT has its class token.",),
    )  # fmt: skip


# --- Our own ----------------------------------------------------------------------------------------------------------

_OURS: dict[str, Any] = {
    "top1": None,
    "top1_note": "It depends on your images.",
    "expected_time": "not measured; it grows with your number of images",
    "source": "our own choice",
}
_GENTLE: dict[str, Any] = {"augment.crop_scale": (0.3, 1.0), "augment.erase_rate": 0.0, "augment.mix_rate": 0.0}
# In the demo's short trainings the soft loss won against the hard one: docs/results.md.
_SOFT: dict[str, Any] = {"distillation.kind": "soft", "distillation.temperature": 3.0, "distillation.weight": 0.5}
_TEACHER_NOTE = (
    "To learn from a teacher as well, make one (deit train DATA --student timm/resnet18 --recipe NAME --out TEACHER) "
    "and add --teacher TEACHER. The distillation is soft, which won against hard in the demo (docs/results.md)."
)


def _small_data() -> Iterable[NamedRecipe]:
    yield name_recipe(
        "small-data-cpu", "deit-tiny-distilled-patch16-224",
        {**_GENTLE, **_SOFT, "optimizer.reference_batch_size": 64, "schedule.epochs": 100, "schedule.warmup_epochs": 5,
         "drop_path_rate": 0.0, "eval_epochs": 5},
        image_size=112, hardware="a CPU",
        summary="DeiT-tiny from nothing on some hundred or thousand images of your own, on a CPU, 100 epochs.",
        notes=(_TEACHER_NOTE.replace("NAME", "small-data-cpu"),
               "112 pixels cost a quarter of 224. Views are milder than the paper's, whose blends and erasing need "
               "hundreds of epochs. If you may start from published weights, try fine-tune first."),
        **_OURS,
    )  # fmt: skip
    yield name_recipe(
        "small-data-gpu", "deit-tiny-distilled-patch16-224",
        {**_SOFT, "batch_size": 128, "optimizer.reference_batch_size": 128, "schedule.warmup_epochs": 10,
         "eval_epochs": 5},
        hardware="one GPU",
        summary="DeiT-tiny from nothing on some thousand images of your own, on a GPU, 300 epochs.",
        notes=(_TEACHER_NOTE.replace("NAME", "small-data-gpu"),
               "Views and blends are the paper's. If you may start from published weights, try fine-tune first."),
        **_OURS,
    )  # fmt: skip
    yield name_recipe(
        "fine-tune", "deit-small-distilled-patch16-224",
        {**_GENTLE, "schedule.epochs": 20, "schedule.warmup_epochs": 2, "schedule.min_lr": 1e-6,
         "optimizer.layer_decay": 0.75},
        init="facebook/deit-small-distilled-patch16-224", hardware="one GPU, or a CPU and patience",
        summary="Your own images from published weights, 20 epochs.",
        notes=("AdamW at 5e-4 for 512 images, so 6.25e-5 for 64; each block learns at three quarters of the rate of "
               "the next, since early blocks need little change.",),
        **_OURS,
    )  # fmt: skip


_RECIPES: dict[str, NamedRecipe] = {
    named.name: named for family in (_deit, _deit_iii, _transfer, _simmim, _small_data) for named in family()
}
