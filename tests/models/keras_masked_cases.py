"""What transformers' masked-image models compute, written to a file for the tests of Keras, which run without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import deit
from deit.data.masks import BlockMasks
from tests.keras.model_cases import BATCH, MASKED_MODELS, MODELS, fields_of, pixels


def write_masked_cases(folder: Path) -> None:
    """Writes `masked_images.npz`: masks, losses, reconstructions and gradients of every weight.

    Args:
        folder: Holds the models that `write_model_cases` wrote; transformers opens them.
    """
    import transformers

    values = {}
    for name, (block, kind) in MASKED_MODELS.items():
        model_class = MODELS[name][0]
        side, patch = fields_of(name)["image_size"], fields_of(name)["patch_size"]
        drawn, random = BlockMasks((side, side), (patch, patch), mask_patch=block), np.random.RandomState(4)
        mask = np.stack([drawn.draw(random) for _ in range(BATCH)]).astype(kind)
        model = getattr(transformers, model_class).from_pretrained(folder / name, attn_implementation="eager").eval()
        output = model(torch.from_numpy(pixels(name)), bool_masked_pos=torch.from_numpy(mask))
        output.loss.backward()
        values[f"{name}/mask"] = mask
        for field, value in output.items():
            values[f"{name}/{field}"] = value.detach().numpy()
        # Gradients travel as a file of weights, which gives them this package's names.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.grad)
        model.save_pretrained(folder / f"{name} gradients")
        read = getattr(deit, model_class).from_pretrained(folder / f"{name} gradients")
        for weight, parameter in read.named_parameters():
            values[f"{name}/gradient/{weight}"] = parameter.detach().numpy()
    np.savez(folder / "masked_images.npz", **values)
