"""Opens a classifier of timm with its preprocessing and the names of its classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deit.core.config.config_file import read_config
from deit.core.errors import UserError
from deit.core.model_directory import read_image_processor
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.models.timm.models import open_timm_folder, published_label_names
from deit.models.timm.preprocessing import processor_from_timm, says_preprocessing


@dataclass(frozen=True, kw_only=True, eq=False)
class TimmClassifier:
    """A classifier of timm.

    Attributes:
        model: From pixels (B, 3, H, W) to logits (B, K).
        label_names: Class names in the order of the logits.
        processor: Its preprocessing.
        image_size: (height, width) of the pixels that it was made for; None if unknown.
    """

    model: Any
    label_names: list[str]
    processor: DeiTImageProcessor
    image_size: tuple[int, int] | None


def open_timm_classifier(folder: Path, *, published: bool = False) -> TimmClassifier:
    """Opens a model directory of timm.

    Args:
        folder: The model directory.
        published: The weights are published by timm. Their preprocessing is that of timm's configuration, and 1000
            classes are those of ImageNet, whose names the files do not hold.

    Raises:
        FileNotFoundError: A file is missing.
        UserError: A file is damaged, or timm's preprocessing is of an unknown kind.
    """
    model: Any = open_timm_folder(folder)
    names = read_config(folder).get("label_names") or (published and published_label_names(model))
    cfg = model.pretrained_cfg
    size = cfg.get("input_size")
    image_size = None if size is None else (int(size[1]), int(size[2]))
    if not published:
        processor = read_image_processor(folder)
    elif image_size is not None and says_preprocessing(cfg):
        processor = processor_from_timm(cfg, image_size)
    else:
        raise UserError(f"timm preprocesses images for {folder} in a way that is not known here. Choose another.")
    return TimmClassifier(
        model=model,
        label_names=names or [str(i) for i in range(model.num_classes)],
        processor=processor,
        image_size=image_size,
    )
