"""The public DeiT models in Keras: transformers' `TFDeiT*` classes, whole, on every backend of Keras 3.

Their names mean the same on TensorFlow, JAX and PyTorch; `KerasDeiT*` are other names of the same classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from deit.core.config.config import DeiTConfig
from deit.core.config.vision_transformer import VisionTransformerConfig
from deit.core.errors import UserError
from deit.keras.heads import (
    KerasPixelDecoder,
    KerasPooler,
    as_asked,
    classify,
    classify_token,
    encode,
    linear_classifier,
    loss_of_problem,
    loss_of_reconstruction,
    reconstruct,
    require_classifier,
    require_equal_stride,
    takes_dict,
)
from deit.keras.inputs import as_tensor
from deit.keras.losses import classification_loss, distillation_loss
from deit.keras.outputs import KerasDeiTForImageClassificationWithTeacherOutput, KerasModelOutput
from deit.keras.pretrained import TFDeiTPreTrainedModel
from deit.keras.vision_transformer import KerasVisionTransformer, show_shape


@keras.saving.register_keras_serializable(package="deit")
class TFDeiTModel(TFDeiTPreTrainedModel):
    """The bare DeiT in Keras: pixels to tokens, with a pooled output on top.

    Args:
        config: Sizes and rates.
        add_pooling_layer: Whether to have a pooler.
        use_mask_token: Whether to have a mask token, so that `bool_masked_pos` can be passed.
        **options: See `KerasPreTrainedModel`.

    Examples:
        >>> model = TFDeiTModel(DeiTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2))
        >>> tuple(model(np.zeros((1, 3, 224, 224), "float32")).last_hidden_state.shape)
        (1, 198, 32)
    """

    def __init__(
        self, config: DeiTConfig, add_pooling_layer: bool = True, use_mask_token: bool = False, **options: Any
    ) -> None:
        super().__init__(config, **options)
        with keras.name_scope(self.name):
            self.trunk = KerasVisionTransformer(
                config,
                use_mask_token=use_mask_token,
                data_format=self.data_format,
                name="trunk",
                dtype=self.dtype_policy,
            )
            self.pooler = KerasPooler(config, name="pooler", dtype=self.dtype_policy) if add_pooling_layer else None
        self.built = True
        show_shape(self, *self.trunk.output_shape, input_shape=(None, *self.pixel_shape))  # inside another one

    def network_parts(self) -> dict[str, Any]:
        """Returns the model's parts by their names in the network."""
        return {"trunk": self.trunk, "pooler": self.pooler}

    def get_config(self) -> dict[str, Any]:
        """Returns what `from_config` needs."""
        own = {"add_pooling_layer": self.pooler is not None, "use_mask_token": self.trunk.mask_token is not None}
        return {**super().get_config(), **own}

    @takes_dict
    def call(
        self,
        pixel_values: Any = None,
        bool_masked_pos: Any = None,
        head_mask: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        interpolate_pos_encoding: bool = False,
        training: bool = False,
    ) -> Any:
        """Runs the network.

        Args:
            pixel_values: (B, C, H, W), or as `data_format` says; or a dict of these arguments.
            bool_masked_pos: (B, patches), 1 where a patch is replaced by the mask token.
            head_mask: (H,) or (depth, H); attention probabilities of a head are multiplied by its number. Also
                (depth, B or 1, H or 1, N or 1, N or 1).
            output_attentions: Return attention maps; the configuration decides when None.
            output_hidden_states: Return every block's output; the configuration decides when None.
            return_dict: False returns a tuple; the configuration decides when None.
            interpolate_pos_encoding: Accept another image size by resizing the position embedding.
            training: Whether dropout and drop path act.

        Raises:
            ValueError: No pixels, or an input of the wrong shape.
        """
        output = encode(
            self,
            pixel_values,
            bool_masked_pos,
            head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            interpolate_pos_encoding=interpolate_pos_encoding,
            training=training,
        )
        return as_asked(output, return_dict, self.config)


def _base(model: Any, config: DeiTConfig, use_mask_token: bool = False) -> TFDeiTModel:
    return TFDeiTModel(
        config,
        add_pooling_layer=False,
        use_mask_token=use_mask_token,
        data_format=model.data_format,
        name="deit",
        dtype=model.dtype_policy,
    )


@keras.saving.register_keras_serializable(package="deit")
class TFDeiTForImageClassification(TFDeiTPreTrainedModel):
    """DeiT in Keras with one linear classifier on the class token.

    Args:
        config: `num_labels` is the number of classes; 0 leaves the classifier out.
        **options: See `KerasPreTrainedModel`.
    """

    def __init__(self, config: DeiTConfig, **options: Any) -> None:
        super().__init__(config, **options)
        with keras.name_scope(self.name):
            self.deit = _base(self, config)
            self.classifier = linear_classifier(config, "classifier", self.dtype_policy)
        self.built = True

    def network_parts(self) -> dict[str, Any]:
        """Returns the model's parts by their names in the network."""
        return {"deit": self.deit, "classifier": self.classifier}

    @takes_dict
    def call(
        self,
        pixel_values: Any = None,
        head_mask: Any = None,
        labels: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        interpolate_pos_encoding: bool = False,
        training: bool = False,
    ) -> Any:
        """Classifies; further arguments as in `TFDeiTModel.call`.

        Args:
            pixel_values: See `TFDeiTModel.call`.
            head_mask: See `TFDeiTModel.call`.
            labels: (B,) class numbers (-100: no label); (B, K) zeros and ones for many labels; numbers for a
                regression. The kind is `config.problem_type`, or inferred at the first loss and kept there.
            output_attentions: See `TFDeiTModel.call`.
            output_hidden_states: See `TFDeiTModel.call`.
            return_dict: See `TFDeiTModel.call`.
            interpolate_pos_encoding: See `TFDeiTModel.call`.
            training: See `TFDeiTModel.call`.
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
        return as_asked(classify(self.config, self.classifier, encoded, labels), return_dict, self.config)

    def loss_of_labels(self, output: KerasModelOutput, labels: Any, *, sample_weight: Any = None) -> Any:
        """Returns the loss of an output, each image with its weight."""
        return loss_of_problem(self.config, output["logits"], labels, sample_weight)


@keras.saving.register_keras_serializable(package="deit")
class TFDeiTForImageClassificationWithTeacher(TFDeiTPreTrainedModel):
    """DeiT in Keras with a class head and a distillation head; at inference their logits are averaged.

    Unlike transformers' class of this name it can be trained: see `labels` and `teacher_logits`.

    Args:
        config: `distillation_kind`, `distillation_temperature` and `distillation_weight` set the loss.
        **options: See `KerasPreTrainedModel`.
    """

    def __init__(self, config: DeiTConfig, **options: Any) -> None:
        super().__init__(config, **options)
        with keras.name_scope(self.name):
            self.deit = _base(self, config)
            self.cls_classifier = linear_classifier(config, "cls_classifier", self.dtype_policy)
            self.distillation_classifier = linear_classifier(config, "distillation_classifier", self.dtype_policy)
        self.built = True

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
        """Classifies with both heads; further arguments as in `TFDeiTModel.call`.

        The loss, with weight w, is (1 - w) x cross-entropy(class head, labels) + w x distillation(distillation
        head, teacher). Without teacher logits the distillation head learns the labels as well, so that both heads
        are trained and can be averaged.

        Args:
            pixel_values: See `TFDeiTModel.call`.
            head_mask: See `TFDeiTModel.call`.
            output_attentions: See `TFDeiTModel.call`.
            output_hidden_states: See `TFDeiTModel.call`.
            return_dict: See `TFDeiTModel.call`.
            interpolate_pos_encoding: See `TFDeiTModel.call`.
            training: See `TFDeiTModel.call`.
            labels: (B,) class numbers (-100: no label), or (B, K) class probabilities.
            teacher_logits: (B, K), what the teacher says of the same pixels.

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
        self, output: KerasModelOutput, labels: Any, teacher_logits: Any = None, *, sample_weight: Any = None
    ) -> Any:
        """Returns the loss of an output, each image with its weight; arguments as in `call`."""
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

    def loss_of_inputs(self, output: KerasModelOutput, inputs: Mapping[str, Any], sample_weight: Any) -> Any:
        """Returns the loss of an output, each image with its weight; `inputs` are those of `call`."""
        teacher_logits = inputs.get("teacher_logits")
        return self.loss_of_labels(output, inputs["labels"], teacher_logits, sample_weight=sample_weight)


@keras.saving.register_keras_serializable(package="deit")
class TFDeiTForMaskedImageModeling(TFDeiTPreTrainedModel):
    """DeiT in Keras that reconstructs the pixels of masked patches (SimMIM).

    Args:
        config: `encoder_stride` must equal the patch size for a loss, so that the reconstruction has the size of the
            image.
        **options: See `KerasPreTrainedModel`.
    """

    def __init__(self, config: DeiTConfig, **options: Any) -> None:
        super().__init__(config, **options)
        with keras.name_scope(self.name):
            self.deit = _base(self, config, use_mask_token=True)
            self.decoder = KerasPixelDecoder(config, name="decoder", dtype=self.dtype_policy)
        self.built = True

    def network_parts(self) -> dict[str, Any]:
        """Returns the model's parts by their names in the network."""
        return {"deit": self.deit, "decoder": self.decoder}

    @takes_dict
    def call(
        self,
        pixel_values: Any = None,
        bool_masked_pos: Any = None,
        head_mask: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        interpolate_pos_encoding: bool = False,
        training: bool = False,
    ) -> Any:
        """Reconstructs; arguments as in `TFDeiTModel.call`.

        The loss, when a mask is given, is the mean absolute error of the masked pixels, of each image its own.

        Raises:
            ValueError: A mask is given and the encoder stride is not the patch size.
        """
        if bool_masked_pos is not None:
            require_equal_stride(self.config)
        encoded = self.deit(
            pixel_values,
            bool_masked_pos=bool_masked_pos,
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            interpolate_pos_encoding=interpolate_pos_encoding,
            training=training,
        )
        return as_asked(reconstruct(self, encoded, pixel_values, bool_masked_pos), return_dict, self.config)

    def loss_of_inputs(self, output: KerasModelOutput, inputs: Mapping[str, Any], sample_weight: Any) -> Any:
        """Returns the loss of an output, each image with its weight; `inputs` are those of `call`."""
        pixels, mask = inputs["pixel_values"], inputs["bool_masked_pos"]
        return loss_of_reconstruction(self, pixels, mask, output["reconstruction"], sample_weight)


KerasDeiTModel = TFDeiTModel
KerasDeiTForMaskedImageModeling = TFDeiTForMaskedImageModeling
KerasDeiTForImageClassification = TFDeiTForImageClassification
KerasDeiTForImageClassificationWithTeacher = TFDeiTForImageClassificationWithTeacher


def _average(first: Any, second: Any, config: VisionTransformerConfig) -> Any:
    """Returns the logits (B, K) of two heads together; see `deit.models.head_average`."""
    numbers = config.problem_type == "regression" or (config.problem_type is None and config.num_labels == 1)
    if config.head_average == "logits" or numbers:
        return (first + second) / 2
    if config.problem_type == "multi_label_classification":
        yes = ops.logaddexp(ops.log_sigmoid(first), ops.log_sigmoid(second))
        return yes - ops.logaddexp(ops.log_sigmoid(-first), ops.log_sigmoid(-second))
    return ops.logaddexp(ops.log_softmax(first, axis=-1), ops.log_softmax(second, axis=-1)) - math.log(2)
