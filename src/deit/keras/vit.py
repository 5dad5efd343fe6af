"""The public ViT models in Keras: transformers' `TFViT*` classes on every backend of Keras 3.

The published DeiT checkpoints without distillation are ViTs. `KerasViT*` are other names of the same classes.
transformers never had the masked-image model in TensorFlow: it stands here beside PyTorch's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from deit.core.config.config import ViTConfig
from deit.keras.heads import (
    KerasPixelDecoder,
    KerasPooler,
    as_asked,
    classify,
    encode,
    linear_classifier,
    loss_of_problem,
    loss_of_reconstruction,
    reconstruct,
    require_equal_stride,
    takes_dict,
)
from deit.keras.outputs import KerasModelOutput
from deit.keras.pretrained import TFViTPreTrainedModel
from deit.keras.vision_transformer import KerasVisionTransformer, show_shape


@keras.saving.register_keras_serializable(package="deit")
class TFViTModel(TFViTPreTrainedModel):
    """The bare ViT in Keras: pixels to tokens, with a pooled output on top.

    Args:
        config: Sizes and rates.
        add_pooling_layer: Whether to have a pooler.
        use_mask_token: Whether to have a mask token, so that `bool_masked_pos` can be passed.
        **options: See `KerasPreTrainedModel`.
    """

    def __init__(
        self, config: ViTConfig, add_pooling_layer: bool = True, use_mask_token: bool = False, **options: Any
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
        head_mask: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
        training: bool = False,
        bool_masked_pos: Any = None,
    ) -> Any:
        """Runs the network; arguments as in `TFDeiTModel.call`, in the order of transformers' TFViTModel."""
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


def _base(model: Any, config: ViTConfig, use_mask_token: bool = False) -> TFViTModel:
    return TFViTModel(
        config,
        add_pooling_layer=False,
        use_mask_token=use_mask_token,
        data_format=model.data_format,
        name="vit",
        dtype=model.dtype_policy,
    )


@keras.saving.register_keras_serializable(package="deit")
class TFViTForImageClassification(TFViTPreTrainedModel):
    """ViT in Keras with one linear classifier on the class token.

    Args:
        config: `num_labels` is the number of classes; 0 leaves the classifier out.
        **options: See `KerasPreTrainedModel`.
    """

    def __init__(self, config: ViTConfig, **options: Any) -> None:
        super().__init__(config, **options)
        with keras.name_scope(self.name):
            self.vit = _base(self, config)
            self.classifier = linear_classifier(config, "classifier", self.dtype_policy)
        self.built = True

    def network_parts(self) -> dict[str, Any]:
        """Returns the model's parts by their names in the network."""
        return {"vit": self.vit, "classifier": self.classifier}

    @takes_dict
    def call(
        self,
        pixel_values: Any = None,
        head_mask: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
        labels: Any = None,
        training: bool = False,
    ) -> Any:
        """Classifies; arguments as in `TFDeiTForImageClassification.call`, in the order of transformers' class."""
        encoded = self.vit(
            pixel_values,
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            interpolate_pos_encoding=interpolate_pos_encoding,
            return_dict=True,
            training=training,
        )
        return as_asked(classify(self.config, self.classifier, encoded, labels), return_dict, self.config)

    def loss_of_labels(self, output: KerasModelOutput, labels: Any, *, sample_weight: Any = None) -> Any:
        """Returns the loss of an output, each image with its weight."""
        return loss_of_problem(self.config, output["logits"], labels, sample_weight)


@keras.saving.register_keras_serializable(package="deit")
class TFViTForMaskedImageModeling(TFViTPreTrainedModel):
    """ViT in Keras that reconstructs the pixels of masked patches (SimMIM).

    Args:
        config: `encoder_stride` must equal the patch size for a loss, so that the reconstruction has the size of the
            image.
        **options: See `KerasPreTrainedModel`.
    """

    def __init__(self, config: ViTConfig, **options: Any) -> None:
        super().__init__(config, **options)
        with keras.name_scope(self.name):
            self.vit = _base(self, config, use_mask_token=True)
            self.decoder = KerasPixelDecoder(config, name="decoder", dtype=self.dtype_policy)
        self.built = True

    def network_parts(self) -> dict[str, Any]:
        """Returns the model's parts by their names in the network."""
        return {"vit": self.vit, "decoder": self.decoder}

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
        """Reconstructs; arguments, their order, loss and errors as in `TFDeiTForMaskedImageModeling.call`."""
        if bool_masked_pos is not None:
            require_equal_stride(self.config)
        encoded = self.vit(
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


KerasViTModel = TFViTModel
KerasViTForMaskedImageModeling = TFViTForMaskedImageModeling
KerasViTForImageClassification = TFViTForImageClassification
