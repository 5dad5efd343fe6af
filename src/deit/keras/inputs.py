"""Checks the inputs of Keras models: backend, order of channels, shapes, labels."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from deit.core.config.vision_transformer import VisionTransformerConfig
from deit.core.errors import UserError, WrongStateError, WrongTypeError
from deit.core.labels import NO_LABEL

DATA_FORMATS = ("channels_first", "channels_last")
# Top-level packages whose tensors belong to a backend.
_FRAMEWORKS = {"tensorflow": "tensorflow", "torch": "torch", "jax": "jax", "jaxlib": "jax"}


def check_backend() -> None:
    """Checks that Keras runs on the backend that the environment asks for.

    Raises:
        RuntimeError: KERAS_BACKEND was changed after Keras was imported.
    """
    wanted, active = os.environ.get("KERAS_BACKEND"), keras.backend.backend()
    if wanted and wanted != active:
        raise WrongStateError(
            f"Keras runs on {active!r} in this process, and KERAS_BACKEND asks for {wanted!r}. The backend is fixed "
            "when Keras is first imported: set KERAS_BACKEND before, or use another process."
        )


def name_arguments(
    call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], tensors: tuple[str, ...]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Turns all arguments but the first into named ones, flags inside a dict of inputs included.

    Keras accepts only tensors by position.

    Args:
        call: `call` of the model.
        args: Arguments by position.
        kwargs: Arguments by name.
        tensors: Names of the tensor arguments besides pixel_values.

    Raises:
        TypeError: There are too many arguments, one is given twice, or the dict holds an unknown one.
    """
    names = list(inspect.signature(call).parameters)
    if len(args) > len(names):
        raise WrongTypeError(
            f"The model takes {len(names)} arguments at most: {', '.join(names)}. Received: {len(args)}."
        )
    named = dict(zip(names[1:], args[1:], strict=False))
    if args and isinstance(args[0], Mapping):
        inputs = dict(args[0])
        unknown = sorted(set(inputs) - set(names))
        if unknown:
            raise WrongTypeError(f"The model does not know the input {unknown[0]!r}. Known: {', '.join(names)}.")
        options = {name for name in names if name not in ("pixel_values", *tensors)}
        flags = {name: inputs.pop(name) for name in list(inputs) if name in options or inputs[name] is None}
        args = (inputs, *args[1:])
        named.update({name: value for name, value in flags.items() if value is not None})
    twice = named.keys() & kwargs.keys()
    if twice:
        raise WrongTypeError(f"The argument {sorted(twice)[0]!r} comes twice.")
    return args[:1], {**named, **kwargs}


def check_inputs(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Checks the arguments of a call before Keras converts them.

    Returns:
        The arguments, with arrays in place of lists.

    Raises:
        ValueError: There are no pixels, or labels are out of range.
        TypeError: An input is not a tensor of this backend, or does not hold numbers.
    """
    names = ("pixel_values", *model.tensor_arguments)
    args = tuple(_with_arrays(dict(a), names) if isinstance(a, Mapping) else _as_array(a) for a in args)
    kwargs = _with_arrays(kwargs, names)
    inputs: dict[str, Any] = dict(kwargs)
    if args and isinstance(args[0], Mapping):
        inputs.update(args[0])
    elif args:
        inputs.setdefault("pixel_values", args[0])
    if inputs.get("pixel_values") is None:
        as_pixels(None)
    for name in names:
        if inputs.get(name) is not None:
            _check_tensor(name, inputs[name])
    check_pixels(np.shape(inputs["pixel_values"]), model, bool(inputs.get("interpolate_pos_encoding")))
    if inputs.get("labels") is not None:
        _check_labels(inputs["labels"], model.config)
    return args, kwargs


def _with_arrays(inputs: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: _as_array(value) if name in names else value for name, value in inputs.items()}


def _as_array(value: Any) -> Any:
    """Converts a list of numbers into an array of Keras's float type; returns other values unchanged."""
    if not isinstance(value, (list, tuple)) or not value:
        return value
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # tensors of a backend
        return ops.stack(value)
    return array.astype(keras.config.floatx()) if array.dtype == np.float64 else array


def _check_tensor(name: str, value: Any) -> None:
    framework = _FRAMEWORKS.get(type(value).__module__.split(".")[0])
    active = keras.backend.backend()
    if framework is not None and framework != active:
        raise WrongTypeError(
            f"{name} is a tensor of {framework!r}, and Keras runs on {active!r} in this process. Pass a NumPy array, "
            f"or set KERAS_BACKEND={framework} before Keras is imported."
        )
    if framework is None and not hasattr(value, "shape"):
        raise WrongTypeError(f"{name} must be an array of numbers. Received: {value!r}.")
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biuf" and value.dtype.name != "bfloat16":
        raise WrongTypeError(f"{name} must hold numbers. Received: {value.dtype}.")
    if name == "pixel_values" and keras.backend.standardize_dtype(getattr(value, "dtype", "float32")) == "bool":
        raise WrongTypeError("pixel_values must hold numbers. Received: bool. Was bool_masked_pos passed first?")


def _check_labels(labels: Any, config: VisionTransformerConfig) -> None:
    """Checks class numbers that can be seen; inside compiled code they cannot, and make the loss NaN."""
    kind = config.problem_type
    numbers = np.asarray(labels) if isinstance(labels, (list, tuple, int)) else labels
    if (
        not config.num_labels
        or kind not in (None, "single_label_classification")
        or len(getattr(numbers, "shape", ())) > 1
    ):
        return
    if kind is None and config.num_labels == 1:
        return
    if "int" not in keras.backend.standardize_dtype(numbers.dtype):
        return
    try:
        seen = np.asarray(ops.convert_to_numpy(numbers)).reshape(-1)
    except Exception:  # noqa: BLE001 - a tensor inside compiled code; every backend has an error of its own
        return
    wrong = seen[((seen < 0) | (seen >= config.num_labels)) & (seen != NO_LABEL)]
    if len(wrong):
        raise UserError(
            f"labels must be class numbers from 0 to {config.num_labels - 1} ({NO_LABEL}: no label). "
            f"Received: {wrong[0]}."
        )


def check_pixels(shape: tuple[int | None, ...], model: Any, interpolate: bool) -> None:
    """Checks the shape of pixels; sides that are not known yet (None) are taken to be right.

    Args:
        shape: Of the pixels.
        model: Knows its configuration and the order of axes.
        interpolate: Whether another image size is accepted.

    Raises:
        ValueError: It is wrong.
    """
    channels, first = model.config.num_channels, model.data_format == "channels_first"
    if len(shape) != 4 or shape[1 if first else 3] not in (channels, None):
        order = f"(batch, {channels}, height, width)" if first else f"(batch, height, width, {channels})"
        hint = " Does a batch axis lack?" if len(shape) == 3 else ""
        if len(shape) == 4 and shape[3 if first else 1] == channels:
            now, other = ("last", "channels_last") if first else ("first", "channels_first")
            hint = f" Its channels stand {now}: build the model with data_format={other!r}, or transpose the pixels."
        raise UserError(f"pixel_values must have the shape {order}. Received: {shape}.{hint}")
    size, own = shape[2:4] if first else shape[1:3], model.config.grid_image_size
    if None not in size and size != own and not interpolate:
        raise UserError(
            f"The image is {size[0]} x {size[1]} pixels, the model was made for {own[0]} x {own[1]}. "
            "Resize the image or pass interpolate_pos_encoding=True."
        )
    if any(side is not None and side < patch for side, patch in zip(size, model.config.grid_patch_size, strict=True)):
        raise UserError(f"The image is {size[0]} x {size[1]} pixels, smaller than a patch.")


def check_patch_mask(shape: tuple[int | None, ...], patches: tuple[int | None, int], has_mask_token: bool) -> None:
    """Checks a patch mask.

    Args:
        shape: Of the mask.
        patches: Images and patches per image.
        has_mask_token: Whether the model has one.

    Raises:
        ValueError: The shape is wrong, or there is no mask token.
    """
    if not has_mask_token:
        raise UserError("This model has no mask token. Build it with use_mask_token=True to pass bool_masked_pos.")
    if len(shape) != 2 or any(a != b for a, b in zip(shape, patches, strict=True) if None not in (a, b)):
        raise UserError(f"bool_masked_pos must have the shape (batch, patches) = {patches}. Received: {shape}.")


def as_pixels(pixel_values: Any) -> Any:
    """Returns pixels as a tensor of floating-point numbers.

    Raises:
        ValueError: They are missing.
    """
    if pixel_values is None:
        raise UserError("pixel_values is missing: pass an array of the shape (batch, channels, height, width).")
    pixel_values = ops.convert_to_tensor(pixel_values)
    if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(pixel_values.dtype)):
        pixel_values = ops.cast(pixel_values, "float32")
    return pixel_values


def as_tensor(value: Any) -> Any:
    """Returns a tensor of an array or a list; None stays None."""
    return value if value is None else ops.convert_to_tensor(value)


def labels_to_weight(x: Any, y: Any, *, sample_weight: Any, class_weight: Any) -> Any:
    """Returns `y` for Keras, which silently drops weights of samples and classes without it.

    Args:
        x: Inputs, as `fit` and `evaluate` take them.
        y: Labels; None if they are in `x` or `x` is a data set.
        sample_weight: As in `fit`, or None.
        class_weight: As in `fit`, or None.

    Raises:
        ValueError: There are weights and no labels.
    """
    if y is not None or (sample_weight is None and class_weight is None):
        return y
    if isinstance(x, Mapping):
        for name in ("labels",) if class_weight is not None else ("labels", "bool_masked_pos"):
            if x.get(name) is not None:
                return _as_array(x[name])
    elif hasattr(x, "element_spec") or isinstance(x, keras.utils.PyDataset):  # the first is of tf.data
        parts = x[0] if isinstance(x, keras.utils.PyDataset) else x.element_spec
        if isinstance(parts, (tuple, list)) and len(parts) > 1:
            return None
    else:
        return None  # Keras refuses weights beside data that cannot take them
    raise UserError(
        "sample_weight and class_weight need labels: pass y, labels beside pixel_values in the inputs, or a data set "
        "of (inputs, labels)."
    )
