"""A distilled model with random weights, and the same in transformers and timm, for the benchmarks of inference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import transformers
from torch import nn

import deit
from deit.inference.contract import Contract


@dataclass(frozen=True, kw_only=True)
class Size:
    """The size of a distilled model.

    Attributes:
        name: As in the published models' names.
        width: Embedding dimension D.
        heads: Attention heads of a block.
        depth: Blocks.
        side: Pixels of an image's side.
        patch: Pixels of a patch's side.
        classes: Number of classes.
    """

    name: str
    width: int
    heads: int
    depth: int = 12
    side: int = 224
    patch: int = 16
    classes: int = 1000

    @staticmethod
    def named(name: str) -> Size:
        """Returns the size of a published model; "test" is one for tests."""
        if name == "test":
            return Size(name=name, width=32, heads=2, depth=2, side=32, patch=8, classes=5)
        width, heads = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}[name]
        return Size(name=name, width=width, heads=heads)


def useful_work(size: Size) -> float:
    """Returns the multiplications and additions that our graph does for an image."""
    patches, width = (size.side // size.patch) ** 2, size.width
    tokens = patches + 2
    whole = 24 * tokens * width**2 + 4 * tokens**2 * width
    last = 2 * (24 * width**2 + 4 * size.heads * tokens * width)  # two tokens, no keys and values
    return 2 * patches * width * 3 * size.patch**2 + (size.depth - 1) * whole + last + 4 * width * size.classes


def write_model(size: Size, folder: Path) -> None:
    """Writes a model directory with random weights that are far from degenerate."""
    torch.manual_seed(0)
    config = deit.DeiTConfig(
        hidden_size=size.width,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.width,
        image_size=size.side,
        patch_size=size.patch,
        num_labels=size.classes,
        layer_norm_eps=1e-6,
    )
    model = deit.DeiTForImageClassificationWithTeacher(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    model.save_pretrained(folder)
    deit.DeiTImageProcessor(size=size.side, crop_size=size.side).save_pretrained(folder)


class Logits(nn.Module):
    """A model of transformers as a function from pixels to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixels).logits


def of_transformers(folder: Path) -> nn.Module:
    return Logits(transformers.DeiTForImageClassificationWithTeacher.from_pretrained(folder).eval())


def of_timm(size: Size, folder: Path) -> nn.Module:
    model = timm.create_model(
        "deit_base_distilled_patch16_224",
        embed_dim=size.width,
        depth=size.depth,
        num_heads=size.heads,
        img_size=size.side,
        patch_size=size.patch,
        num_classes=size.classes,
    )
    ours = deit.DeiTForImageClassificationWithTeacher.from_pretrained(folder).state_dict()
    names = {"cls_classifier": "head", "distillation_classifier": "head_dist"}
    state = {}
    for name, tensor in ours.items():
        part, _, rest = name.partition(".")
        state[f"{names[part]}.{rest}" if part in names else name.removeprefix("deit.trunk.")] = tensor
    model.load_state_dict(state)
    return model.eval()


def contract_of(size: Size) -> Contract:
    return Contract(
        processor=deit.DeiTImageProcessor(size=size.side, crop_size=size.side),
        label_names=[str(i) for i in range(size.classes)],
        head_names=("both", "class", "distillation"),
        image_size=(size.side, size.side),
    )
