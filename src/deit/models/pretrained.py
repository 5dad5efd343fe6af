"""Loading and saving: a model directory in the published Hugging Face layout, in both directions."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deit.core.checkpoint import WEIGHTS_NAME, Part, file_names, find_weights, layout, match_prefix
from deit.core.configuration import DeiTConfig
from deit.core.files import replace_folder_content
from deit.models.vision_transformer import VisionTransformer, initialize_layer

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound="DeiTPreTrainedModel")

# What a task may bring anew when it starts from a checkpoint of another task. Everything else must be there.
_NEW_PARTS = ("classifier.", "cls_classifier.", "distillation_classifier.", "decoder.", "pooler.", "mask_token")


@dataclass(kw_only=True)
class LoadingInfo:
    """What did not match when a checkpoint was loaded, in published names.

    Attributes:
        missing_keys: Tensors the model has and the file has not; they keep their initial values.
        unexpected_keys: Tensors of the file that the model has no place for.
        mismatched_keys: (name, shape in the file, shape in the model), of tensors that kept their initial values.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]
    mismatched_keys: list[tuple[str, tuple[int, ...], tuple[int, ...]]]


class DeiTPreTrainedModel(nn.Module):
    """What all DeiT models share: a configuration, initial values, loading and saving.

    Args:
        config: Sizes, rates and labels.

    Raises:
        TypeError: `config` is not a `DeiTConfig`.
    """

    config_class = DeiTConfig
    base_model_prefix = "deit"
    main_input_name = "pixel_values"

    def __init__(self, config: DeiTConfig) -> None:
        super().__init__()
        if not isinstance(config, DeiTConfig):
            raise TypeError(f"{type(self).__name__} needs a DeiTConfig. Received: {type(config).__name__}.")
        config.validate()
        self.config = config

    def initialize(self) -> None:
        """Draws new values for every parameter."""
        for module in self.modules():
            initialize_layer(module, self.config.initializer_range)
        for module in self.modules():
            if isinstance(module, VisionTransformer):
                module.initialize()

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters."""
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Returns the number of parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    # --- saving --------------------------------------------------------------------------------------

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *, state_dict: Mapping[str, Tensor] | None = None
    ) -> None:
        """Writes `config.json` and `model.safetensors` into a folder; transformers can open it.

        A reader sees the old files or the new ones, never a part of one.

        Args:
            save_directory: Folder, made if missing.
            state_dict: Weights to write in place of the model's own, under the names of `self.state_dict()`.

        Raises:
            NotADirectoryError: There is a file of that name.
        """
        folder = Path(save_directory)
        if folder.is_file():
            raise NotADirectoryError(f"{folder} is a file. Pass a folder to save into.")
        config = type(self.config).from_dict(self.config.to_dict())
        config.architectures = [type(self).__name__]
        config.dtype = str(self.dtype).removeprefix("torch.")
        tensors = published_tensors(self.state_dict() if state_dict is None else state_dict, self.base_model_prefix)
        with replace_folder_content(folder) as temporary:
            config.save_pretrained(temporary)
            save_file(tensors, temporary / WEIGHTS_NAME, metadata={"format": "pt"})

    # --- loading -------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *model_args: Any,
        config: DeiTConfig | None = None,
        dtype: torch.dtype | str | None = "auto",
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Opens a model directory; the model is returned in evaluation mode.

        Heads that the file does not hold start anew and are named in a warning; any other missing tensor is an
        error.

        Args:
            pretrained_model_name_or_path: Model directory, as `save_pretrained` or transformers writes it.
            *model_args: Passed to the constructor.
            config: Replaces the directory's configuration.
            dtype: A torch type or its name; "auto" takes the file's, None float32.
            ignore_mismatched_sizes: Let tensors of another shape (a new number of classes) start anew.
            output_loading_info: Also return what did not match, as a dict.
            **kwargs: Fields of the configuration that override it; others are passed to the constructor.

        Returns:
            The model, or (model, loading info).

        Raises:
            FileNotFoundError: The folder or a file of it is missing.
            ValueError: The file is damaged or belongs to another architecture, or shapes differ.
        """
        folder = Path(pretrained_model_name_or_path)
        weights = find_weights(folder)
        if "torch_dtype" in kwargs:
            dtype = kwargs.pop("torch_dtype")
        if config is None:
            config, kwargs = cls.config_class.from_pretrained(folder, return_unused_kwargs=True, **kwargs)
        try:
            model = cls(config, *model_args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{cls.__name__} does not know an argument: {error}.") from error
        tensors = _read_tensors(weights)
        model.to(_resolve_dtype(dtype, tensors)).eval()  # before the values, so that float64 keeps its digits
        info = load_published_tensors(model, tensors, ignore_mismatched_sizes=ignore_mismatched_sizes, source=weights)
        return (model, vars(info)) if output_loading_info else model


def published_tensors(state_dict: Mapping[str, Tensor], base_model_prefix: str) -> dict[str, Tensor]:
    """Returns the weights of a model under their published names, query, key and value apart."""
    published = {}
    for name, tensor in state_dict.items():
        names = file_names(name, f"{base_model_prefix}.")
        for file_name, piece in zip(names, tensor.chunk(len(names)), strict=True):
            published[file_name] = piece.detach().cpu().contiguous()
    return published


def load_published_tensors(
    model: DeiTPreTrainedModel,
    tensors: Mapping[str, Tensor],
    *,
    ignore_mismatched_sizes: bool = False,
    source: object = "the checkpoint",
) -> LoadingInfo:
    """Copies tensors under published names into a model.

    Args:
        model: Receives the values.
        tensors: Name in the file -> tensor.
        ignore_mismatched_sizes: See `from_pretrained`.
        source: Named in messages.

    Raises:
        ValueError: A tensor other than a head is missing, or shapes differ.
    """
    prefix = f"{model.base_model_prefix}."
    state = model.state_dict()
    table = layout(state, prefix)
    names = match_prefix(tensors, table, prefix)
    found = {names[n]: t for n, t in tensors.items() if names[n] in table}
    mismatched = []
    for name, tensor in list(found.items()):
        expected = _part_shape(state[table[name].name], table[name])
        if tensor.shape != expected:
            mismatched.append((name, tuple(tensor.shape), tuple(expected)))
            del found[name]
    missing = [n for n in table if n not in found and n not in {m[0] for m in mismatched}]
    _refuse_missing_trunk(missing, type(model).__name__, source)
    if mismatched and not ignore_mismatched_sizes:
        shown = "; ".join(f"{n}: {a} in the file, {b} in the model" for n, a, b in mismatched[:3])
        raise ValueError(
            f"{len(mismatched)} tensors of {source} have another shape than the model's ({shown}). "
            "Pass ignore_mismatched_sizes=True to start them anew."
        )
    with torch.no_grad():
        for name, tensor in found.items():
            part = table[name]
            state[part.name].chunk(part.count)[part.index].copy_(tensor)
    unexpected = [n for n in tensors if names[n] not in table]
    for text, keys in (("start anew", missing + [m[0] for m in mismatched]), ("are not used", unexpected)):
        if keys:
            logger.warning("%s: of %s, these tensors %s: %s", type(model).__name__, source, text, ", ".join(keys))
    return LoadingInfo(missing_keys=missing, unexpected_keys=unexpected, mismatched_keys=mismatched)


def _part_shape(tensor: Tensor, part: Part) -> torch.Size:
    return tensor.chunk(part.count)[part.index].shape


def _refuse_missing_trunk(missing: list[str], model_name: str, source: object) -> None:
    lost = [n for n in missing if not any(p in n for p in _NEW_PARTS)]
    if lost:
        raise ValueError(
            f"{source} lacks {len(lost)} tensors that {model_name} needs, such as {lost[0]!r}. "
            "Is it a checkpoint of another architecture or depth?"
        )


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as safetensors ({error}). It may be truncated.") from error


def _resolve_dtype(dtype: torch.dtype | str | None, tensors: Mapping[str, Tensor]) -> torch.dtype:
    if dtype == "auto":
        return next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32)
    if dtype is None:
        return torch.float32
    resolved = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(resolved, torch.dtype):
        raise ValueError(f"dtype must be a torch type, its name or 'auto'. Received: {dtype!r}.")
    return resolved
