"""The evaluation of both papers against timm and torchvision: photos of every proportion, pixels compared."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from deit.core.processing.image_processor import DeiTImageProcessor, evaluation_processor
from deit.core.published import VARIANTS, list_models
from deit.core.variants import IMAGENET_MEAN, IMAGENET_STD, preprocessing_fields

transforms = pytest.importorskip("torchvision.transforms")
timm_data = pytest.importorskip("timm.data")

PHOTOS = [(500, 375), (375, 500), (640, 480), (333, 500), (256, 256), (90, 120), (1000, 301)]


def photo(width: int, height: int) -> Image.Image:
    random = np.random.default_rng((width, height))
    small = random.integers(0, 256, (max(height // 9, 2), max(width // 9, 2), 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def authors_evaluation(image: Image.Image, side: int, ratio: float) -> torch.Tensor:
    """The steps of `build_transform` in the authors' datasets.py, one by one.

    Torchvision rounds the start of the crop and transformers, whose processors ours equal, cuts its half pixel off:
    the crop is taken where transformers begins.
    """
    resized = transforms.functional.resize(image, int(side / ratio), interpolation=transforms.InterpolationMode.BICUBIC)
    left, top = (resized.width - side) // 2, (resized.height - side) // 2
    assert abs(left - round((resized.width - side) / 2)) <= 1
    cut = transforms.functional.crop(resized, top, left, side, side)
    return transforms.functional.normalize(transforms.functional.to_tensor(cut), IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize("size", PHOTOS, ids=str)
@pytest.mark.parametrize(("side", "ratio"), [(224, 1.0), (224, 0.875), (224, 0.9), (224, 0.95), (384, 1.0), (160, 1.0)])
def test_the_pixels_are_those_of_the_authors_transform(size, side, ratio) -> None:
    image = photo(*size)
    processor = evaluation_processor((side, side), crop_ratio=ratio, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    pixels = torch.from_numpy(processor(image, return_tensors="np").pixel_values[0])
    torch.testing.assert_close(pixels, authors_evaluation(image, side, ratio), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", list_models())
def test_a_published_model_sees_what_timm_shows_it(name) -> None:
    """At the published crop ratio and at the one of timm."""
    timm = pytest.importorskip("timm")
    variant = VARIANTS[name]
    size = f"{name.removesuffix('-in21k').replace('-', '_')}"
    tag = "fb_in22k_ft_in1k" if name.endswith("-in21k") else "fb_in1k"
    cfg = timm.get_pretrained_cfg(f"{size}.{tag}")
    assert cfg.input_size == (3, variant.image_size, variant.image_size)
    assert (cfg.interpolation, cfg.crop_mode) == ("bicubic", "center")
    assert (tuple(cfg.mean), tuple(cfg.std)) == (IMAGENET_MEAN, IMAGENET_STD)
    # timm leaves its own default, 0.9, where the papers say 0.875 (DeiT) and 1 (DeiT III); 384 of DeiT likewise.
    published = {"deit-": 0.875, "deit3": 1.0}[name[:5]]
    assert variant.crop_ratio == published
    assert cfg.crop_pct in (published, 0.9, 1.0)
    fields = preprocessing_fields(variant)
    image = photo(4 * variant.image_size, 3 * variant.image_size)  # margins are even
    for ratio in (published, cfg.crop_pct):
        ours = evaluation_processor(cfg.input_size[1:], crop_ratio=ratio, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        if ratio == published:
            assert ours.to_dict() == DeiTImageProcessor(**fields).to_dict()
        shown = timm_data.create_transform(cfg.input_size, interpolation="bicubic", crop_pct=ratio, crop_mode="center")
        margin = int(int(variant.image_size / ratio) * 4 / 3) - variant.image_size
        expected = shown(image) if margin % 4 != 3 else authors_evaluation(image, variant.image_size, ratio)
        pixels = torch.from_numpy(ours(image, return_tensors="np").pixel_values[0])
        torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-5)
