"""`from_pretrained`, step by step: find the files, check them, build the model empty, fill it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deit.core.errors import UserError, WrongStateError, WrongTypeError, shown
from deit.core.hub import HubOptions, local_path
from deit.core.weights.files import find_weights
from deit.core.weights.plan import NO_QUANTIZATION, LoadingInfo, resolve_config
from deit.models.trunk.construction import EmptyParts, without_initial_values
from deit.models.trunk.split_qkv import split_model
from deit.models.trunk.vision_transformer import VisionTransformer
from deit.models.weights.loading import load_tensors, resolve_device, resolve_dtype
from deit.models.weights.model_names import published_place
from deit.models.weights.tensor_source import DictSource, TensorSource, open_source

# Arguments that are accepted because callers of transformers pass them, and what they would have to be.
_WITHOUT_EFFECT = (
    "trust_remote_code",
    "code_revision",
    "adapter_kwargs",
    "_from_auto",
    "_from_pipeline",
    "_fast_init",
    "offload_folder",
    "offload_state_dict",
)
_REFUSED = {
    **dict.fromkeys(("quantization_config", "load_in_8bit", "load_in_4bit"), NO_QUANTIZATION),
    "from_tf": "TensorFlow checkpoints are not read. Save the weights as model.safetensors first.",
    "from_flax": "Flax checkpoints are not read. Save the weights as model.safetensors first.",
}


FILE_ARGUMENTS = ("state_dict", "subfolder", "variant", "use_safetensors")

# For models that answer for as long as a process lives: predictors, teachers, servers. Views of the file would change
# when somebody writes into it, and end the process (SIGBUS) when it gets shorter. It costs nothing to speak of: what
# answers reads every weight anyway.
OWN_MEMORY = {"low_cpu_mem_usage": False}


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """Which files to take.

    Attributes:
        state_dict: Tensors to take in place of files.
        subfolder: Folder inside the model's.
        variant: As in `model.VARIANT.safetensors`.
        use_safetensors: True refuses pickles, False refuses safetensors, None prefers safetensors.
        hub: How to ask the hub.
    """

    state_dict: Mapping[str, Tensor] | None = None
    subfolder: str = ""
    variant: str | None = None
    use_safetensors: bool | None = None
    hub: HubOptions = field(default_factory=HubOptions)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose files were found and checked.

    Attributes:
        path: Folder or file; None for tensors given without one.
        source: Its tensors.
        name: What to call it in messages.
    """

    path: Path | None
    source: TensorSource
    name: object


def drop_arguments_without_effect(kwargs: dict[str, Any]) -> None:
    """Removes arguments of transformers that change nothing here.

    Raises:
        ValueError: One of them asks for what cannot be done here.
    """
    for name in _WITHOUT_EFFECT:
        kwargs.pop(name, None)
    for name, reason in _REFUSED.items():
        value = kwargs.pop(name, None)
        if value:
            raise UserError(f"{name}={shown(value)} is refused. {reason}")
    if not kwargs.pop("weights_only", True):
        raise UserError("weights_only=False would run code from a file, which is refused.")


def open_checkpoint(name_or_path: str | os.PathLike[str] | None, options: FileOptions) -> Checkpoint:
    """Finds the files of a model and checks them; nothing is built yet.

    Raises:
        OSError: Nothing of that name or path, or the hub cannot be reached.
        ValueError: A file is damaged or holds code; or neither files nor tensors are given.
    """
    if name_or_path is None:
        if options.state_dict is None:
            raise UserError("Pass the path or the name of a model, or config= and state_dict=.")
        return Checkpoint(path=None, source=DictSource(options.state_dict), name="the state dict")
    path = local_path(
        published_place(name_or_path),
        need="weights" if options.state_dict is None else "config",
        options=options.hub,
        subfolder=options.subfolder,
        variant=options.variant,
        use_safetensors=options.use_safetensors,
    )
    if options.state_dict is not None:
        return Checkpoint(path=path, source=DictSource(options.state_dict), name="the state dict")
    weights = find_weights(path, variant=options.variant, use_safetensors=options.use_safetensors)
    return Checkpoint(path=path, source=open_source(weights), name=weights.main)


def open_model(
    model_class: Any,
    name_or_path: str | os.PathLike[str] | None,
    arguments: Sequence[Any],
    config: Any,
    kwargs: dict[str, Any],
    **placing: Any,
) -> tuple[Any, LoadingInfo]:
    """Does what `from_pretrained` says.

    Args:
        model_class: Class of the model.
        name_or_path: See `from_pretrained`.
        arguments: Passed to the constructor.
        config: See `from_pretrained`.
        kwargs: All other keywords of `from_pretrained`.
        **placing: Arguments of `build_and_fill`.

    Raises:
        TypeError: An argument is unknown.
    """
    drop_arguments_without_effect(kwargs)
    if torch.get_default_device().type == "meta":
        raise WrongStateError(
            "You are using `from_pretrained` with a meta device context manager or torch.set_default_device('meta'), "
            "where no weights can be. Build the model from its configuration there, or leave the context."
        )
    may_map = kwargs.pop("low_cpu_mem_usage", None) is not False
    files = {name: kwargs.pop(name) for name in FILE_ARGUMENTS if name in kwargs}
    checkpoint = open_checkpoint(name_or_path, FileOptions(**files, hub=HubOptions.take_from(kwargs)))
    config, kwargs = resolve_config(
        model_class.config_class,
        config,
        kwargs,
        path=checkpoint.path,
        shapes=checkpoint.source.shapes,
        source=checkpoint.name,
    )

    def build() -> Any:
        try:
            return model_class(config, *arguments, **kwargs)
        except TypeError as error:
            raise WrongTypeError(f"{model_class.__name__} does not know an argument: {error}.") from error

    model, info = build_and_fill(build, checkpoint, may_map=may_map, **placing)
    if not model.config.fused_qkv:
        split_model(model, model.config.qkv_names)
    model.config.dtype = model.dtype
    if files.get("state_dict") is None and name_or_path is not None:
        model.name_or_path = model.config.name_or_path = origin(name_or_path)
    return model, info


def origin(name_or_path: str | os.PathLike[str]) -> str:
    """Returns what a model's attribute `name_or_path` says: an absolute path, or a name on the hub."""
    return os.path.abspath(name_or_path) if os.path.exists(name_or_path) else os.fspath(name_or_path)


@torch.inference_mode(False)  # parameters are ordinary tensors wherever the caller is, and any thread can fill them
def build_and_fill(
    build: Any,
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | str | None,
    device_map: Any,
    ignore_mismatched_sizes: bool,
    may_lack_trunk: bool = False,
    may_map: bool = True,
) -> tuple[Any, LoadingInfo]:
    """Builds a model without initial values and fills it.

    Args:
        build: Returns the model.
        checkpoint: See `open_checkpoint`.
        dtype: See `from_pretrained`.
        device_map: See `from_pretrained`.
        ignore_mismatched_sizes: See `from_pretrained`.
        may_lack_trunk: See `load_tensors`.
        may_map: Whether parameters may be views of the file.

    Raises:
        ValueError: See `load_tensors`.
    """
    device = resolve_device(device_map)
    resolved = resolve_dtype(dtype, checkpoint.source)
    with without_initial_values(device, resolved) as parts:
        model = build()
    inside = {id(parameter) for module in parts.modules for parameter in module.parameters()}
    names = {name: id(parameter) in inside for name, parameter in model.named_parameters()}
    if not all(names.values()) or any(True for _ in model.buffers()):
        # What a subclass brings. The type before the values, so that float64 keeps its digits.
        model.to(device=device, dtype=resolved)
    model.eval()
    info = load_tensors(
        model,
        checkpoint.source,
        base_prefix=f"{model.base_model_prefix}.",
        ignore_mismatched_sizes=ignore_mismatched_sizes,
        may_lack_trunk=may_lack_trunk,
        source=checkpoint.name,
        before_reading=lambda names: _draw_initial_values(model, names, parts),
        empty={name for name, empty in names.items() if empty},
        may_map=may_map,
    )
    return model, info


def _draw_initial_values(model: Any, names: list[str], parts: EmptyParts) -> None:
    """Gives values to what the file will not fill: the layers that hold these tensors, where they were built empty."""
    empty = parts.everything_inside()
    owners: dict[nn.Module, None] = dict.fromkeys(model.get_submodule(name.rpartition(".")[0]) for name in names)
    for owner in owners:
        if owner not in empty:
            continue
        if isinstance(owner, VisionTransformer):
            owner.initialize()
        else:
            model._init_weights(owner)
