"""Opens and saves Keras models: model directories, weight files, Keras's own files, SavedModels, the hub."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from deit.core.errors import UserError, WrongTypeError
from deit.core.files import replace_folder_content
from deit.core.hub import HubOptions, local_path, upload_folder
from deit.core.model_directory import published_files
from deit.core.weights.files import find_weights, is_weight_file_name, number_of_bytes
from deit.core.weights.plan import LoadingInfo, resolve_config
from deit.keras.adapters import named_layers
from deit.keras.layers import without_initial_values
from deit.keras.weights import ArraysInMemory, ArraySource, load_arrays, published_arrays, write_arrays

_KERAS_SUFFIXES = (".keras", ".h5")
# Keys of `get_config` that every model has.
_SHARED = ("config", "data_format", "name", "trainable", "dtype", "layer_states")


def torch_class_name(name: str) -> str:
    """Returns the name of the PyTorch class with the same network: `TFDeiTModel` -> `DeiTModel`."""
    return name.removeprefix("TF").removeprefix("Keras")


def is_keras_file(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether a file name has a suffix of Keras's own files."""
    return os.fspath(name_or_path).endswith(_KERAS_SUFFIXES)


# --- opening ------------------------------------------------------------------------------------------


def build_model(model_class: Any, config: Any, **kwargs: Any) -> Any:
    """Builds a model.

    Raises:
        TypeError: The class does not know an argument.
    """
    try:
        return model_class(config, **kwargs)
    except TypeError as error:
        raise WrongTypeError(f"{model_class.__name__} does not know an argument: {error}.") from error
    except ValueError as error:
        if "keyword arguments" in str(error):  # Keras raises a ValueError
            raise WrongTypeError(f"{model_class.__name__} does not know an argument: {error}.") from error
        raise


def open_tensors(
    model_class: Any,
    name_or_path: str | os.PathLike[str],
    *,
    config: Any,
    dtype: Any,
    data_format: str | None,
    ignore_mismatched_sizes: bool,
    options: dict[str, Any],
) -> tuple[Any, LoadingInfo]:
    """Opens a model directory, a weight file or a model on the hub; arguments as in `from_pretrained`."""
    files = {name: options.pop(name) for name in ("variant", "use_safetensors") if name in options}
    subfolder, hub = options.pop("subfolder", None) or "", HubOptions.take_from(options)
    path = local_path(name_or_path, options=hub, subfolder=subfolder, **files)
    weights = find_weights(path, **files)
    tensors = ArraySource(weights)
    config, options = resolve_config(
        model_class.config_class, config, options, path=path, shapes=tensors.shapes, source=weights.main
    )
    dtype = tensors.main_dtype() if dtype == "auto" else dtype
    with without_initial_values():
        data_format = data_format or "channels_first"
        model = build_model(model_class, config, dtype=dtype, data_format=data_format, **options)
    info = load_arrays(model, tensors, ignore_mismatched_sizes=ignore_mismatched_sizes, source=weights.main)
    return model, info


def open_keras_file(
    model_class: Any,
    name_or_path: str | os.PathLike[str],
    *,
    config: Any,
    dtype: Any,
    data_format: str | None,
    ignore_mismatched_sizes: bool,
    allow_code: bool,
    options: dict[str, Any],
) -> tuple[Any, LoadingInfo]:
    """Opens weights that Keras saved, or a whole `.keras` file; arguments as in `from_pretrained`.

    If the arguments differ from the file (classes, image size, dtype, order of channels, ...), a new model takes the
    weights, with the same checks as for a model directory.
    """
    file = Path(name_or_path)
    if not file.is_file():
        raise FileNotFoundError(f"No Keras file at {file}.")
    for name in ("subfolder", "variant", "use_safetensors"):
        if options.pop(name, None):
            raise UserError(f"{name} is about model directories, and {file.name} is one file. Leave it out.")
    HubOptions.take_from(options)  # only names on the hub need them
    if isinstance(config, (str, os.PathLike)):
        config = model_class.config_class.from_pretrained(config)
    if not file.name.endswith(".weights.h5"):
        held = _whole_model(model_class, file, allow_code)
        return _as_asked(model_class, held, file, config, dtype, data_format, ignore_mismatched_sizes, options)
    if config is None:
        raise UserError(f"{file.name} holds weights alone. Pass config=, or save with save_pretrained.")
    if dtype == "auto":
        raise UserError(f"dtype='auto' is not known of {file.name}. Pass a type, such as 'float32'.")
    data_format = data_format or "channels_first"
    wanted, arguments = _with_fields(model_class, config, options)
    if wanted.to_dict() == config.to_dict():
        model = build_model(model_class, config, dtype=dtype, data_format=data_format, **arguments)
        model.load_weights(file)
        return model, _nothing_to_tell()
    held = build_model(model_class, config, dtype="float32", **arguments)
    held.load_weights(file)
    return _transferred(
        model_class, held, file, wanted, ignore_mismatched_sizes, dtype=dtype, data_format=data_format, **arguments
    )


def _whole_model(model_class: Any, file: Path, allow_code: bool) -> Any:
    if file.suffix == ".h5":
        raise UserError(f"{file.name} is not read: it may hold code. Save weights as .weights.h5 or safetensors.")
    if not allow_code:
        raise UserError(
            f"{file.name} is a whole Keras file, which can carry code. Pass allow_code=True if you wrote it "
            "yourself, or use a model directory (save_pretrained) or weights (.weights.h5)."
        )
    model = keras.saving.load_model(file, safe_mode=True)
    if not isinstance(model, model_class):
        raise UserError(f"{file.name} holds a {type(model).__name__}, not a {model_class.__name__}.")
    return model


def _as_asked(
    model_class: Any,
    held: Any,
    file: Path,
    config: Any,
    dtype: Any,
    data_format: str | None,
    ignore_mismatched_sizes: bool,
    options: Mapping[str, Any],
) -> tuple[Any, LoadingInfo]:
    """Returns the model of a `.keras` file, or a new model with its weights if the arguments differ from the file."""
    own = {name: value for name, value in held.get_config().items() if name not in _SHARED}
    wanted, given = _with_fields(model_class, config or held.config, options)
    arguments = {**own, **given}
    policy = held.dtype_policy if dtype in (None, "auto") else keras.dtype_policies.get(dtype)
    data_format = data_format or held.data_format
    same = (wanted.to_dict(), arguments, policy, data_format) == (
        held.config.to_dict(), own, held.dtype_policy, held.data_format,
    )  # fmt: skip
    if same:
        return held, _nothing_to_tell()
    if any(getattr(layer, "quantization_mode", None) for _, layer in named_layers(held)):
        raise UserError(
            f"{file.name} holds a quantized model, which opens as it is alone. Leave out what shall be different, or "
            "save the model before it is quantized."
        )
    return _transferred(
        model_class, held, file, wanted, ignore_mismatched_sizes, dtype=policy, data_format=data_format, **arguments
    )


def _with_fields(model_class: Any, config: Any, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Returns a configuration with changed fields, and the options that are no fields."""
    wanted, rest = model_class.config_class.from_dict(config.to_dict(), return_unused_kwargs=True, **options)
    return wanted, rest


def _transferred(
    model_class: Any, held: Any, file: Path, config: Any, ignore_mismatched_sizes: bool, **arguments: Any
) -> tuple[Any, LoadingInfo]:
    with without_initial_values():
        model = build_model(model_class, config, **arguments)
    tensors = ArraysInMemory(published_arrays(held))
    return model, load_arrays(model, tensors, ignore_mismatched_sizes=ignore_mismatched_sizes, source=file)


def _nothing_to_tell() -> LoadingInfo:
    return LoadingInfo(missing_keys=[], unexpected_keys=[], mismatched_keys=[])


# --- saving -------------------------------------------------------------------------------------------


def save_model(
    model: Any, folder: Path, *, max_shard_size: int | str, variant: str | None, saved_model: bool, version: int
) -> None:
    """Writes a model directory; arguments as in `save_pretrained`."""
    if saved_model and keras.backend.backend() != "tensorflow":
        raise UserError(
            f"saved_model=True needs TensorFlow, and Keras runs on {keras.backend.backend()!r} in this process. Leave "
            "it out, or set KERAS_BACKEND=tensorflow before Keras is imported."
        )
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file. Pass a folder to save into.")
    config = type(model.config).from_dict(model.config.to_dict())
    config.architectures = [torch_class_name(type(model).__name__)]
    config.dtype = model.variable_dtype
    with replace_folder_content(folder) as temporary:
        config.save_pretrained(temporary)
        most_bytes = number_of_bytes(max_shard_size)
        files = write_arrays(published_arrays(model), temporary, most_bytes=most_bytes, variant=variant)
    for file in folder.iterdir():
        if is_weight_file_name(file.name, variant) and file.name not in files:
            file.unlink()
    if saved_model:
        place = folder / "saved_model" / str(version)
        shutil.rmtree(place, ignore_errors=True)
        with replace_folder_content(place) as temporary:
            model.export(temporary, verbose=False)


def push_model(model: Any, repo_id: str, saving: Mapping[str, Any], **upload: Any) -> str:
    """Uploads a model to the hub; arguments as in `push_to_hub`."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        model.save_pretrained(folder, **saving)
        return upload_folder(folder, repo_id, files=published_files(folder)[0], **upload)
