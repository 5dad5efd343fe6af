"""What stands on the trunk, the same for DeiT and ViT: classifier, decoder of masked images.

The public models hold these parts under the names of transformers and choose what goes into them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deit.core.config.vision_transformer import VisionTransformerConfig
from deit.models.outputs import BaseModelOutputWithPooling, MaskedImageModelingOutput
from deit.models.trunk.construction import construct, new_linear


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
        encoded: Output of the bare model.
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
