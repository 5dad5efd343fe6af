"""Models that torchvision publishes, by the name `torchvision/NAME`: to teach, and to be scored."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from deit.core.errors import UserError
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.runtime.library_order import make_order_safe

_PREFIX = "torchvision/"
_INTERPOLATION = {"nearest": 0, "bilinear": 2, "bicubic": 3}  # Pillow's numbers


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """A model with its published weights.

    Attributes:
        model: From pixels to logits.
        processor: What the weights were scored with.
        label_names: Of the classes, in the order of the logits; None where torchvision does not say them.
    """

    model: Any
    processor: DeiTImageProcessor
    label_names: list[str] | None


def torchvision_name(name_or_path: str | os.PathLike[str]) -> str | None:
    """Returns NAME of the text `torchvision/NAME`, unless something of that path is on this machine; else None."""
    if not isinstance(name_or_path, str) or not name_or_path.startswith(_PREFIX) or os.path.exists(name_or_path):
        return None
    return name_or_path.removeprefix(_PREFIX) or None


def open_torchvision(name: str) -> PublishedModel:
    """Opens a classifier with the weights that torchvision takes for its name, which it downloads.

    Raises:
        UserError: torchvision has no such model.
        ConnectionError: The weights cannot be fetched.
    """
    from urllib.error import URLError

    make_order_safe()
    from torchvision.models import get_model, get_model_weights

    try:
        weights = get_model_weights(name).DEFAULT
        model = get_model(name, weights=weights)
    except ValueError as error:
        raise UserError(f"torchvision has no model {name!r}. See torchvision.models.list_models().") from error
    except URLError as error:
        raise ConnectionError(
            f"The published weights of torchvision/{name} cannot be fetched ({error.reason}). Fetch them where "
            "there is a network, and put them in torch's cache folder."
        ) from error
    processor = processor_from_torchvision(weights.transforms())
    return PublishedModel(model=model, processor=processor, label_names=weights.meta.get("categories"))


def processor_from_torchvision(preset: Any) -> DeiTImageProcessor:
    """Returns a processor that does what the preprocessing of published weights does.

    Where an odd number of rows or columns is cut off, torchvision may leave the other one of the two middles.

    Args:
        preset: torchvision's `ImageClassification`.
    """
    crop = preset.crop_size[0]
    return DeiTImageProcessor(
        size={"shortest_edge": preset.resize_size[0]},
        crop_size={"height": crop, "width": crop},
        resample=_INTERPOLATION[preset.interpolation.value],
        image_mean=list(preset.mean),
        image_std=list(preset.std),
    )
