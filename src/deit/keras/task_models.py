"""One abstract Keras model for each task; the DeiT and ViT classes add their configuration and order of arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ClassVar

import keras

from deit.core.config.field_checks import require_equal_stride
from deit.core.config.vision_transformer import VisionTransformerConfig
from deit.core.outputs import ModelOutput
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
    takes_dict,
)
from deit.keras.layers import show_shape
from deit.keras.pretrained import KerasPreTrainedModel
from deit.keras.vision_transformer import KerasVisionTransformer


def in_order(call: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """Returns a `call` method whose arguments have another order.

    Args:
        call: Method of a model.
        *names: Its arguments without `self`, in the new order.
    """
    signature = inspect.signature(call)
    signature = signature.replace(parameters=[signature.parameters[name] for name in ("self", *names)])

    @wraps(call)
    def ordered(*args: Any, **kwargs: Any) -> Any:
        return call(**signature.bind(*args, **kwargs).arguments)

    ordered.__signature__ = signature  # type: ignore[attr-defined]
    return ordered


class BareModel(KerasPreTrainedModel):
    """Turns pixels into tokens, with a pooled output.

    Args:
        config: Sizes and rates.
        add_pooling_layer: Whether to have a pooler.
        use_mask_token: Whether to have a mask token, so that `bool_masked_pos` can be passed.
        **options: See `KerasPreTrainedModel`.
    """

    def __init__(
        self,
        config: VisionTransformerConfig,
        add_pooling_layer: bool = True,
        use_mask_token: bool = False,
        **options: Any,
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
        """Returns the arguments of `from_config`."""
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
        interpolate_pos_encoding: bool | None = False,
        training: bool = False,
    ) -> Any:
        """Runs the network.

        Args:
            pixel_values: (B, C, H, W), or as `data_format` says; or a dict of these arguments.
            bool_masked_pos: (B, patches), 1 where the mask token replaces a patch.
            head_mask: (H,) or (depth, H); factors of the attention probabilities of each head. Also
                (depth, B or 1, H or 1, N or 1, N or 1).
            output_attentions: Return attention maps; None takes the value of the configuration.
            output_hidden_states: Return the output of every block; None takes the value of the configuration.
            return_dict: False returns a tuple; None takes the value of the configuration.
            interpolate_pos_encoding: Accept another image size by resizing the position embedding.
            training: Whether dropout and drop path are active.

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


class ModelWithHeads(KerasPreTrainedModel):
    """A model that holds a bare model, under the name `base_model_prefix`.

    Args:
        config: Sizes, rates and labels.
        **options: See `KerasPreTrainedModel`.
    """

    bare_class: ClassVar[type[BareModel]]
    has_mask_token: ClassVar[bool] = False

    def __init__(self, config: VisionTransformerConfig, **options: Any) -> None:
        super().__init__(config, **options)
        with keras.name_scope(self.name):
            bare = self.bare_class(
                config,
                add_pooling_layer=False,
                use_mask_token=self.has_mask_token,
                data_format=self.data_format,
                name=self.base_model_prefix,
                dtype=self.dtype_policy,
            )
            setattr(self, self.base_model_prefix, bare)
            self.add_heads(config)
        self.built = True

    def add_heads(self, config: VisionTransformerConfig) -> None:
        """Builds the layers on the bare model."""
        raise NotImplementedError


class ImageClassifier(ModelWithHeads):
    """Classifies by one linear layer on the class token.

    Args:
        config: `num_labels` is the number of classes; 0 leaves the classifier out.
        **options: See `KerasPreTrainedModel`.
    """

    def add_heads(self, config: VisionTransformerConfig) -> None:
        """Builds the classifier."""
        self.classifier = linear_classifier(config, "classifier", self.dtype_policy)

    def network_parts(self) -> dict[str, Any]:
        """Returns the model's parts by their names in the network."""
        return {self.base_model_prefix: self.base_model, "classifier": self.classifier}

    @takes_dict
    def call(
        self,
        pixel_values: Any = None,
        head_mask: Any = None,
        labels: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        interpolate_pos_encoding: bool | None = False,
        training: bool = False,
    ) -> Any:
        """Classifies; arguments that are not listed as in `BareModel.call`.

        Args:
            pixel_values: See `BareModel.call`.
            head_mask: See `BareModel.call`.
            labels: (B,) class numbers (-100: no label); (B, K) zeros and ones for many labels; numbers for a
                regression. `config.problem_type` decides; None infers it at the first loss and keeps it.
            output_attentions: See `BareModel.call`.
            output_hidden_states: See `BareModel.call`.
            return_dict: See `BareModel.call`.
            interpolate_pos_encoding: See `BareModel.call`.
            training: See `BareModel.call`.
        """
        encoded = self.base_model(
            pixel_values,
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            interpolate_pos_encoding=interpolate_pos_encoding,
            training=training,
        )
        return as_asked(classify(self.config, self.classifier, encoded, labels), return_dict, self.config)

    def loss_of_labels(self, output: ModelOutput, labels: Any, *, sample_weight: Any = None) -> Any:
        """Returns the loss of an output, each image multiplied by its weight."""
        return loss_of_problem(self.config, output["logits"], labels, sample_weight)


class MaskedImageModel(ModelWithHeads):
    """Reconstructs the pixels of masked patches (SimMIM).

    Args:
        config: `encoder_stride` must equal the patch size for a loss, so that the reconstruction has the size of the
            image.
        **options: See `KerasPreTrainedModel`.
    """

    has_mask_token = True

    def add_heads(self, config: VisionTransformerConfig) -> None:
        """Builds the decoder."""
        self.decoder = KerasPixelDecoder(config, name="decoder", dtype=self.dtype_policy)

    def network_parts(self) -> dict[str, Any]:
        """Returns the model's parts by their names in the network."""
        return {self.base_model_prefix: self.base_model, "decoder": self.decoder}

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
        """Reconstructs the image; arguments as in `BareModel.call`.

        With a mask, the loss is the mean absolute error of the masked pixels. Each image has its own mask.

        Raises:
            ValueError: A mask is given and the encoder stride differs from the patch size.
        """
        if bool_masked_pos is not None:
            require_equal_stride(self.config)
        encoded = self.base_model(
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

    def loss_of_inputs(self, output: ModelOutput, inputs: Mapping[str, Any], sample_weight: Any) -> Any:
        """Returns the loss of an output, each image multiplied by its weight; `inputs` are those of `call`."""
        pixels, mask = inputs["pixel_values"], inputs["bool_masked_pos"]
        return loss_of_reconstruction(self, pixels, mask, output["reconstruction"], sample_weight)
