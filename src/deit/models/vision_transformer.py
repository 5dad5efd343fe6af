"""The transformer of DeiT: patch embedding, tokens, blocks, norm (paper, section 3 and 4).

Letters in shape comments: B batch, C channels, N tokens, P patches, D embedding dimension, H heads, d = D / H.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deit.core.configuration import DeiTConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "selu": F.selu,
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "linear": lambda x: x,
}


def find_activation(name: str) -> Callable[[Tensor], Tensor]:
    """Returns an activation by its name in configurations.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"Unknown activation {name!r}. Known: {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


@dataclass(frozen=True, kw_only=True)
class TrunkOutput:
    """What the trunk computes.

    Attributes:
        tokens: (B, N, D) after the final norm; class token, distillation token, then patches row by row.
        hidden_states: Depth + 1 tensors (B, N, D): the embeddings, then each block's output before the final
            norm; None unless asked for.
        attentions: Depth tensors (B, H, N, N) of attention probabilities; None unless asked for.
    """

    tokens: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class DropPath(nn.Module):
    """Skips a residual branch for some samples while training, and scales the others up (stochastic depth).

    Args:
        rate: Probability of skipping.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, N, D), in evaluation the input itself."""
        if self.rate == 0.0 or not self.training:
            return x
        keep = x.new_empty(x.shape[0], 1, 1).bernoulli_(1.0 - self.rate)
        return x * keep / (1.0 - self.rate)

    def extra_repr(self) -> str:
        """Shows the rate."""
        return f"rate={self.rate:.3f}"


class PatchEmbed(nn.Module):
    """Cuts the image in patches and projects each to D numbers."""

    def __init__(self, config: DeiTConfig) -> None:
        super().__init__()
        self.num_channels = config.num_channels
        self.patch_size = config.grid_patch_size
        self.proj = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=self.patch_size, stride=self.patch_size
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Turns (B, C, H, W) into (B, P, D), row by row; pixels take the type of the weights."""
        if pixels.ndim != 4 or pixels.shape[1] != self.num_channels:
            raise ValueError(
                f"pixel_values must have the shape (batch, {self.num_channels}, height, width). "
                f"Received: {tuple(pixels.shape)}."
            )
        return self.proj(pixels.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection for query, key and value."""

    def __init__(self, config: DeiTConfig) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.dropout_rate = config.attention_probs_dropout_prob
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, x: Tensor, bias: Tensor | None, head_mask: Tensor | None, need_probabilities: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attends.

        Args:
            x: (B, N, D).
            bias: Added to the scores before softmax, broadcast to (B, H, N, N).
            head_mask: (H,); what each head says is multiplied by its number.
            need_probabilities: Whether the attention maps are wanted; they take the eager path.

        Returns:
            (B, N, D) and the probabilities (B, H, N, N) or None.
        """
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, N, d)
        dropout_rate = self.dropout_rate if self.training else 0.0
        probabilities = None
        if need_probabilities or self.config.attn_implementation == "eager":
            scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
            if bias is not None:
                scores = scores + bias
            probabilities = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
            probabilities = F.dropout(probabilities, dropout_rate, self.training)
            if head_mask is not None:
                probabilities = probabilities * head_mask[:, None, None]
            mixed = probabilities @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout_rate)
            if head_mask is not None:  # the same as masking the probabilities: they enter linearly
                mixed = mixed * head_mask[:, None, None]
        mixed = mixed.transpose(1, 2).reshape(batch, tokens, width)
        return self.proj(mixed), probabilities if need_probabilities else None


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: DeiTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = find_activation(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, N, D) to (B, N, D)."""
        return self.fc2(self.activation(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP, each after a norm and added to its input."""

    def __init__(self, config: DeiTConfig, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)
        self.drop = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self, x: Tensor, bias: Tensor | None, head_mask: Tensor | None, need_probabilities: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Maps (B, N, D) to (B, N, D); arguments and second result as in `Attention`."""
        mixed, probabilities = self.attn(self.norm1(x), bias, head_mask, need_probabilities)
        x = x + self.drop_path(self.drop(mixed))
        x = x + self.drop_path(self.drop(self.mlp(self.norm2(x))))
        return x, probabilities


class VisionTransformer(nn.Module):
    """The trunk: pixels to tokens.

    The tensors carry the names of the paper's code: `cls_token`, `dist_token`, `pos_embed`, `patch_embed.proj`,
    `blocks.3.attn.qkv`, `norm`. Initial values are the paper's code's too (truncated normal for linear layers,
    tokens and position embedding); transformers starts tokens and positions at zero.

    Args:
        config: Sizes and rates.
        use_mask_token: Whether there is a token that stands for masked patches.
    """

    num_prefix_tokens = 2  # class token and distillation token

    def __init__(self, config: DeiTConfig, use_mask_token: bool = False) -> None:
        super().__init__()
        self.config = config
        width, depth = config.hidden_size, config.num_hidden_layers
        self.grid_size = config.grid_size
        num_patches = self.grid_size[0] * self.grid_size[1]
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width)) if use_mask_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, self.num_prefix_tokens + num_patches, width))
        self.pos_drop = nn.Dropout(config.hidden_dropout_prob)
        rates = [config.drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    @torch.no_grad()
    def initialize(self) -> None:
        """Draws new values for tokens and position embedding; layers are drawn by `initialize_layer`."""
        for token in (self.cls_token, self.dist_token, self.pos_embed):
            nn.init.trunc_normal_(token, std=self.config.initializer_range)
        if self.mask_token is not None:
            nn.init.zeros_(self.mask_token)

    def forward(
        self,
        pixels: Tensor,
        patch_mask: Tensor | None = None,
        *,
        interpolate: bool = False,
        bias: Tensor | None = None,
        head_mask: Tensor | None = None,
        need_hidden_states: bool = False,
        need_attentions: bool = False,
    ) -> TrunkOutput:
        """Runs the network.

        Args:
            pixels: (B, C, H, W).
            patch_mask: (B, P), 1 or True where a patch is replaced by the mask token.
            interpolate: Whether the position embedding is resized to the image; else its size must be the trained one.
            bias: Added to the attention scores, broadcast to (B, H, N, N).
            head_mask: (depth, H) or (H,); see `Attention`.
            need_hidden_states: Whether to return every block's output.
            need_attentions: Whether to return attention maps.

        Raises:
            ValueError: Pixels or masks have the wrong shape.
        """
        x = self.embed(pixels, patch_mask, interpolate)
        if head_mask is not None:
            head_mask = self._head_mask_per_block(head_mask).to(x.dtype)
        hidden_states = [x]
        attentions = []
        for i, block in enumerate(self.blocks):
            x, probabilities = block(x, bias, None if head_mask is None else head_mask[i], need_attentions)
            if need_hidden_states:
                hidden_states.append(x)
            if need_attentions:
                attentions.append(probabilities)
        return TrunkOutput(
            tokens=self.norm(x),
            hidden_states=tuple(hidden_states) if need_hidden_states else None,
            attentions=tuple(attentions) if need_attentions else None,
        )

    def embed(self, pixels: Tensor, patch_mask: Tensor | None = None, interpolate: bool = False) -> Tensor:
        """Returns the tokens that enter the first block, (B, N, D); arguments as in `forward`."""
        x = self.patch_embed(pixels)  # (B, P, D)
        height, width = pixels.shape[-2:]
        if not interpolate and (height, width) != self.config.grid_image_size:
            raise ValueError(
                f"The image is {height} x {width} pixels, the model was made for "
                f"{self.config.grid_image_size[0]} x {self.config.grid_image_size[1]}. "
                "Resize the image or pass interpolate_pos_encoding=True."
            )
        if patch_mask is not None:
            x = self._mask(x, patch_mask)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), self.dist_token.expand(len(x), -1, -1), x), dim=1)
        return self.pos_drop(x + (self.resized_position_embedding(height, width) if interpolate else self.pos_embed))

    def _mask(self, patches: Tensor, patch_mask: Tensor) -> Tensor:
        if self.mask_token is None:
            raise ValueError("This model has no mask token. Build it with use_mask_token=True to pass bool_masked_pos.")
        if patch_mask.shape != patches.shape[:2]:
            raise ValueError(
                f"bool_masked_pos must have the shape (batch, patches) = {tuple(patches.shape[:2])}. "
                f"Received: {tuple(patch_mask.shape)}."
            )
        mask = patch_mask.unsqueeze(-1).to(patches.dtype)
        return patches * (1.0 - mask) + self.mask_token * mask

    def resized_position_embedding(self, height: int, width: int) -> Tensor:
        """Returns the position embedding for an image of other size, (1, N, D).

        Bicubic, as in the paper (section 3): bilinear would shrink the vectors. Prefix tokens are untouched, and
        at the trained size it is the embedding itself.

        Args:
            height: Of the image, in pixels; a rest that fills no patch is ignored.
            width: Likewise.
        """
        patch_height, patch_width = self.patch_embed.patch_size
        grid = (height // patch_height, width // patch_width)
        if grid == self.grid_size:
            return self.pos_embed
        prefix, patches = self.pos_embed.split([self.num_prefix_tokens, self.pos_embed.shape[1] - 2], dim=1)
        patches = patches.unflatten(1, self.grid_size).permute(0, 3, 1, 2)  # (1, D, rows, columns)
        patches = F.interpolate(patches, size=grid, mode="bicubic", align_corners=False)
        return torch.cat((prefix, patches.flatten(2).transpose(1, 2)), dim=1)

    def _head_mask_per_block(self, head_mask: Tensor) -> Tensor:
        shape = (len(self.blocks), self.config.num_attention_heads)
        if head_mask.shape not in (shape, shape[1:]):
            raise ValueError(
                f"head_mask must have the shape (heads,) = {shape[1:]} or (layers, heads) = {shape}. "
                f"Received: {tuple(head_mask.shape)}."
            )
        return head_mask.expand(shape)


@torch.no_grad()
def initialize_layer(module: nn.Module, std: float) -> None:
    """Draws new values for one layer: truncated normal weights and zero biases for linear layers.

    Convolutions keep PyTorch's own values, as in the paper's code: they are scaled by the size of a patch.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        module.reset_parameters()
