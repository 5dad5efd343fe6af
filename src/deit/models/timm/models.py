"""Models of timm, filled by this package's readers: timm builds them, and never opens a weight file itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from deit.core.config.config_file import read_config
from deit.core.errors import UserError, shown
from deit.core.hub import local_path
from deit.core.weights.files import find_weights
from deit.core.weights.plan import MOST_NEW_NUMBERS
from deit.models.weights.finiteness import refuse_non_finite
from deit.models.weights.model_names import published_cfg
from deit.models.weights.pickled_weights import read_pickle
from deit.models.weights.tensor_source import TensorSource, open_source, read_tensors
from deit.runtime.library_order import make_order_safe

# What of `pretrained_cfg` would make timm fetch or open something by itself.
_SOURCES = ("url", "file", "hf_hub_id", "hf_hub_filename", "state_dict", "source", "custom_load")
_MOST_NUMBER, _MOST_VALUES = 65_536, 1_000  # of an argument; in all
# What timm raises for arguments, files and tensors that it cannot use.
_ERRORS = (RuntimeError, TypeError, AttributeError, KeyError, IndexError, AssertionError, ValueError, ZeroDivisionError)


def create_timm(name: str, **options: Any) -> nn.Module:
    """Builds a timm model without weights.

    Args:
        name: A timm architecture.
        **options: Passed to `timm.create_model`.

    Raises:
        ValueError: timm has no such model, or refuses an option.
    """
    make_order_safe()
    import timm

    try:
        if not timm.is_model(name):  # such as "hf-hub:...", which would fetch something
            raise UserError("no such architecture")
        model: nn.Module = timm.create_model(name, **options)
    except _ERRORS as error:
        reason = str(error).strip(chr(39)).partition("\n")[0][:200]
        raise UserError(f"timm cannot build {shown(name)} ({reason}). See timm.list_models().") from error
    return model


def open_timm_folder(folder: Path) -> nn.Module:
    """Opens a model directory of timm: `config.json` and `model.safetensors` or `pytorch_model.bin`.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, holds code, or does not belong to the other; or weights are NaN or infinite.
    """
    values = read_config(folder)
    name, arguments = values.get("architecture"), values.get("model_args") or {}
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise UserError(f"{folder} names no architecture of timm. Received: {shown(name)}.")
    nested = values.get("pretrained_cfg")
    cfg = dict(nested) if isinstance(nested, Mapping) else {k: v for k, v in values.items() if k != "model_args"}
    cfg |= {key: values[key] for key in ("num_classes", "label_names", "label_descriptions") if key in values}
    weights = find_weights(folder)
    source = open_source(weights)
    counts = {shown(part["num_classes"]) for part in (cfg, arguments) if part.get("num_classes") is not None}
    if len(counts) > 1:  # timm would start the classifier anew
        raise UserError(f"The configuration in {folder} names two numbers of classes: {' and '.join(sorted(counts))}.")
    if cfg.get("num_classes") is not None:
        arguments = {**arguments, "num_classes": cfg["num_classes"]}
    refuse_large_timm(name, {**arguments, "pretrained_cfg": _own(cfg)}, source, weights.main)
    return _filled(name, read_tensors(source), {**cfg, "architecture": name}, arguments, weights.main)


def open_published_timm(name: str) -> nn.Module:
    """Opens published weights of timm; they are fetched as any model of the hub is.

    Args:
        name: timm's, with or without tag: "resnet50.a1_in1k".

    Raises:
        ValueError: timm has no such model, or none with weights; or a file is damaged or holds code.
        ConnectionError: They cannot be fetched.
    """
    cfg = published_cfg(name)
    try:
        if cfg.hf_hub_id and not cfg.hf_hub_filename:
            return open_timm_folder(local_path(cfg.hf_hub_id))
        file = _fetched(cfg)
    except OSError as error:
        raise ConnectionError(
            f"The published weights of timm/{name} cannot be fetched ({error}). Save them as a folder where there is a "
            "network (timm.models.save_for_hf) and pass that folder."
        ) from error
    weights = find_weights(file)
    tensors = read_tensors(open_source(weights)) if not weights.pickled else read_pickle(file)
    return _filled(name, tensors, cfg.to_dict(), {}, file)


def imagenet_labels() -> list[str]:
    """Returns the 1000 classes of ImageNet-1k in the order that all published models have, by WordNet identity."""
    make_order_safe()
    from timm.data.imagenet_info import ImageNetInfo

    names: list[str] = ImageNetInfo("imagenet-1k").label_names()
    return names


def published_label_names(model: Any) -> list[str] | None:
    """Returns the class names of published weights of timm, whose files do not write ImageNet's; None if unknown."""
    make_order_safe()
    from timm.data.imagenet_info import infer_imagenet_subset

    named: list[str] | None = model.pretrained_cfg.get("label_names")
    if named is None and infer_imagenet_subset(model) == "imagenet-1k":
        return imagenet_labels()
    return named


def _fetched(cfg: Any) -> Path:
    if cfg.hf_hub_id:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(cfg.hf_hub_id, cfg.hf_hub_filename))
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(cfg.url).path).name
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(cfg.url, str(file), progress=False)
    return file


def _filled(
    name: str, tensors: dict[str, Tensor], cfg: Mapping[str, Any], arguments: Mapping[str, Any], source: object
) -> nn.Module:
    """Lets timm build a model and put tensors into it: it knows the names of older files of its own."""
    make_order_safe()
    import timm

    if not timm.is_model(name):
        raise UserError(f"timm has no architecture {shown(name)}, which {source} is for. See timm.list_models().")
    refuse_non_finite(tensors.items(), source)
    try:
        model: Any = timm.create_model(
            name, pretrained=True, pretrained_cfg={**_own(cfg), "state_dict": tensors}, **arguments
        )
    except _ERRORS as error:
        reason = str(error).strip(chr(39)).partition("\n")[0][:200]
        raise UserError(f"timm cannot open {source} as {shown(name)} ({reason}). It may be damaged.") from error
    for held in (model.pretrained_cfg, getattr(model, "default_cfg", {})):
        held.pop("state_dict", None)  # it would keep the weights twice
    filled: nn.Module = model
    return filled


def _own(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a `pretrained_cfg` says of the model itself, such as its channels, and not where weights are."""
    return {key: value for key, value in cfg.items() if key not in _SOURCES}


def refuse_large_timm(name: str, arguments: Mapping[str, Any], source: TensorSource, main: object) -> None:
    """Checks, before a model is built, that its arguments ask for no more than its weight file holds.

    Args:
        name: timm's architecture.
        arguments: From a configuration, with its `pretrained_cfg`, from which timm takes sizes too.
        source: The weights.
        main: Their file, for messages.

    Raises:
        ValueError: They ask for more.
    """
    held = sum(math.prod(shape) for shape in source.shapes.values())
    values = list(_numbers(arguments))
    if len(values) > _MOST_VALUES or any(not abs(number) <= _MOST_NUMBER for _, number in values):
        raise UserError(
            f"The arguments of {shown(name)} beside {main} are larger than any model's. They may be damaged."
        )
    blocks = sum(number for key, number in values if any(word in key for word in ("depth", "layers", "blocks")))
    if blocks > len(source.shapes):
        raise UserError(
            f"The configuration asks for {blocks:.0f} blocks, and {main} holds {len(source.shapes)} tensors."
        )
    try:
        with torch.device("meta"):
            model = create_timm(name, **arguments)
    except (UserError, NotImplementedError):
        return  # it cannot be built without memory; the real attempt says why
    needed = sum(parameter.numel() for parameter in model.parameters())
    if needed > held + MOST_NEW_NUMBERS:
        raise UserError(
            f"The configuration asks for {needed:,} numbers, and {main} holds {held:,}. It belongs to other weights, "
            "or is damaged."
        )


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, (int, float)):
        yield key, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _numbers(item, f"{key}.{name}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item, key)
