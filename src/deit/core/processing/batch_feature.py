"""Holds the output of an image processor: a dict of tensors, arrays or lists."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Collection, Mapping
from importlib import import_module
from typing import Any

import numpy as np

from deit.core.errors import UserError
from deit.core.processing.operations import to_tensor
from deit.core.processing.options import checked_option


class BatchFeature(UserDict[str, Any]):
    """The processor's output: a dict whose keys are also attributes.

    Args:
        data: Names and values.
        tensor_type: What values become, see `convert_to_tensors`; None leaves them as they are.
        skip_tensor_conversion: Names of values that are left as they are in any case.
    """

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        tensor_type: Any = None,
        skip_tensor_conversion: Collection[str] | None = None,
    ) -> None:
        super().__init__(data)
        self.skip_tensor_conversion = skip_tensor_conversion
        self.convert_to_tensors(tensor_type)

    def __getitem__(self, name: Any) -> Any:
        if not isinstance(name, str):
            raise KeyError(f"The output is indexed by name, not by {name!r}. Known: {', '.join(self.data)}.")
        return self.data[name]

    def __getattr__(self, name: str) -> Any:
        data = vars(self).get("data", {})
        if name in data:
            return data[name]
        raise AttributeError(name)

    def convert_to_tensors(
        self, tensor_type: Any = None, skip_tensor_conversion: Collection[str] | None = None
    ) -> BatchFeature:
        """Makes tensors of numbers, arrays and lists of these, in place; text and dicts stay as they are.

        Args:
            tensor_type: "np", "pt" (PyTorch), "tf" (TensorFlow), "jax" or "mlx"; None changes nothing.
            skip_tensor_conversion: Names of values that are left as they are; None takes those of the constructor.

        Raises:
            ImportError: The package is not installed.
            ValueError: A list holds arrays of different sizes, or the type is not known.
        """
        wanted = checked_option("return_tensors", tensor_type)
        skipped = self.skip_tensor_conversion if skip_tensor_conversion is None else skip_tensor_conversion
        for name, value in self.items():
            if wanted is not None and name not in (skipped or ()) and _is_numeric(value):
                self[name] = _converted(name, value, wanted)
        return self

    def to(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """Moves PyTorch tensors with `Tensor.to`, in place; only floating-point tensors take a new type.

        Args:
            *args: A device or a type.
            **kwargs: `device`, `dtype`, `non_blocking`.
        """
        for name, value in self.items():
            self[name] = _moved(value, args, kwargs)
        return self


def _moved(value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(v, args, kwargs) for v in value)
    if not hasattr(value, "is_floating_point"):
        return value
    if not value.is_floating_point():
        args = tuple(a for a in args if type(a).__name__ != "dtype")
        kwargs = {k: v for k, v in kwargs.items() if k != "dtype"}
    return value.to(*args, **kwargs) if args or kwargs else value


def _is_numeric(value: Any) -> bool:
    """Whether a value is a number, an array or tensor, or a list of these; an empty list is one."""
    if isinstance(value, (list, tuple)):
        return not value or _is_numeric(value[0])
    return isinstance(value, (bool, int, float)) or hasattr(value, "__array__") or hasattr(value, "__dlpack__")


def _converted(name: str, value: Any, wanted: str) -> Any:
    try:
        if wanted == "pt" and _is_of_pytorch(value):
            return value
        if wanted == "pt" and isinstance(value, (list, tuple)) and value and all(map(_is_of_pytorch, value)):
            return import_module("torch").stack(list(value))  # where they are
        array = np.asarray(_on_the_cpu(value))
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"{name} cannot become one tensor: its parts have different sizes ({error}). "
            "Pass return_tensors=None, or make them equal: do_center_crop, do_pad, or resize to a fixed size."
        ) from error
    if wanted == "pt" and array.dtype == np.float64 and not _holds_arrays(value):
        array = array.astype(np.float32)  # PyTorch's type for numbers of Python
    return array if wanted == "np" else to_tensor(array, wanted)


def _is_of_pytorch(value: Any) -> bool:
    return hasattr(value, "detach")


def _on_the_cpu(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_on_the_cpu(v) for v in value]
    return value.detach().cpu().numpy() if _is_of_pytorch(value) else value


def _holds_arrays(value: Any) -> bool:
    return _holds_arrays(value[0]) if isinstance(value, (list, tuple)) and value else hasattr(value, "dtype")
