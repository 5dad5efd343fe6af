"""Guides the patch tokens of a student by the feature maps of a convnet teacher, which know what lies together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deit.core.errors import UserError
from deit.models.trunk.vision_transformer import VisionTransformer
from deit.runtime.devices import Placement
from deit.train.teachers.teacher import Teacher, TeacherEnsemble

_MOST_MAPS = 3
_EPSILON = 1e-6  # features that differ by less count as equal


def guided_trunk(student: nn.Module) -> VisionTransformer:
    """Returns the trunk of a student that can be guided.

    Raises:
        UserError: It is no transformer of this package, or merges tokens, which then have no place in the image.
    """
    trunk = getattr(getattr(student, "base_model", None), "trunk", None)
    if not isinstance(trunk, VisionTransformer):
        raise UserError(
            f"distillation.guidance needs a DeiT of this package as student. Received: {type(student).__name__}. "
            "Set distillation.guidance=0."
        )
    if trunk.config.token_merging:
        raise UserError(
            "distillation.guidance compares patches, and token_merging merges them. Set one of them to 0. "
            f"Received: token_merging {trunk.config.token_merging}."
        )
    return trunk


def stages(teacher: Teacher | TeacherEnsemble | None) -> dict[str, nn.Module]:
    """Returns the parts of a teacher whose outputs are its feature maps, by name, the finest map first.

    Raises:
        UserError: It is not one convnet of timm.
    """
    model = getattr(teacher, "model", None)
    info: Any = getattr(model, "feature_info", None)
    info = getattr(info, "info", info)
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    found = {each["module"]: modules[each["module"]] for each in info or () if each["module"] in modules}
    if len({each["reduction"] for each in info or () if each["module"] in found}) < 2:  # a transformer has one size
        name = "none" if teacher is None else teacher.name
        raise UserError(
            f"distillation.guidance needs one convnet of timm as teacher. Received: {name}. "
            "Set distillation.guidance=0."
        )
    return found


@contextmanager
def feature_maps(teacher: Teacher | TeacherEnsemble | None) -> Iterator[dict[str, Tensor]]:
    """Collects the feature maps of a teacher's first call in a block by name, the finest first, each (B, C, h, w).

    Args:
        teacher: None collects nothing.

    Raises:
        UserError: See `stages`.
    """
    maps: dict[str, Tensor] = {}
    parts = {} if teacher is None else stages(teacher)

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            maps.setdefault(name, output)

        return hook

    handles = [stage.register_forward_hook(keep(name)) for name, stage in parts.items()]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def tokens_of_blocks(trunk: VisionTransformer | None) -> Iterator[list[Tensor]]:
    """Collects what enters the first block of a trunk and what each block returns in a call, each (B, N, D).

    Args:
        trunk: See `VisionTransformer.kept_tokens`. None collects nothing.
    """
    tokens: list[Tensor] = []
    if trunk is None:
        yield tokens
        return
    trunk.kept_tokens = tokens
    try:
        yield tokens
    finally:
        trunk.kept_tokens = None


def useful_maps(maps: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Returns the last three maps that have several places.

    Args:
        maps: Of `feature_maps`.
    """
    several = [each for each in maps if each.ndim == 4 and each.shape[-2] * each.shape[-1] > 1]
    return tuple(several[-_MOST_MAPS:])


def guidance_loss(tokens: Sequence[Tensor], maps: Sequence[Tensor], trunk: VisionTransformer) -> Tensor:
    """Returns how much the relations of places differ between student and teacher; a scalar from 0 to 2.

    The loss is 1 - the cosine of student's and teacher's relations, mean over images and maps. Map k of n is compared
    with the output of the block at depth k / (n + 1); the finer one is averaged to the places of the other. Each image
    counts by itself, so the loss does not depend on how a step is divided. It has no parameters.

    That a small convnet guides the tokens inside a transformer: Li et al., "Locality Guidance for Improving Vision
    Transformers on Tiny Datasets", ECCV 2022 (arXiv 2207.10026), by a learned projection. Relations of places: Liu et
    al., "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019 (arXiv 1903.04197).

    Args:
        tokens: Of the student, see `tokens_of_blocks`.
        maps: Of `useful_maps`, (B, C, h, w).
        trunk: Of the student.
    """
    depth, grid = len(trunk.blocks), trunk.grid_size
    losses = []
    for number, features in enumerate(maps, start=1):
        block = max(round(depth * number / (len(maps) + 1)), 1)
        patches = tokens[block][:, trunk.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid)
        size = min(features.shape[-2], grid[0]), min(features.shape[-1], grid[1])
        ours, theirs = relations(patches, size), relations(features, size)
        losses.append(1.0 - F.cosine_similarity(ours.flatten(1), theirs.flatten(1), dim=1).mean())
    return torch.stack(losses).mean()


def relations(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns the cosines between the features of each two places of an image, its mean taken away: (B, P, P), fp32.

    Args:
        features: (B, C, h, w).
        size: (height, width) to which they are averaged before; P is its product.
    """
    with Placement(features.device).autocast():  # fp32
        features = features.float()
        if tuple(features.shape[-2:]) != size:
            features = F.adaptive_avg_pool2d(features, size)
        places = features.flatten(2).transpose(1, 2)
        directions = F.normalize(places - places.mean(1, keepdim=True), dim=-1, eps=_EPSILON)
        return directions @ directions.transpose(1, 2)
