"""What models return, the same for every framework: a dict that is also a tuple and has attributes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass
class ModelOutput(OrderedDict[str, Any]):
    """Base of all outputs: a dict of the fields that are not None, in their order, as in transformers.

    `output["logits"]`, `output.logits` and `output[0]` all work; numbers and slices count only fields that are
    not None. It can be made from a dict or from pairs too, as accelerate, TensorFlow and `torch.nn.DataParallel` do.
    """

    def __post_init__(self) -> None:
        first = fields(self)[0].name
        given = getattr(self, first)
        if isinstance(given, (Mapping, Iterator)):
            super().__delitem__(first)
            super().__setattr__(first, None)
            for name, value in dict(given).items():
                super().__setattr__(name, value)
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                super().__setitem__(field.name, value)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return super().__getitem__(key)
        return self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if value is not None and any(field.name == name for field in fields(self)):
            super().__setitem__(name, value)
        super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    def to_tuple(self) -> tuple[Any, ...]:
        """Returns the values of all fields that are not None."""
        return tuple(self.values())
