"""Lists the steps of an image processor that may be replaced, in a subclass, in the class or on an instance."""

from __future__ import annotations

import inspect
from typing import Any

from deit.core.errors import WrongTypeError

# In the order of their work. The names and the arguments of their calls are those of transformers 5.
PARTS = (
    "process_image",
    "convert_to_rgb",
    "resize",
    "center_crop",
    "rescale",
    "normalize",
    "rescale_and_normalize",
    "pad",
    "_preprocess",
)
# What transformers calls on its way and this package does not: an override would silently never run.
_NOT_CALLED = (
    "_prepare_images_structure",
    "_prepare_image_like_inputs",
    "_preprocess_image_like_inputs",
    "_standardize_kwargs",
    "_further_process_kwargs",
    "_process_image",
    "_validate_preprocess_kwargs",
    "_fuse_mean_std_and_rescale_factor",
    "fetch_images",
    "valid_kwargs",
)


def parts_of(owner: type[Any]) -> dict[str, Any]:
    """Returns the parts that a class has, by name."""
    return {name: getattr(owner, name) for name in PARTS if hasattr(owner, name)}


def is_replaced(processor: Any, names: tuple[str, ...] = PARTS) -> bool:
    """Whether a part was replaced. The steps are then run one by one.

    Args:
        processor: Its class holds the package's own parts as `_own_parts`.
        names: Which parts to look at.
    """
    own, kind, own_to_the_instance = processor._own_parts, type(processor), vars(processor)
    return any(
        name in own_to_the_instance or getattr(kind, name, None) is not own.get(name)
        for name in names
        if name in own or name in own_to_the_instance
    )


def refuse_what_is_not_called(owner: type[Any]) -> None:
    """Raises an error for a subclass that overrides a method that is never called.

    Raises:
        TypeError: It does.
    """
    for name in _NOT_CALLED:
        if name in vars(owner):
            raise WrongTypeError(
                f"{owner.__name__}.{name} would never be called: an image processor of this package has no such step. "
                f"Override preprocess, or one of {', '.join(PARTS)}."
            )


def refuse_replaced(processor: Any) -> None:
    """Raises an error for a processor with a part replaced on the instance: no file can hold it.

    Raises:
        TypeError: It was.
    """
    replaced = [name for name in PARTS if name in vars(processor)]
    if replaced:
        raise WrongTypeError(
            f"{', '.join(replaced)} was replaced on this {type(processor).__name__}, and a file holds settings, no "
            "code: the processor that is read from it would work otherwise. Replace it in a subclass."
        )


def arguments_of(owner: type[Any], beside: tuple[str, ...]) -> set[str]:
    """Returns the names of the constructor's arguments, without the known ones."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(owner).parameters.values()
    return {p.name for p in parameters if p.kind in named} - set(beside)


def class_defaults(owner: type[Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Returns options that a class sets as class attributes, as processors of transformers do."""
    return {name: getattr(owner, name) for name in names if getattr(owner, name, None) is not None}
