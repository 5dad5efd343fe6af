"""Resolves and checks the student, the weights and the image size that a training starts from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deit.core.config.config import DeiTConfig, ViTConfig
from deit.core.config.vision_transformer import VisionTransformerConfig
from deit.core.errors import UserError
from deit.core.files import at_home
from deit.core.published import VARIANTS, find_variant
from deit.core.variants import variant_config
from deit.core.weights.inferred_config import infer_config
from deit.models.weights.from_pretrained import Checkpoint, FileOptions, open_checkpoint
from deit.train.recipes.recipe import Recipe
from deit.train.students.timm import folder_values, timm_architecture

# Fields that a variant and a checkpoint must share.
_ARCHITECTURE = {
    "num_hidden_layers": "depth",
    "hidden_size": "embedding dimension",
    "intermediate_size": "MLP width",
    "num_attention_heads": "number of attention heads",
    "patch_size": "patch size",
    "num_channels": "number of channels",
}

_TIMM = "timm/"


def resolved_start(
    recipe: Recipe,
    *,
    student: str | None = None,
    init: str | Path | None = None,
    image_size: int | None = None,
    teachers: Sequence[str] = (),
    open_weights: bool = False,
) -> Recipe:
    """Returns the recipe with the given student, weights, image size and teachers, which override its own.

    * A `student` variant with another size than the recipe's student also sets the image size, unless `image_size` is
      given.
    * With `init` and without `student` the recipe's student is kept if the weights fit it. Otherwise the weights
      determine the architecture, and the student's name is empty.

    Args:
        recipe: Supplies the values that are not given.
        student: A variant or `timm/NAME`.
        init: Initial weights.
        image_size: Side of the input in pixels.
        teachers: Names or folders of teachers.
        open_weights: True downloads the weights if needed, and checks that they can be read.

    Raises:
        ValueError: The recipe needs the model of another recipe and none was given, the weights have another
            architecture than the student, or the student is unknown.
        OSError: The weights cannot be found, or the hub cannot be reached.
    """
    chosen: dict[str, Any] = {}
    if student is not None:
        chosen["student"] = student
        own, of_recipe = VARIANTS.get(student), VARIANTS.get(recipe.student)
        if own and of_recipe and own.image_size != of_recipe.image_size and image_size is None:
            image_size = own.image_size
    if init is not None:
        chosen["init"] = str(init)
    if image_size is not None:
        chosen |= {"image_size": image_size, "partial_patches": False}
    if teachers:
        chosen["teacher"] = tuple(teachers)
    start = _at_home(recipe.with_settings(chosen) if chosen else recipe)
    if start.init_made_by:
        raise UserError(
            f"The recipe starts from the model that the recipe {start.init_made_by} makes. Pass its model directory "
            "with init=."
        )
    _check_name(start)
    if not start.init:
        return start
    if init is None and student is not None:
        _require_weights_for(student, start.init)
    elif init is not None and student is None and start.student and not _fits(start.student, start.init):
        start = start.with_settings({"student": ""})
    if open_weights:
        checkpoint = _open(start.init, of_recipe=init is None)
        if start.student in VARIANTS:
            require_architecture(config_of(checkpoint), variant_config(start.student), start.student, checkpoint.name)
    return start


def _at_home(recipe: Recipe) -> Recipe:
    """Returns a recipe whose paths have the home folder in place of a ~."""
    return recipe.with_settings({"init": at_home(recipe.init), "teacher": tuple(map(at_home, recipe.teacher))})


def _check_name(recipe: Recipe) -> None:
    """Refuses unknown students, and names of weights as students, because their weights would be ignored."""
    student = recipe.student
    if student and not student.startswith(_TIMM):
        find_variant(student)
    architecture, _, tag = student.partition(".")
    if student.startswith(_TIMM) and tag and not recipe.init:
        raise UserError(
            f"{student} names weights ({tag}), but a student is named by its architecture and starts from random "
            f"weights. Pass --student {architecture} --init {student} to use the weights, or leave out the tag."
        )


def _open(init: str, *, of_recipe: bool) -> Checkpoint:
    try:
        return open_checkpoint(init, FileOptions())
    except OSError as error:
        if not of_recipe:
            raise
        raise OSError(
            f"The recipe starts from {init}. {error} Or pass other weights with --init, or --set init= for random "
            "weights."
        ) from error


def _require_weights_for(student: str, init: str) -> None:
    if not _fits(student, init):
        source = VARIANTS[student].source if student in VARIANTS else None
        example = f", such as {source}" if source else ""
        raise UserError(
            f"The recipe starts from {init}, which has another architecture than {student}. Pass weights of that "
            f"architecture with --init{example}, or --set init= for random weights."
        )


def _fits(student: str, init: str) -> bool:
    """Returns True if weights have the architecture of a student."""
    published = next((name for name, variant in VARIANTS.items() if variant.source == init), None)
    if student.startswith(_TIMM):
        return published is None and timm_architecture(open_checkpoint(init, FileOptions())) is not None
    wanted = variant_config(student)
    if published is not None:
        return not _differences(variant_config(published), wanted)
    checkpoint = open_checkpoint(init, FileOptions())
    return timm_architecture(checkpoint) is None and not _differences(config_of(checkpoint), wanted)


def config_of(checkpoint: Checkpoint) -> VisionTransformerConfig:
    """Returns the configuration of a checkpoint, read from its folder or inferred from its tensors.

    Raises:
        ValueError: The checkpoint has no architecture of this package.
    """
    values = folder_values(checkpoint)
    kinds: dict[Any, type[VisionTransformerConfig]] = {"deit": DeiTConfig, "vit": ViTConfig}
    model_type = values.get("model_type")
    if model_type in kinds:
        config: VisionTransformerConfig = kinds[model_type].from_dict(values)
        return config
    if model_type is not None:
        raise UserError(
            f"{checkpoint.path} holds a model of type {model_type!r}. A student can start from 'deit' or 'vit'."
        )
    return infer_config(checkpoint.source.shapes, values, source=checkpoint.name)


def _differences(found: VisionTransformerConfig, wanted: VisionTransformerConfig) -> list[str]:
    differing = [
        f"{word} {getattr(found, field)} and not {getattr(wanted, field)}"
        for field, word in _ARCHITECTURE.items()
        if _pair(getattr(found, field)) != _pair(getattr(wanted, field))
    ]
    if wanted.layer_scale_init and not found.layer_scale_init:
        differing.append("no layer scale")
    return differing


def require_architecture(
    found: VisionTransformerConfig, wanted: VisionTransformerConfig, name: str, source: object
) -> list[str]:
    """Checks that a checkpoint has the architecture of a variant. Returns notes about what it has in addition."""
    differing = _differences(found, wanted)
    if differing:
        raise UserError(
            f"{source} has another architecture than {name}: it has {', '.join(differing)}. Pass its own variant, or "
            "no student to use the architecture of the checkpoint."
        )
    if found.layer_scale_init and not wanted.layer_scale_init:
        return ["Layer scale and the kind of position embedding are those of the checkpoint (DeiT III)."]
    return []


def _pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)
