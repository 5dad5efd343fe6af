"""Builds students: models with classes and preprocessing, new or from a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from deit.core.config.config import DeiTConfig, ViTConfig
from deit.core.config.field_checks import height_and_width
from deit.core.config.vision_transformer import VisionTransformerConfig
from deit.core.errors import UserError
from deit.core.file_names import PREPROCESSOR_NAME
from deit.core.labels import id2label_from_names, names_in_order
from deit.core.model_directory import read_image_processor
from deit.core.processing.image_processor import DeiTImageProcessor, evaluation_processor
from deit.core.published import Variant, find_variant
from deit.core.variants import IMAGENET_MEAN, IMAGENET_STD, variant_config
from deit.core.weights.plan import refuse_larger_than_file
from deit.models.deit import DeiTForImageClassificationWithTeacher, DeiTForMaskedImageModeling
from deit.models.pretrained import PreTrainedModel
from deit.models.trunk.vision_transformer import VisionTransformer
from deit.models.vit import ViTForImageClassification, ViTForMaskedImageModeling
from deit.models.weights.finiteness import refuse_non_finite
from deit.models.weights.from_pretrained import Checkpoint, FileOptions, open_checkpoint
from deit.models.weights.initialization import InitReport, initialize_from
from deit.models.weights.loading import read_network
from deit.runtime.random_state import random_state_kept
from deit.train.recipes.recipe import Recipe
from deit.train.students.initialization import initialize_mimetic
from deit.train.students.start import config_of, require_architecture, resolved_start
from deit.train.students.timm import build_timm, folder_values, timm_architecture
from deit.train.teachers.label_matching import head_rows

# Fields of a checkpoint's configuration that a student does not inherit.
_NOT_INHERITED = ("model_type", "architectures", "dtype", "id2label", "label2id", "return_dict", "output_attentions",
                  "output_hidden_states", "decoder_init")  # fmt: skip

logger = logging.getLogger(__name__)

_CLASS_HEADS = ("cls_classifier.weight", "classifier.weight")


@dataclass(frozen=True, kw_only=True)
class Student:
    """A model to train, with its preprocessing and classes.

    Attributes:
        model: A DeiT or ViT of this package, or a model of timm, with float32 weights on the CPU.
        processor: Preprocessing that the model is evaluated and saved with.
        report: Use of each tensor of the checkpoint; None for a new student.
        classes: Class names in the order of the logits; empty for masked images.
    """

    model: nn.Module
    processor: DeiTImageProcessor
    report: InitReport | None = None
    classes: tuple[str, ...] = ()


def build_student(
    name: str | None,
    classes: Sequence[str],
    recipe: Recipe,
    *,
    image_size: int | tuple[int, int] | None = None,
    init: str | Path | None = None,
) -> Student:
    """Builds a student, new or from a checkpoint; the same seed gives the same initial values.

    From a checkpoint it takes the trunk, with its layer scale and its position embedding, which it resizes to the image
    size (bicubic). Either the variant or the checkpoint may lack a distillation token; see `initialize_from`. The
    recipe supplies the arguments that are None; see `resolved_start`.

    It keeps the heads of a checkpoint if their classes are those of the data: by name in any order, or by number if the
    checkpoint has no class names. Otherwise the heads are new. The normalization is the checkpoint's.

    Args:
        name: A variant of this package, or `timm/NAME` for any architecture of timm, such as a convnet to use as a
            teacher. None uses the recipe's; with `init` and no student in the recipe, the checkpoint's architecture.
        classes: Class names; for regression one name, that of the predicted number.
        recipe: Seed, problem type, drop path rate and evaluation crop are used.
        image_size: Input size in pixels, the side of a square or (height, width). None uses the recipe's, or else that
            of the variant, or else that of the checkpoint; for timm that of the model.
        init: Model directory, weight file (`.safetensors`, `.pth`) or name on the model hub, in any dialect that
            `from_pretrained` reads; for `timm/NAME` in timm's dialect. None uses the recipe's.

    Raises:
        ValueError: An unknown name, an image size that the patches do not fill, a checkpoint of another architecture,
            or several classes for regression.
        OSError: The checkpoint cannot be found, or the hub cannot be reached.
    """
    if recipe.data.problem_type == "regression" and len(classes) != 1:
        raise UserError(f"Regression predicts one number, so it has one class name. Received: {len(classes)}.")
    recipe, size = _with_choices(recipe, name, init, image_size)
    name, init = recipe.student or None, recipe.init or None
    library, _, architecture = (name or "").partition("/")
    _refuse_merging(recipe, of_timm=library == "timm")
    _warn_of_unused(recipe, random=init is None and library != "timm")
    with random_state_kept():
        torch.manual_seed(recipe.seed)
        if library == "timm" and architecture:
            return Student(**build_timm(architecture, classes, recipe, size, init), classes=tuple(classes))
        if init is None:
            if not name:
                raise UserError("A student needs a name or a checkpoint. Received neither.")
            config = _configured(variant_config(name), classes, recipe, size)
            processor = _processor(config, recipe, IMAGENET_MEAN, IMAGENET_STD)
            return Student(model=_new(_build(config, recipe), recipe), processor=processor, classes=tuple(classes))
        variant = find_variant(name) if name else None
        checkpoint = open_checkpoint(init, FileOptions())
        other = timm_architecture(checkpoint) if variant is None else None
        if other is not None:
            _refuse_merging(recipe, of_timm=True)
            return Student(**build_timm(other, classes, recipe, size, init), classes=tuple(classes))
        return _start_from(checkpoint, name, variant, classes, recipe, size)


def build_masked_student(
    name: str | None,
    recipe: Recipe,
    *,
    image_size: int | tuple[int, int] | None = None,
    init: str | Path | None = None,
    overrides: str = "",
) -> Student:
    """Builds a student that reconstructs hidden patches, new or from a checkpoint.

    Args:
        name: A variant of this package; None with `init` uses the checkpoint's architecture.
        recipe: Seed, drop path rate and evaluation crop are used.
        image_size: See `build_student`.
        init: See `build_student`. Mask token and decoder are new if the checkpoint lacks them.
        overrides: Fields of the configuration that replace the variant's: "num_hidden_layers=4,patch_size=8". The
            encoder stride equals the patch size unless it is given. Not allowed with `init`.

    Raises:
        ValueError: See `build_student`; also an unknown field, or a value that cannot be used.
    """
    recipe, size = _with_choices(recipe, name, init, image_size)
    name, init, overrides = recipe.student or None, recipe.init or None, overrides or recipe.config
    _refuse_merging(recipe, masked=True)
    if overrides and init is not None:
        raise UserError(f"A checkpoint has its own architecture. Received: init and {overrides!r}. Pass one of them.")
    _warn_of_unused(recipe, random=init is None)
    with random_state_kept():
        torch.manual_seed(recipe.seed)
        if init is not None:
            variant = find_variant(name) if name else None
            return _start_from(open_checkpoint(init, FileOptions()), name, variant, None, recipe, size)
        if not name:
            raise UserError("A student needs a name or a checkpoint. Received neither.")
        config = variant_config(name)
        if overrides:
            config.update_from_string(overrides)
            if "encoder_stride" not in overrides:
                config.encoder_stride = config.grid_patch_size[0]
            config.validate()
        own = _configured(config, None, recipe, size)
        model = _new(_build_masked(own, recipe), recipe)
        return Student(model=model, processor=_processor(own, recipe, IMAGENET_MEAN, IMAGENET_STD))


def _with_choices(
    recipe: Recipe, name: str | None, init: str | Path | None, image_size: int | tuple[int, int] | None
) -> tuple[Recipe, tuple[int, int] | None]:
    """Returns the recipe with the given choices, and the chosen input size or None."""
    size = None if image_size is None else height_and_width(image_size, "image_size")
    start = resolved_start(recipe, student=name, init=init, image_size=max(size) if size else None)
    return start, size or ((start.image_size,) * 2 if start.image_size else None)


def _check_patches(config: VisionTransformerConfig, recipe: Recipe) -> None:
    if recipe.partial_patches:
        return
    for side, patch in zip(config.grid_image_size, config.grid_patch_size, strict=True):
        if side % patch:
            near = max(side // patch, 1) * patch
            raise UserError(f"image_size {side} is not a multiple of patch_size {patch}. Use {near} or {near + patch}.")


def _build_masked(config: VisionTransformerConfig, recipe: Recipe) -> PreTrainedModel:
    _check_patches(config, recipe)
    config.decoder_init = "simmim"  # the recipes were measured with it
    if isinstance(config, ViTConfig):
        return ViTForMaskedImageModeling(config)
    assert isinstance(config, DeiTConfig)
    return DeiTForMaskedImageModeling(config)


def _build(config: VisionTransformerConfig, recipe: Recipe) -> PreTrainedModel:
    _check_patches(config, recipe)
    if isinstance(config, ViTConfig):  # without distillation token
        return ViTForImageClassification(config)
    assert isinstance(config, DeiTConfig)
    return DeiTForImageClassificationWithTeacher(config)


def _refuse_merging(recipe: Recipe, *, of_timm: bool = False, masked: bool = False) -> None:
    if recipe.token_merging and (of_timm or masked):
        what = "A student of timm" if of_timm else "A training with masked images"
        raise UserError(f"{what} cannot merge tokens. Pass token_merging=0. Received: {recipe.token_merging}.")


def _warn_of_unused(recipe: Recipe, *, random: bool) -> None:
    if recipe.initialization != "normal" and not random:
        start = recipe.init or recipe.student
        logger.warning(
            "Does not use initialization=%s: the initial weights are those of %s.", recipe.initialization, start
        )


def _new(model: PreTrainedModel, recipe: Recipe) -> PreTrainedModel:
    """Returns the model with the random weights that the recipe asks for."""
    if recipe.initialization == "mimetic":
        trunk = model.base_model.trunk
        assert isinstance(trunk, VisionTransformer)
        initialize_mimetic(trunk)
    return model


def _configured(
    config: VisionTransformerConfig, classes: Sequence[str] | None, recipe: Recipe, size: tuple[int, int] | None
) -> VisionTransformerConfig:
    fields = {key: value for key, value in config.to_dict().items() if key not in _NOT_INHERITED}
    if size is not None:
        fields["image_size"] = size[0] if size[0] == size[1] else size
    fields["drop_path_rate"] = recipe.drop_path_rate
    fields["token_merging"] = {"r": recipe.token_merging} if recipe.token_merging else {}
    if classes is not None:
        fields["id2label"] = id2label_from_names(classes)
        fields["problem_type"] = recipe.data.problem_type
    return type(config)(**fields)


def _processor(
    config: VisionTransformerConfig, recipe: Recipe, mean: Sequence[float], std: Sequence[float]
) -> DeiTImageProcessor:
    return evaluation_processor(config.grid_image_size, crop_ratio=recipe.crop_ratio, mean=mean, std=std)


# --- from a checkpoint --------------------------------------------------------------------------------


def _start_from(
    checkpoint: Checkpoint,
    name: str | None,
    variant: Variant | None,
    classes: Sequence[str] | None,
    recipe: Recipe,
    size: tuple[int, int] | None,
) -> Student:
    """Builds a classifier of `classes`, or a masked-image model if `classes` is None."""
    found = config_of(checkpoint)
    refuse_larger_than_file(found, checkpoint.source.shapes, checkpoint.name)
    notes: list[str] = []
    if found.token_merging and found.token_merging != {"r": recipe.token_merging}:
        notes.append(
            f"The checkpoint merges tokens ({found.token_merging}), but this training has "
            f"token_merging={recipe.token_merging}."
        )
    config = found
    if name is not None and variant is not None:
        notes += require_architecture(found, variant_config(name), name, checkpoint.name)
        size = size or (variant.image_size, variant.image_size)
        fields = {key: value for key, value in found.to_dict().items() if key not in _NOT_INHERITED}
        config = (DeiTConfig if variant.distilled else ViTConfig)(**fields)
    own = _configured(config, classes, recipe, size)
    tensors = read_network(checkpoint.source, source=checkpoint.name)
    refuse_non_finite(tensors.items(), checkpoint.name)
    if classes is None and not any(tensor.startswith("decoder.") for tensor in tensors):
        own.encoder_stride = own.grid_patch_size[0]  # the decoder is new
    model = _build_masked(own, recipe) if classes is None else _build(own, recipe)
    model.name_or_path = str(checkpoint.path)
    count = next((tensors[head].shape[0] for head in _CLASS_HEADS if head in tensors), 0)
    rows, why = (None, ()) if classes is None else head_rows(_class_names(found), count, classes)
    report = initialize_from(model, tensors, found, head_rows=rows, source=str(checkpoint.name))
    mean, std, origin = _normalization(checkpoint)
    report = replace(report, notes=(*notes, *why, *report.notes, *origin))
    processor = _processor(own, recipe, mean, std)
    return Student(model=model, processor=processor, report=report, classes=tuple(classes or ()))


def _class_names(config: VisionTransformerConfig) -> list[str] | None:
    names = names_in_order(config.id2label)
    return None if names == [f"LABEL_{i}" for i in range(len(names))] else names


def _normalization(checkpoint: Checkpoint) -> tuple[Sequence[float], Sequence[float], tuple[str, ...]]:
    """Returns mean and std of a checkpoint's preprocessing, and notes about them."""
    path = checkpoint.path
    if path is not None and (path / PREPROCESSOR_NAME).is_file():
        processor = read_image_processor(path)
        return processor.channel_mean, processor.channel_std, ()
    cfg = folder_values(checkpoint).get("pretrained_cfg")
    if isinstance(cfg, Mapping) and "mean" in cfg and "std" in cfg:
        return cfg["mean"], cfg["std"], ()
    return IMAGENET_MEAN, IMAGENET_STD, ("The checkpoint has no normalization; ImageNet's is used, as in the paper.",)
