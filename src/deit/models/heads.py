"""What stands on the trunk, the same for DeiT and ViT: pooler, classifier, decoder of masked images.

The public models hold these parts under the names of transformers and choose what goes into them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deit.core.config.vision_transformer import VisionTransformerConfig
from deit.core.errors import UserError, WrongTypeError
from deit.models.outputs import (
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
    ModelOutput,
)
from deit.models.trunk.activations import find_activation
from deit.models.trunk.construction import construct, new_linear
from deit.models.trunk.cpu_kernels import is_untouched, linear
from deit.models.trunk.vision_transformer import VisionTransformer


class Pooler(nn.Module):
    """Maps the class token to the pooled output."""

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.pooler_output_size)
        self.activation = find_activation(config.pooler_act)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens (B, N, D) to (B, pooler_output_size)."""
        return self.activation(self.dense(tokens[:, 0]))


def linear_classifier(config: VisionTransformerConfig) -> nn.Module:
    """Builds a classifier of one token (B, D) -> (B, K); with no labels it returns the token."""
    if config.num_labels == 0:
        return nn.Identity()
    return construct(lambda: new_linear(config.hidden_size, config.num_labels))


def pixel_decoder(config: VisionTransformerConfig) -> nn.Sequential:
    """Builds what turns patches (B, D, rows, columns) into an image (B, C, H, W)."""
    return nn.Sequential(
        nn.Conv2d(config.hidden_size, config.encoder_stride**2 * config.num_channels, kernel_size=1),
        nn.PixelShuffle(config.encoder_stride),
    )


@torch.no_grad()
def initialize_decoder(module: nn.Module, decoder: nn.Module, config: VisionTransformerConfig) -> None:
    """Gives a part of `pixel_decoder` the start that `config.decoder_init` names; PyTorch's own is SimMIM's.

    Args:
        module: Any module of the model; others than the decoder's convolution stay as they are.
        decoder: The model's.
        config: Of the model.
    """
    if config.decoder_init == "normal" and isinstance(module, nn.Conv2d) and module in list(decoder.children()):
        nn.init.normal_(module.weight, std=config.initializer_range)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def encode(
    trunk: VisionTransformer,
    pooler: Pooler | None,
    pixel_values: Tensor | None,
    bool_masked_pos: Tensor | None,
    interpolate_pos_encoding: bool | None,
    attention_mask: Tensor | None,
    *,
    head_mask: Tensor | None,
    output_attentions: bool | None,
    output_hidden_states: bool | None,
    prefix_only: bool = False,
) -> BaseModelOutputWithPooling:
    """Runs the trunk and the pooler; arguments as in `DeiTModel.forward`."""
    if pixel_values is None:
        raise UserError("pixel_values is missing: pass a tensor of the shape (batch, channels, height, width).")
    # A tracer passes a default of False as a boolean tensor without dimensions.
    if isinstance(interpolate_pos_encoding, Tensor) and (
        interpolate_pos_encoding.ndim or interpolate_pos_encoding.dtype != torch.bool
    ):
        raise WrongTypeError(
            "interpolate_pos_encoding must be True or False. Received a tensor: name it (labels=, head_mask=)."
        )
    config = trunk.config
    result = trunk(
        pixel_values,
        bool_masked_pos,
        interpolate=bool(interpolate_pos_encoding),
        attention_mask=attention_mask,
        head_mask=head_mask,
        need_hidden_states=bool(decide(output_hidden_states, config.output_hidden_states)),
        need_attentions=decide(output_attentions, config.output_attentions),
        prefix_only=prefix_only,
    )
    return BaseModelOutputWithPooling(
        last_hidden_state=result.tokens,
        pooler_output=None if pooler is None else pooler(result.tokens),
        hidden_states=_chosen(result.hidden_states, output_hidden_states),
        attentions=result.attentions,
    )


def _chosen(states: tuple[Tensor, ...] | None, wanted: Any) -> Any:
    """Leaves None in the place of hidden states that were not asked for by their numbers, as transformers."""
    if states is None or not isinstance(wanted, (list, tuple)):
        return states
    kept = {range(len(states))[number] for number in wanted}  # negative ones count from the end
    return tuple(state if number in kept else None for number, state in enumerate(states))


def prefix_alone(base_model: nn.Module, original: type[nn.Module]) -> dict[str, bool]:
    """Requests prefix tokens only if no hook, subclass or replaced method needs the patch tokens.

    Args:
        base_model: What a classifier stands on; users replace it, extend it and hang hooks on it.
        original: This package's class.

    Returns:
        The argument for the base model, or none.
    """
    forwards = {kind: kind.forward for kind in (original, VisionTransformer)}
    for module in (base_model, getattr(base_model, "trunk", None)):
        if module is None or not is_untouched(module, forwards, inside=False):
            return {}
    return {"prefix_only": True}


def classify(
    config: VisionTransformerConfig,
    classifier: nn.Module,
    encoded: BaseModelOutputWithPooling,
    labels: Tensor | None,
    num_items_in_batch: Tensor | int | None,
    loss_function: Callable[..., Tensor],
) -> ImageClassifierOutput:
    """Classifies the class token.

    Args:
        config: Of the model.
        classifier: From token to logits.
        encoded: What `encode` returned.
        labels: See `DeiTForImageClassification.forward`.
        num_items_in_batch: See `problem_loss`; passed on if it is given.
        loss_function: The model's; `configured_loss` unless the user replaced it.

    Raises:
        ValueError: The labels do not suit the model.
    """
    assert encoded.last_hidden_state is not None
    logits = linear(classifier, encoded.last_hidden_state[:, 0])
    loss = None
    if labels is not None:
        if config.num_labels == 0:
            raise UserError("This model has no classifier (num_labels is 0), so labels give no loss. Leave them out.")
        options = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
        loss = loss_function(labels, logits, config, **options)
    return ImageClassifierOutput(
        loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
    )


def require_equal_stride(config: VisionTransformerConfig) -> None:
    """Checks that the reconstruction has the size of the image.

    Raises:
        ValueError: The encoder stride is not the patch size.
    """
    if config.grid_patch_size != (config.encoder_stride,) * 2:
        raise UserError(
            f"encoder_stride {config.encoder_stride} must equal patch_size {config.patch_size}: the "
            "reconstruction must have the size of the image."
        )


def reconstruct(
    config: VisionTransformerConfig,
    decoder: nn.Module,
    encoded: BaseModelOutputWithPooling,
    pixel_values: Tensor,
    bool_masked_pos: Tensor | None,
) -> MaskedImageModelingOutput:
    """Turns patches into pixels; with a mask, the loss is the mean absolute error of the masked pixels.

    Args:
        config: Of the model.
        decoder: Result of `pixel_decoder`.
        encoded: What `encode` returned.
        pixel_values: (B, C, H, W).
        bool_masked_pos: (B, P) or None.
    """
    assert encoded.last_hidden_state is not None
    patch_height, patch_width = config.grid_patch_size
    grid = (pixel_values.shape[-2] // patch_height, pixel_values.shape[-1] // patch_width)
    patches = encoded.last_hidden_state[:, config.num_prefix_tokens :]
    reconstruction = decoder(patches.transpose(1, 2).unflatten(2, grid))
    loss = None
    if bool_masked_pos is not None:
        mask = bool_masked_pos.unflatten(1, grid).repeat_interleave(patch_height, 1)
        mask = mask.repeat_interleave(patch_width, 2)
        error = (pixel_values[..., : mask.shape[-2], : mask.shape[-1]] - reconstruction).abs()
        error = error.to(torch.promote_types(error.dtype, torch.float32))  # float16 cannot count to 65 536 pixels
        mask = mask.unsqueeze(1).to(error.dtype)  # (B, 1, H, W)
        loss = (error * mask).sum() / (mask.sum() + 1e-5) / config.num_channels
    return MaskedImageModelingOutput(
        loss=loss, reconstruction=reconstruction, hidden_states=encoded.hidden_states, attentions=encoded.attentions
    )


def decide(per_call: bool | None, configured: bool) -> bool:
    """Returns what the call says, or the configuration where it says nothing."""
    return configured if per_call is None else per_call


def as_asked(output: ModelOutput, return_dict: bool | None, config: VisionTransformerConfig) -> Any:
    """Returns the output itself, or a tuple where the call or the configuration asks for one."""
    return output if decide(return_dict, config.return_dict) else output.to_tuple()
