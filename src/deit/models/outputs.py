"""What the PyTorch models return; see `deit.core.outputs.ModelOutput`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deit.core.outputs import ModelOutput


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
