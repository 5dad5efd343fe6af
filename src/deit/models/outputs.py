"""What the models return: dictionaries that are also tuples and have attributes, as in transformers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass
class ModelOutput(OrderedDict[str, Any]):
    """Base of all outputs: a dict of the fields that are not None, in their order.

    `output["logits"]`, `output.logits` and `output[0]` all work; numbers and slices count only fields that are
    not None. It can be made from a dict or from pairs too, as accelerate and `torch.nn.DataParallel` do.
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


@dataclass
class BaseModelOutputWithPooling(ModelOutput):
    """Output of `DeiTModel`.

    Attributes:
        last_hidden_state: (B, N, D) after the final norm.
        pooler_output: (B, pooler_output_size), or None without a pooler.
        hidden_states: See `TrunkOutput`.
        attentions: See `TrunkOutput`.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class ImageClassifierOutput(ModelOutput):
    """Output of `DeiTForImageClassification`.

    Attributes:
        loss: Scalar, when labels were given.
        logits: (B, K).
        hidden_states: See `TrunkOutput`.
        attentions: See `TrunkOutput`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class MaskedImageModelingOutput(ModelOutput):
    """Output of `DeiTForMaskedImageModeling`.

    Attributes:
        loss: Scalar, when a patch mask was given.
        reconstruction: (B, C, H, W).
        hidden_states: See `TrunkOutput`.
        attentions: See `TrunkOutput`.
    """

    loss: Tensor | None = None
    reconstruction: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class DeiTForImageClassificationWithTeacherOutput(ModelOutput):
    """Output of `DeiTForImageClassificationWithTeacher`.

    Without labels it has the fields and order of transformers; with labels, `loss` stands first.

    Attributes:
        loss: Scalar, when labels were given.
        logits: (B, K), mean of the two heads.
        cls_logits: (B, K) of the class head.
        distillation_logits: (B, K) of the distillation head.
        hidden_states: See `TrunkOutput`.
        attentions: See `TrunkOutput`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    cls_logits: Tensor | None = None
    distillation_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


# So that torch.export and DistributedDataParallel find the tensors in an output.
for _output in (
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
    DeiTForImageClassificationWithTeacherOutput,
):
    torch.export.register_dataclass(_output, serialized_type_name=f"deit.{_output.__name__}")
