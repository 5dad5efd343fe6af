"""The DeiT models in Keras: transformers' `TFDeiT*` classes, on every backend of Keras 3.

`KerasDeiT*` are other names of the same classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from deit.core.config.vision_transformer import VisionTransformerConfig
from deit.core.errors import UserError
from deit.core.outputs import ModelOutput
from deit.keras.heads import (
    as_asked,
    classify_token,
    linear_classifier,
    require_classifier,
    takes_dict,
)
from deit.keras.inputs import as_tensor
from deit.keras.losses import classification_loss, distillation_loss
from deit.keras.outputs import KerasDeiTForImageClassificationWithTeacherOutput
from deit.keras.pretrained import TFDeiTPreTrainedModel
from deit.keras.task_models import BareModel, ImageClassifier, MaskedImageModel, ModelWithHeads


@keras.saving.register_keras_serializable(package="deit")
class TFDeiTModel(BareModel, TFDeiTPreTrainedModel):
    """The bare DeiT in Keras; see `BareModel`.

    Examples:
        >>> model = TFDeiTModel(DeiTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2))
        >>> tuple(model(np.zeros((1, 3, 224, 224), "float32")).last_hidden_state.shape)
        (1, 198, 32)
    """


@keras.saving.register_keras_serializable(package="deit")
class TFDeiTForImageClassification(ImageClassifier, TFDeiTPreTrainedModel):
    """DeiT in Keras with one classifier on the class token; see `ImageClassifier`."""

    bare_class = TFDeiTModel


@keras.saving.register_keras_serializable(package="deit")
class TFDeiTForImageClassificationWithTeacher(ModelWithHeads, TFDeiTPreTrainedModel):
    """DeiT in Keras with a class head and a distillation head; at inference their logits are averaged.

    Unlike transformers' class it has a loss: see `labels` and `teacher_logits`.

    Args:
        config: `distillation_kind`, `distillation_temperature` and `distillation_weight` set the loss.
        **options: See `KerasPreTrainedModel`.
    """

    bare_class = TFDeiTModel

    def add_heads(self, config: VisionTransformerConfig) -> None:
        """Builds both classifiers."""
        self.cls_classifier = linear_classifier(config, "cls_classifier", self.dtype_policy)
        self.distillation_classifier = linear_classifier(config, "distillation_classifier", self.dtype_policy)

    def network_parts(self) -> dict[str, Any]:
        """Returns the model's parts by their names in the network."""
        names = ("deit", "cls_classifier", "distillation_classifier")
        return {name: getattr(self, name) for name in names}

    @takes_dict
    def call(
        self,
        pixel_values: Any = None,
        head_mask: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        interpolate_pos_encoding: bool = False,
        training: bool = False,
        labels: Any = None,
        teacher_logits: Any = None,
    ) -> Any:
        """Classifies with both heads; further arguments as in `BareModel.call`.

        The loss, with weight w, is (1 - w) x cross-entropy(class head, labels) + w x distillation(distillation
        head, teacher). Without teacher logits the distillation head also learns the labels, so that the average
        of the heads is meaningful.

        Args:
            pixel_values: See `BareModel.call`.
            head_mask: See `BareModel.call`.
            output_attentions: See `BareModel.call`.
            output_hidden_states: See `BareModel.call`.
            return_dict: See `BareModel.call`.
            interpolate_pos_encoding: See `BareModel.call`.
            training: See `BareModel.call`.
            labels: (B,) class numbers (-100: no label), or (B, K) class probabilities.
            teacher_logits: (B, K), logits of the teacher for the same pixels.

        Raises:
            ValueError: Teacher logits without labels, or for another number of classes.
        """
        encoded = self.deit(
            pixel_values,
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            interpolate_pos_encoding=interpolate_pos_encoding,
            training=training,
        )
        cls_logits = classify_token(self.cls_classifier, encoded.last_hidden_state, 0)
        distillation_logits = classify_token(self.distillation_classifier, encoded.last_hidden_state, 1)
        output = KerasDeiTForImageClassificationWithTeacherOutput(
            logits=_average(cls_logits, distillation_logits, self.config),
            cls_logits=cls_logits,
            distillation_logits=distillation_logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        if labels is None and teacher_logits is not None:
            raise UserError("teacher_logits need labels. For images without labels pass labels of -100.")
        if labels is not None:
            loss = self.loss_of_labels(output, labels, teacher_logits)
            output = type(output)(loss=loss, **output)
        return as_asked(output, return_dict, self.config)

    def loss_of_labels(
        self, output: ModelOutput, labels: Any, teacher_logits: Any = None, *, sample_weight: Any = None
    ) -> Any:
        """Returns the loss of an output, each image multiplied by its weight; arguments as in `call`."""
        config = self.config
        require_classifier(config)
        labels = as_tensor(labels)
        weight = config.distillation_weight
        from_labels = classification_loss(output["cls_logits"], labels, sample_weight=sample_weight)
        if teacher_logits is None:
            from_teacher = classification_loss(output["distillation_logits"], labels, sample_weight=sample_weight)
        else:
            from_teacher = distillation_loss(
                output["distillation_logits"],
                as_tensor(teacher_logits),
                kind=config.distillation_kind,
                temperature=config.distillation_temperature,
                sample_weight=sample_weight,
            )
        return (1 - weight) * from_labels + weight * from_teacher

    def loss_of_inputs(self, output: ModelOutput, inputs: Mapping[str, Any], sample_weight: Any) -> Any:
        """Returns the loss of an output, each image multiplied by its weight; `inputs` are those of `call`."""
        teacher_logits = inputs.get("teacher_logits")
        return self.loss_of_labels(output, inputs["labels"], teacher_logits, sample_weight=sample_weight)


@keras.saving.register_keras_serializable(package="deit")
class TFDeiTForMaskedImageModeling(MaskedImageModel, TFDeiTPreTrainedModel):
    """DeiT in Keras that reconstructs masked patches; see `MaskedImageModel`."""

    bare_class = TFDeiTModel


KerasDeiTModel = TFDeiTModel
KerasDeiTForMaskedImageModeling = TFDeiTForMaskedImageModeling
KerasDeiTForImageClassification = TFDeiTForImageClassification
KerasDeiTForImageClassificationWithTeacher = TFDeiTForImageClassificationWithTeacher


def _average(first: Any, second: Any, config: VisionTransformerConfig) -> Any:
    """Returns the average (B, K) of the logits of two heads; see `deit.models.deit.average_heads`."""
    numbers = config.problem_type == "regression" or (config.problem_type is None and config.num_labels == 1)
    if config.head_average == "logits" or numbers:
        return (first + second) / 2
    if config.problem_type == "multi_label_classification":
        yes = ops.logaddexp(ops.log_sigmoid(first), ops.log_sigmoid(second))
        return yes - ops.logaddexp(ops.log_sigmoid(-first), ops.log_sigmoid(-second))
    return ops.logaddexp(ops.log_softmax(first, axis=-1), ops.log_softmax(second, axis=-1)) - math.log(2)
