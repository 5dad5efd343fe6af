"""Heads of the Keras models, the same for DeiT and ViT: pooler, classifier, decoder of masked images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import keras
from keras import ops

from deit.core.config.vision_transformer import VisionTransformerConfig
from deit.core.errors import UserError
from deit.core.outputs import ModelOutput
from deit.keras.activations import find_activation
from deit.keras.inputs import as_pixels, as_tensor, check_patch_mask, check_pixels
from deit.keras.layers import FileConvolution, NetworkLayer, convolution, dense
from deit.keras.losses import infer_problem_type, masked_pixel_loss, problem_loss
from deit.keras.outputs import (
    KerasBaseModelOutputWithPooling,
    KerasImageClassifierOutput,
    KerasMaskedImageModelingOutput,
)
from deit.keras.position_embedding import head_mask_per_block, patch_grid


class KerasPooler(NetworkLayer):
    """Maps the class token to the pooled output."""

    def __init__(self, config: VisionTransformerConfig, **options: Any) -> None:
        super().__init__(**options)
        with keras.name_scope(self.name):
            self.dense = dense(
                config.hidden_size, config.pooler_output_size, config, name="dense", dtype=self.dtype_policy
            )
            self.activation = find_activation(config.pooler_act, dtype=self.dtype_policy)
        self.finish(None, config.pooler_output_size)

    def call(self, tokens: Any) -> Any:
        """Maps tokens (B, N, D) to (B, pooler_output_size)."""
        return self.activation(self.dense(tokens[:, 0]))

    def network_parts(self) -> dict[str, Any]:
        """Returns the inner layers by their names in the network."""
        parts: dict[str, Any] = {"dense": self.dense}
        if isinstance(self.activation, keras.layers.Layer):
            parts["activation"] = self.activation
        return parts


def linear_classifier(config: VisionTransformerConfig, name: str, policy: Any) -> keras.layers.Dense | None:
    """Builds a linear classifier of one token (B, D) -> (B, K); returns None without labels.

    It computes in the dtype of the weights: in mixed precision the logits are float32, as Keras recommends.
    """
    if config.num_labels == 0:
        return None
    return dense(config.hidden_size, config.num_labels, config, name=name, dtype=policy.variable_dtype)


class KerasPixelDecoder(NetworkLayer):
    """Turns patches (B, P, D) into an image (B, C, H, W)."""

    def __init__(self, config: VisionTransformerConfig, **options: Any) -> None:
        super().__init__(**options)
        self.stride, self.num_channels = config.encoder_stride, config.num_channels
        with keras.name_scope(self.name):
            outputs = self.stride**2 * self.num_channels
            options = {"name": "0", "dtype": self.dtype_policy}
            if config.decoder_init == "simmim":
                self.projection = convolution(config.hidden_size, outputs, **options)
            else:
                self.projection = dense(config.hidden_size, outputs, config, **options)
        self.finish(None, self.num_channels, *(side * self.stride for side in config.grid_size))

    def call(self, patches: Any, *, grid: tuple[int, int]) -> Any:
        """Maps patches, row by row, to an image of grid x stride pixels."""
        (rows, columns), stride = grid, self.stride
        x = ops.reshape(self.projection(patches), (-1, rows, columns, self.num_channels, stride, stride))
        x = ops.transpose(x, (0, 3, 1, 4, 2, 5))
        return ops.reshape(x, (-1, self.num_channels, rows * stride, columns * stride))

    def network_parts(self) -> dict[str, Any]:
        """Returns the inner layers by their names in the network."""
        return {"0": FileConvolution(self.projection, (1, 1))}


def encode(
    model: Any,
    pixel_values: Any,
    bool_masked_pos: Any,
    head_mask: Any,
    *,
    output_attentions: bool | None,
    output_hidden_states: bool | None,
    interpolate_pos_encoding: bool | None,
    training: bool | None,
) -> KerasBaseModelOutputWithPooling:
    """Runs the trunk and the pooler of a bare model; arguments as in `BareModel.call`."""
    config = model.config
    pixels, mask = as_pixels(pixel_values), as_tensor(bool_masked_pos)
    check_pixels(tuple(pixels.shape), model, bool(interpolate_pos_encoding))
    if mask is not None:
        rows, columns = patch_grid(_image_size(pixels, model), config)
        has_mask_token = model.trunk.mask_token is not None
        check_patch_mask(tuple(mask.shape), (pixels.shape[0], rows * columns), has_mask_token)
    if head_mask is not None:
        head_mask = head_mask_per_block(as_tensor(head_mask), config.num_hidden_layers, config.num_attention_heads)
    result = model.trunk(
        pixels,
        mask,
        head_mask,
        need_hidden_states=decide(output_hidden_states, config.output_hidden_states),
        need_attentions=decide(output_attentions, config.output_attentions),
        training=bool(training),
    )
    return KerasBaseModelOutputWithPooling(
        last_hidden_state=result["tokens"],
        pooler_output=None if model.pooler is None else model.pooler(result["tokens"]),
        hidden_states=result.get("hidden_states"),
        attentions=result.get("attentions"),
    )


def _image_size(pixels: Any, model: Any) -> tuple[int | None, ...]:
    return tuple(pixels.shape[2:4] if model.data_format == "channels_first" else pixels.shape[1:3])


def classify_token(classifier: keras.layers.Dense | None, tokens: Any, place: int) -> Any:
    """Returns the logits of one token of (B, N, D), or the token itself without a classifier."""
    return tokens[:, place] if classifier is None else classifier(tokens[:, place])


def classify(
    config: VisionTransformerConfig, classifier: Any, encoded: KerasBaseModelOutputWithPooling, labels: Any
) -> KerasImageClassifierOutput:
    """Classifies the class token; arguments as in PyTorch's `classify`."""
    logits = classify_token(classifier, encoded.last_hidden_state, 0)
    return KerasImageClassifierOutput(
        loss=None if labels is None else loss_of_problem(config, logits, labels),
        logits=logits,
        hidden_states=encoded.hidden_states,
        attentions=encoded.attentions,
    )


def loss_of_problem(config: VisionTransformerConfig, logits: Any, labels: Any, sample_weight: Any = None) -> Any:
    """Returns the loss. The first call infers the problem type and stores it in the configuration.

    Raises:
        ValueError: The labels do not fit the model.
    """
    require_classifier(config)
    labels = as_tensor(labels)
    if config.problem_type is None:
        config.problem_type = infer_problem_type(labels, config.num_labels)
    return problem_loss(logits, labels, config.problem_type, sample_weight)


def require_classifier(config: VisionTransformerConfig) -> None:
    """Checks that the model has a classifier.

    Raises:
        ValueError: The model has no classifier.
    """
    if config.num_labels == 0:
        raise UserError("This model has no classifier (num_labels is 0), so labels give no loss. Leave them out.")


def reconstruct(
    model: Any, encoded: KerasBaseModelOutputWithPooling, pixel_values: Any, bool_masked_pos: Any
) -> KerasMaskedImageModelingOutput:
    """Reconstructs pixels from patches; with a mask, adds the mean absolute error of the masked pixels as loss."""
    config = model.config
    grid = patch_grid(_image_size(as_pixels(pixel_values), model), config)
    image = model.decoder(encoded.last_hidden_state[:, config.num_prefix_tokens :], grid=grid)
    loss = None
    if bool_masked_pos is not None:
        loss = loss_of_reconstruction(model, pixel_values, bool_masked_pos, image)
    return KerasMaskedImageModelingOutput(
        loss=loss, reconstruction=image, hidden_states=encoded.hidden_states, attentions=encoded.attentions
    )


def loss_of_reconstruction(
    model: Any, pixel_values: Any, bool_masked_pos: Any, image: Any, sample_weight: Any = None
) -> Any:
    """Returns the mean absolute error of the masked pixels; arguments as in `reconstruct`; weights are (B,)."""
    pixels = as_pixels(pixel_values)
    if model.data_format == "channels_last":
        pixels = ops.transpose(pixels, (0, 3, 1, 2))
    return masked_pixel_loss(pixels, image, as_tensor(bool_masked_pos), model.config.grid_patch_size, sample_weight)


def decide(per_call: bool | None, configured: bool) -> bool:
    """Returns the argument of the call, or the value of the configuration if it is None."""
    return configured if per_call is None else per_call


def as_asked(output: ModelOutput, return_dict: bool | None, config: VisionTransformerConfig) -> Any:
    """Returns the output, or a tuple if `return_dict` of the call or the configuration is False."""
    return output if decide(return_dict, config.return_dict) else output.to_tuple()


def takes_dict(call: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a `call` also accept its inputs as one dict, as `fit` and `predict` pass them."""

    @wraps(call)
    def unpacked(self: Any, pixel_values: Any = None, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(pixel_values, Mapping):
            return call(self, pixel_values, *args, **kwargs)
        return call(self, *args, **{**pixel_values, **kwargs})

    return unpacked
