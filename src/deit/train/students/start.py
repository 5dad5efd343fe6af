"""What a training starts from: the recipe with what was chosen beside it, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deit.core.config.config import DeiTConfig, ViTConfig
from deit.core.config.config_file import read_config
from deit.core.config.vision_transformer import VisionTransformerConfig
from deit.core.errors import UserError
from deit.core.file_names import CONFIG_NAME
from deit.core.files import at_home
from deit.core.published import VARIANTS, find_variant
from deit.core.variants import variant_config
from deit.core.weights.inferred_config import infer_config
from deit.models.weights.from_pretrained import Checkpoint, FileOptions, open_checkpoint
from deit.train.recipes.recipe import Recipe
from deit.train.students.timm import timm_architecture

# What a named variant and a checkpoint must agree in.
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
    """Returns a recipe that says what a training starts from, with what was chosen beside it: that wins.

    * A `student` that was made for another size than the recipe's student brings its own size, unless `image_size` is
      given too.
    * With an `init` and no `student` the recipe's student is kept where the weights fit it; else the architecture is
      that of the weights, and the student's name is empty.

    Args:
        recipe: Its student, image size, weights and teacher are used where nothing else is given.
        student: A variant or `timm/NAME`.
        init: Weights to begin with.
        image_size: Side of the input in pixels.
        teachers: Whom to learn from.
        open_weights: True looks whether the weights are there and can be read, and fetches them from the hub.

    Raises:
        ValueError: The weights that the recipe starts from have to be given and were not, they are of another
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
            f"The recipe starts from the weights that the recipe {start.init_made_by} makes. Pass its model directory "
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
    """Refuses an unknown student, and to pass over the weights that a name seems to ask for."""
    student = recipe.student
    if student and not student.startswith(_TIMM):
        find_variant(student)
    architecture, _, tag = student.partition(".")
    if student.startswith(_TIMM) and tag and not recipe.init:
        raise UserError(
            f"{student} names weights ({tag}); a student's name is that of an architecture, which starts from random "
            f"weights. Pass --student {architecture} --init {student} to begin with them, or leave out the tag."
        )


def _open(init: str, *, of_recipe: bool) -> Checkpoint:
    try:
        return open_checkpoint(init, FileOptions())
    except OSError as error:
        if not of_recipe:
            raise
        raise OSError(
            f"The recipe starts from {init}. {error} Or pass other weights with --init, or --set init= to begin with "
            "random ones."
        ) from error


def _require_weights_for(student: str, init: str) -> None:
    if not _fits(student, init):
        source = VARIANTS[student].source if student in VARIANTS else None
        example = f", such as {source}" if source else ""
        raise UserError(
            f"The recipe starts from {init}, which is of another architecture than {student}. Pass weights of that "
            f"architecture with --init{example}, or --set init= to begin with random ones."
        )


def _fits(student: str, init: str) -> bool:
    """Whether weights have the sizes of a student."""
    published = next((name for name, variant in VARIANTS.items() if variant.source == init), None)
    if student.startswith(_TIMM):
        return published is None and timm_architecture(open_checkpoint(init, FileOptions())) is not None
    wanted = variant_config(student)
    if published is not None:
        return not _differences(variant_config(published), wanted)
    checkpoint = open_checkpoint(init, FileOptions())
    return timm_architecture(checkpoint) is None and not _differences(config_of(checkpoint), wanted)


def folder_values(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Returns the configuration of a checkpoint that is a folder; nothing of other ones."""
    path = checkpoint.path
    return read_config(path) if path is not None and (path / CONFIG_NAME).is_file() else {}


def config_of(checkpoint: Checkpoint) -> VisionTransformerConfig:
    """Returns the configuration of a checkpoint, read or worked out from its tensors.

    Raises:
        ValueError: It is of no architecture of this package.
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
    """Checks that a checkpoint has the sizes of a named variant; returns what it brings beyond them, in sentences."""
    differing = _differences(found, wanted)
    if differing:
        raise UserError(
            f"{source} is of another architecture than {name}: it has {', '.join(differing)}. Name its own "
            "variant, or none: the architecture is then the checkpoint's."
        )
    if found.layer_scale_init and not wanted.layer_scale_init:
        return ["Layer scale and the form of the position embedding are the checkpoint's (DeiT III)."]
    return []


def _pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)
