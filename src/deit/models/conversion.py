"""From any dialect to any other on disk, checked: the copy is opened again and must answer like the original."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deit.core.config.config_file import read_config
from deit.core.errors import UserError
from deit.core.file_names import CONFIG_NAME, PREPROCESSOR_NAME, WEIGHTS_NAME
from deit.core.files import replace_folder_content
from deit.core.model_directory import read_image_processor, read_known_images
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.core.published import find_variant
from deit.core.variants import preprocessing_fields, same_architecture, variant_config
from deit.core.weights.inferred_config import infer_config, timm_config
from deit.core.weights.names import HUGGINGFACE, ORIGINAL, TIMM, detect_dialect
from deit.models.deit import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
)
from deit.models.merging.switch import merge_tokens
from deit.models.pretrained import PreTrainedModel
from deit.models.timm.preprocessing import processor_from_timm, says_preprocessing, timm_preprocessing
from deit.models.vit import ViTForImageClassification, ViTForMaskedImageModeling, ViTModel
from deit.models.weights.from_pretrained import Checkpoint, FileOptions, build_and_fill, open_checkpoint
from deit.models.weights.loading import published_tensors, write_tensors
from deit.runtime.library_order import make_order_safe

TARGETS = (HUGGINGFACE, TIMM, ORIGINAL)

_CLASSES: dict[str, type[PreTrainedModel]] = {
    kind.__name__: kind
    for kind in (
        DeiTModel, DeiTForImageClassification, DeiTForImageClassificationWithTeacher, DeiTForMaskedImageModeling,
        ViTModel, ViTForImageClassification, ViTForMaskedImageModeling,
    )
}  # fmt: skip
# What the code of the paper and timm have an architecture for.
_PLAIN = (DeiTForImageClassificationWithTeacher, ViTForImageClassification)

_TOLERANCE = 1e-4  # of the largest output; timm's LayerNorm epsilon differs from Hugging Face's


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was converted.

    Attributes:
        model: Name of the model's class.
        source_dialect: Dialect of the source.
        target: Dialect written.
        path: What was written.
        largest_difference: Between the outputs of source and copy on random pixels.
        checked_with: What the copy was opened with.
        preprocessing: Where the preprocessing comes from, in words.
    """

    model: str
    source_dialect: str
    target: str
    path: Path
    largest_difference: float
    checked_with: str
    preprocessing: str


def convert(
    source: str | os.PathLike[str],
    destination: Path,
    *,
    to: str = HUGGINGFACE,
    variant: str | None = None,
    token_merging: int | None = None,
) -> Conversion:
    """Writes a checkpoint in another dialect and checks that outputs agree.

    Args:
        source: Folder, weight file or name on the hub, in any dialect.
        destination: Folder, or for "original" a file that ends in `.pth`; must not exist.
        to: "huggingface", "timm" or "original".
        variant: Short name of the architecture; None reads it off the source.
        token_merging: Number of tokens that each block of the copy merges, see `merge_tokens`; 0 for none, None as the
            source. Only "huggingface" has a place for it.

    Raises:
        FileExistsError: The destination exists.
        OSError: The source cannot be found.
        ValueError: The source is damaged or no DeiT, the target cannot express it, or outputs differ; nothing is then
            left behind.
    """
    if to not in TARGETS:
        raise UserError(f"Unknown dialect {to!r}. Known: {', '.join(TARGETS)}.")
    if destination.exists() or destination.is_symlink():
        raise FileExistsError(f"{destination} exists. Choose another name, or remove it first.")
    if to == ORIGINAL and destination.suffix != ".pth":
        raise UserError(f"The original dialect is one file: choose a name that ends in .pth. Received: {destination}.")
    checkpoint = open_checkpoint(source, FileOptions())
    model = _open_model(checkpoint, variant)
    if token_merging is not None:
        merge_tokens(model, token_merging)
    processor, origin = _preprocessing(checkpoint, model, variant)
    if to != HUGGINGFACE:
        _refuse_inexpressible(model, to)
    holder = destination if to != ORIGINAL else destination.with_name(f".{destination.name}.converting")
    with replace_folder_content(holder) as temporary:
        _write(model, processor, temporary, to)
        known = None if checkpoint.path is None or to == ORIGINAL else read_known_images(checkpoint.path)
        if known is not None:
            known.write(temporary)
        answer, checked_with = _answer_of_copy(temporary, model, to)
        difference = _largest_difference(_answer(model), answer)
    if to == ORIGINAL:
        os.replace(holder / "checkpoint.pth", destination)
        holder.rmdir()
    return Conversion(
        model=type(model).__name__,
        source_dialect=detect_dialect(checkpoint.source.shapes),
        target=to,
        path=destination,
        largest_difference=difference,
        checked_with=checked_with,
        preprocessing=origin if to != ORIGINAL else f"not written, this dialect has no place for it ({origin})",
    )


# --- opening ------------------------------------------------------------------------------------------


def _folder_values(checkpoint: Checkpoint) -> dict[str, Any]:
    path = checkpoint.path
    if path is None or not path.is_dir():
        return {}
    try:
        return read_config(path)
    except FileNotFoundError:
        return {}


def _open_model(checkpoint: Checkpoint, variant: str | None) -> PreTrainedModel:
    values = _folder_values(checkpoint)
    shapes = checkpoint.source.shapes
    if "model_type" in values:
        names = [name for name in values.get("architectures") or [] if name in _CLASSES]
        if not names:
            raise UserError(f"{checkpoint.name}: its configuration names no class of this package in architectures.")
        model_class = _CLASSES[names[0]]
        assert checkpoint.path is not None  # it has a configuration
        config = model_class.config_class.from_pretrained(checkpoint.path)
    else:
        inferred = infer_config(shapes, values, source=checkpoint.name)
        model_class = _CLASSES[(inferred.architectures or [""])[0]]
        config = inferred
        if variant is not None:
            config = variant_config(variant, id2label=inferred.id2label)
            if config.model_type != inferred.model_type:
                raise UserError(f"{checkpoint.name} has the model type {inferred.model_type!r}, {variant!r} has not.")
    arguments: dict[str, Any] = {}
    if model_class in (DeiTModel, ViTModel):
        arguments = {
            "add_pooling_layer": any(name.startswith("pooler.") for name in shapes),
            "use_mask_token": any(name.endswith("mask_token") for name in shapes),
        }
    model, info = build_and_fill(
        lambda: model_class(config, **arguments),
        checkpoint,
        dtype="auto",
        device_map=None,
        ignore_mismatched_sizes=False,
    )
    if info.missing_keys or info.unexpected_keys:
        lost = (info.missing_keys + info.unexpected_keys)[0]
        raise UserError(f"{checkpoint.name} does not fit {model_class.__name__} whole, because of {lost!r}.")
    assert isinstance(model, PreTrainedModel)
    return model


def _refuse_inexpressible(model: PreTrainedModel, to: str) -> None:
    if model.config.token_merging:
        raise UserError(
            f"{to} has no place for token merging, and would answer differently. Convert to huggingface, or pass "
            "token_merging=0 (--token-merging 0)."
        )
    if not _is_plain(model):
        raise UserError(f"{type(model).__name__} has tensors that {to} has no place for. Convert to huggingface.")


def _is_plain(model: PreTrainedModel) -> bool:
    if isinstance(model, _PLAIN):
        return model.config.num_labels > 0
    return isinstance(model, (DeiTModel, ViTModel)) and model.pooler is None and model.trunk.mask_token is None


# --- preprocessing ------------------------------------------------------------------------------------


def _preprocessing(
    checkpoint: Checkpoint, model: PreTrainedModel, variant: str | None
) -> tuple[DeiTImageProcessor | None, str]:
    path = checkpoint.path
    if path is not None and path.is_dir() and (path / PREPROCESSOR_NAME).is_file():
        return read_image_processor(path), f"that of {path}"
    cfg = _folder_values(checkpoint).get("pretrained_cfg")
    if says_preprocessing(cfg):
        size = model.config.grid_image_size
        return processor_from_timm(cfg, size), f"that of timm's configuration in {path}"  # type: ignore[arg-type]
    name = variant or same_architecture(model.config.to_dict())
    if name is None or (variant is None and find_variant(name).source is None):
        return None, "unknown: write a preprocessor_config.json before using the model"
    return DeiTImageProcessor(**preprocessing_fields(find_variant(name))), f"the paper's evaluation of {name}"


# --- writing and checking -----------------------------------------------------------------------------


def _write(model: PreTrainedModel, processor: DeiTImageProcessor | None, folder: Path, to: str) -> None:
    if to == HUGGINGFACE:
        model.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)
        return
    tensors = published_tensors(model.state_dict(), to)
    if to == ORIGINAL:
        torch.save({"model": {name: tensor.clone() for name, tensor in tensors.items()}}, folder / "checkpoint.pth")
        return
    values = timm_config(model.config, timm_preprocessing(processor))
    (folder / CONFIG_NAME).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    write_tensors(tensors, folder, most_bytes=2**63)
    assert (folder / WEIGHTS_NAME).is_file()


def _pixels(model: PreTrainedModel) -> Tensor:
    shape = (2, model.config.num_channels, *model.config.grid_image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.dtype)


@torch.no_grad()
def _answer(model: PreTrainedModel) -> Tensor:
    return model(_pixels(model), return_dict=False)[0]


@torch.no_grad()
def _answer_of_copy(folder: Path, model: PreTrainedModel, to: str) -> tuple[Tensor, str]:
    """Opens what was written by another way than it was written, where there is one."""
    if to == TIMM:
        try:
            make_order_safe()
            import timm
        except ModuleNotFoundError:
            pass
        else:
            copy: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval().to(model.dtype)
            pixels = _pixels(model)
            return (copy(pixels) if model.config.num_labels else copy.forward_features(pixels)), "timm"
    path = folder / "checkpoint.pth" if to == ORIGINAL else folder
    arguments: dict[str, Any] = {}
    if isinstance(model, (DeiTModel, ViTModel)):
        arguments = {
            "add_pooling_layer": model.pooler is not None,
            "use_mask_token": model.trunk.mask_token is not None,
        }
    config = None if to == HUGGINGFACE else model.config
    return _answer(type(model).from_pretrained(path, config=config, **arguments)), "deit"


def _largest_difference(one: Tensor, other: Tensor) -> float:
    difference = (one.float() - other.float()).abs().max().item()
    most = _TOLERANCE * max(1.0, one.float().abs().max().item())
    if one.dtype != torch.float32:
        most *= 100  # half precision
    if not difference <= most:
        raise UserError(f"The copy answers differently: by {difference:.2e}, where {most:.2e} is allowed.")
    return float(difference)
