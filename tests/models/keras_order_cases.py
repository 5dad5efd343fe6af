"""Model directories, an image, and what PyTorch answers, for the code in tests/keras/samples.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import deit
from tests.keras.samples import MODELS

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64,
    "image_size": 32, "patch_size": 16, "encoder_stride": 16, "num_labels": 5,
}  # fmt: skip


def write_order_cases(folder: Path) -> None:
    """Writes the directories of `MODELS`, `image.png` and `wanted.npz`.

    Args:
        folder: Exists.
    """
    processor = deit.DeiTImageProcessor(size=36, crop_size=32)
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(
        (60, 50), Image.Resampling.BICUBIC
    )
    image.save(folder / "image.png")
    pixels = processor(image, return_tensors="pt")
    wanted = {}
    for name, kind in MODELS.items():
        torch.manual_seed(0)
        model = getattr(deit, kind)(deit.DeiTConfig(**SIZES)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
        with torch.no_grad():
            output = model(**pixels)
        wanted[name] = output[0].numpy()
    np.savez(folder / "wanted.npz", **wanted)
