"""The preprocessing that timm writes into a model's `pretrained_cfg`, as a processor, and the reverse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from deit.core.processing.image_processor import DeiTImageProcessor

_INTERPOLATION = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}


def says_preprocessing(cfg: object) -> bool:
    """Whether a `pretrained_cfg` says how images are prepared, in a way that a processor can follow."""
    return isinstance(cfg, Mapping) and cfg.get("crop_mode", "center") in ("center", "squash") and "mean" in cfg


def processor_from_timm(cfg: Mapping[str, Any], size: tuple[int, int]) -> DeiTImageProcessor:
    """Returns a processor that does what timm's evaluation does.

    Args:
        cfg: A `pretrained_cfg`, see `says_preprocessing`.
        size: (height, width) of the model's input in pixels.
    """
    height, width = size
    ratio = float(cfg.get("crop_pct") or 0.875)
    if cfg.get("crop_mode", "center") == "squash" or height != width:
        resized = {"height": math.floor(height / ratio), "width": math.floor(width / ratio)}
    else:
        resized = {"shortest_edge": math.floor(height / ratio)}
    return DeiTImageProcessor(
        size=resized,
        crop_size={"height": height, "width": width},
        resample=_INTERPOLATION.get(str(cfg.get("interpolation", "bicubic")), 3),
        image_mean=list(cfg["mean"]),
        image_std=list(cfg["std"]),
    )


def timm_preprocessing(processor: DeiTImageProcessor | None) -> dict[str, Any]:
    """Returns the entries of timm's `pretrained_cfg` that say what a processor does; none of no processor."""
    if processor is None:
        return {}
    size, crop = processor.size, processor.crop_size
    target = crop["height"] if processor.do_center_crop else size.get("height", size.get("shortest_edge"))
    resized = size.get("shortest_edge", size.get("height"))
    names = {number: name for name, number in _INTERPOLATION.items()}
    return {
        "interpolation": names.get(int(processor.resample), "bicubic"),
        "crop_pct": target / resized,
        "crop_mode": "center" if "shortest_edge" in size else "squash",
        "mean": list(processor.image_mean),
        "std": list(processor.image_std),
    }
