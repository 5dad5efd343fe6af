"""Outputs of the Keras models, see `deit.core.outputs.ModelOutput`.

They are registered as structures of tensors with Keras and the backends, so that `fit`, `predict`, `tf.function` and
`jax.jit` accept them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras
import optree

from deit.core.outputs import ModelOutput


@dataclass
class KerasBaseModelOutputWithPooling(ModelOutput):
    """Output of `TFDeiTModel`.

    Attributes:
        last_hidden_state: (B, N, D) after the final norm.
        pooler_output: (B, pooler_output_size), or None without a pooler.
        hidden_states: Depth + 1 tensors (B, N, D): the embeddings, then each block's output before the final norm.
        attentions: Depth tensors (B, H, N, N) of attention probabilities.
    """

    last_hidden_state: Any = None
    pooler_output: Any = None
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None


@dataclass
class KerasImageClassifierOutput(ModelOutput):
    """Output of `TFDeiTForImageClassification`.

    Attributes:
        loss: Scalar, when labels were given.
        logits: (B, K).
        hidden_states: See `KerasBaseModelOutputWithPooling`.
        attentions: See `KerasBaseModelOutputWithPooling`.
    """

    loss: Any = None
    logits: Any = None
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None


@dataclass
class KerasMaskedImageModelingOutput(ModelOutput):
    """Output of `TFDeiTForMaskedImageModeling` and `TFViTForMaskedImageModeling`.

    Attributes:
        loss: Scalar, when a patch mask was given.
        reconstruction: (B, C, H, W), channels first for every `data_format`, as in transformers.
        hidden_states: See `KerasBaseModelOutputWithPooling`.
        attentions: See `KerasBaseModelOutputWithPooling`.
    """

    loss: Any = None
    reconstruction: Any = None
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None


@dataclass
class KerasDeiTForImageClassificationWithTeacherOutput(ModelOutput):
    """Output of `TFDeiTForImageClassificationWithTeacher`.

    Without labels it has the fields and order of transformers; with labels, `loss` comes first.

    Attributes:
        loss: Scalar, when labels were given.
        logits: (B, K), mean of the two heads.
        cls_logits: (B, K) of the class head.
        distillation_logits: (B, K) of the distillation head.
        hidden_states: See `KerasBaseModelOutputWithPooling`.
        attentions: See `KerasBaseModelOutputWithPooling`.
    """

    loss: Any = None
    logits: Any = None
    cls_logits: Any = None
    distillation_logits: Any = None
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None


def _register(output: type[ModelOutput]) -> None:
    def flatten(value: ModelOutput) -> tuple[tuple[Any, ...], tuple[str, ...]]:
        return value.to_tuple(), tuple(value)

    def unflatten(names: tuple[str, ...], values: Iterable[Any]) -> ModelOutput:
        return output(**dict(zip(names, values, strict=True)))

    backend = keras.backend.backend()
    if backend == "torch":  # there Keras uses PyTorch's pytrees, and has imported PyTorch
        import torch.utils._pytree

        torch.utils._pytree.register_pytree_node(
            output,
            lambda value: (list(value.to_tuple()), tuple(value)),
            lambda values, names: unflatten(names, values),
            serialized_type_name=f"deit.{output.__name__}",
        )
        return
    optree.register_pytree_node(output, flatten, unflatten, namespace="keras")  # type: ignore[arg-type]
    if backend == "jax":
        import jax.tree_util

        jax.tree_util.register_pytree_node(output, flatten, unflatten)


for _output in (
    KerasBaseModelOutputWithPooling,
    KerasImageClassifierOutput,
    KerasMaskedImageModelingOutput,
    KerasDeiTForImageClassificationWithTeacherOutput,
):
    _register(_output)
