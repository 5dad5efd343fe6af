"""The transformer of DeiT and ViT: patch embedding, tokens, blocks, norm (paper, section 3 and 4).

Letters in shape comments: B batch, C channels, N tokens, P patches, D embedding dimension, H heads, d = D / H.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deit.core.config.vision_transformer import VisionTransformerConfig
from deit.core.errors import UserError, WrongTypeError
from deit.models.trunk.activations import XIELU, find_activation
from deit.models.trunk.aliases import Alias, Aliased, Group, self_attention_of
from deit.models.trunk.attention import plan_attention
from deit.models.trunk.checkpointing import Checkpointing
from deit.models.trunk.construction import new_linear, new_projection
from deit.models.trunk.cpu_kernels import Forwards, attend, first_tokens, linear, linear_activation, run_block
from deit.models.trunk.position_embedding import resize_position_embedding

DROP_PATH_SHAPES = ("linear", "constant")


@dataclass(frozen=True, kw_only=True)
class TrunkOutput:
    """What the trunk computes.

    Attributes:
        tokens: (B, N, D) after the final norm; class token, distillation token if any, then patches row by row
            (none with `prefix_only`).
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

    @property
    def is_active(self) -> bool:
        """Whether anything is skipped: in training, unless the rate is 0."""
        return self.training and self.rate > 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, N, D), in evaluation the input itself."""
        if not self.is_active:
            return x
        kept = x * self.draw(x)
        return kept / (1.0 - self.rate) if self.rate < 1.0 else kept

    def draw(self, x: Tensor) -> Tensor:
        """Draws which samples of the batch x (B, ...) are kept: (B, 1, 1), 0 or 1."""
        return x.new_empty(x.shape[0], 1, 1).bernoulli_(1.0 - self.rate)

    def extra_repr(self) -> str:
        """Shows the rate."""
        return f"rate={self.rate:.3f}"


class PatchEmbed(Aliased):
    """Cuts the image in patches and projects each to D numbers."""

    projection = Alias("proj")  # transformers' name

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__()
        self.num_channels = config.num_channels
        self.patch_size = config.grid_patch_size
        self.proj = new_projection(config.num_channels, config.hidden_size, self.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Turns (B, C, H, W) into (B, P, D), row by row; pixels take the type of the weights."""
        if pixels.ndim != 4 or pixels.shape[1] != self.num_channels:
            raise UserError(
                f"pixel_values must have the shape (batch, {self.num_channels}, height, width). "
                f"Received: {tuple(pixels.shape)}."
            )
        if pixels.shape[2] < self.patch_size[0] or pixels.shape[3] < self.patch_size[1]:
            raise UserError(
                f"An image of {tuple(pixels.shape[2:])} pixels is smaller than a patch of {self.patch_size}."
            )
        return self.proj(pixels.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)


class Attention(Aliased):
    """Multi-head self-attention with one fused projection for query, key and value.

    `split_qkv.split_model` puts three layers in the place of the fused one. `forward` takes tokens (B, N, D), the name
    of an implementation (see `deit.models.trunk.attention`), a bias added to the scores before softmax, and a mask that
    multiplies the probabilities, both broadcast to (B, H, N, N). It returns (B, N, D), and the probabilities
    (B, H, N, N) where the implementation is "eager".

    Args:
        config: Sizes and rates.
        pruned_heads: Numbers of heads that are left out.
    """

    o_proj = Alias("proj")  # transformers' names: of version 5, then of version 4
    attention = property(self_attention_of)
    output = property(lambda self: Group("attention.output", {"dense": self.proj}))

    def __init__(self, config: VisionTransformerConfig, pruned_heads: Iterable[int] = ()) -> None:
        super().__init__()
        width = config.hidden_size
        self.head_width = width // config.num_attention_heads
        self.heads = sorted(set(range(config.num_attention_heads)) - set(pruned_heads))
        self.dropout_rate = config.attention_probs_dropout_prob
        inner = len(self.heads) * self.head_width
        self.qkv: nn.Linear | None = new_linear(width, 3 * inner, bias=config.qkv_bias)
        self.qkv_names: tuple[str, ...] = ()  # of the three layers, where they are apart
        self.proj = new_linear(inner, width)

    def forward(
        self, x: Tensor, implementation: str, bias: Tensor | None, head_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Maps tokens (B, N, D) to tokens (B, N, D), and returns attention maps (B, H, N, N) where they were made."""
        qkv = self.project(x).unflatten(2, (3, len(self.heads), self.head_width))  # (B, N, 3, H, d)
        dropout_rate = self.dropout_rate if self.training else 0.0
        mixed, probabilities = attend(qkv, implementation, bias, head_mask, dropout_rate)  # (B, N, H * d)
        return linear(self.proj, mixed), probabilities

    def project(self, x: Tensor) -> Tensor:
        """Maps (B, N, D) to query, key and value side by side, (B, N, 3 * H * d)."""
        if self.qkv is not None:
            return linear(self.qkv, x)
        return torch.cat([linear(getattr(self, name), x) for name in self.qkv_names], dim=-1)


class Mlp(Aliased):
    """Two linear layers with an activation between them."""

    activation_fn = Alias("activation")  # transformers' name

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__()
        self.fc1 = new_linear(config.hidden_size, config.intermediate_size)
        self.fc2 = new_linear(config.intermediate_size, config.hidden_size)
        self.activation = find_activation(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, N, D) to (B, N, D)."""
        return linear(self.fc2, linear_activation(self.fc1, self.activation, x))


class LayerScale(nn.Module):
    """Multiplies each channel of a residual branch by a learned number (DeiT III).

    Args:
        width: Embedding dimension D.
        initial_value: What every factor starts with; small, so that a deep network starts near the identity.
    """

    def __init__(self, width: int, initial_value: float) -> None:
        super().__init__()
        self.initial_value = initial_value
        self.gamma = nn.Parameter(torch.full((width,), initial_value))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, N, D)."""
        return x * self.gamma


class Block(Aliased):
    """Attention and MLP, each after a norm, scaled in DeiT III, and added to its input.

    Under autocast a branch has fewer bits than its input. It takes the type of the input before the sum, because
    PyTorch is slow to add tensors of two types.
    """

    layernorm_before, layernorm_after = Alias("norm1"), Alias("norm2")  # transformers' names, of versions 4 and 5
    attention, dropout = Alias("attn"), Alias("drop")
    intermediate = property(lambda self: Group("intermediate", {"dense": self.mlp.fc1}))
    output = property(lambda self: Group("output", {"dense": self.mlp.fc2, "dropout": self.drop}))

    def __init__(
        self, config: VisionTransformerConfig, drop_path_rate: float, pruned_heads: Iterable[int] = ()
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = Attention(config, pruned_heads)
        self.ls1 = _layer_scale(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)
        self.ls2 = _layer_scale(config)
        self.drop = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self, x: Tensor, implementation: str, bias: Tensor | None, head_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Maps tokens (B, N, D) to tokens (B, N, D); arguments and second result as in `Attention`."""
        mixed, probabilities = self.attn(self.norm1(x), implementation, bias, head_mask)
        x = x + self.drop_path(self.ls1(self.drop(mixed))).to(x.dtype)
        x = x + self.drop_path(self.ls2(self.drop(self.mlp(self.norm2(x))))).to(x.dtype)
        return x, probabilities


# The layers of a block with their forward functions. Shortcuts require exactly these; see `cpu_kernels`.
BLOCK_FORWARDS: Forwards = {
    kind: kind.forward
    for kind in (Block, Attention, Mlp, LayerScale, DropPath, nn.LayerNorm, nn.Linear, nn.Dropout, nn.Identity)
}


def drop_path_rates(rate: float, depth: int, *, shape: str = "linear") -> list[float]:
    """Returns the drop path of each block, from the first to the last.

    Args:
        rate: Of the last block.
        depth: Number of blocks.
        shape: "linear" rises from 0 to the rate (DeiT; a single block gets 0); "constant" is the same everywhere
            (DeiT III).

    Raises:
        ValueError: An unknown shape, or the rate is no probability.
    """
    if not 0.0 <= rate <= 1.0:
        raise UserError(f"The drop path rate must lie between 0 and 1. Received: {rate}.")
    if shape not in DROP_PATH_SHAPES:
        raise UserError(f"The shape of drop path must be 'linear' or 'constant'. Received: {shape!r}.")
    if shape == "constant":
        return [rate] * depth
    return [rate * i / max(depth - 1, 1) for i in range(depth)]


def set_drop_path(model: nn.Module, rate: float, *, shape: str = "linear") -> None:
    """Sets the drop path of a model that is built already, such as one from a file.

    The configuration stays as it is: drop path belongs to a training, not to the weights.

    Args:
        model: A DeiT or ViT of this package, whole or its trunk.
        rate: See `drop_path_rates`.
        shape: See `drop_path_rates`.

    Raises:
        ValueError: An unknown shape, or the rate is no probability.
        TypeError: There is no transformer of this package in the model.
    """
    trunks = [module for module in model.modules() if isinstance(module, VisionTransformer)]
    if not trunks:
        raise WrongTypeError(
            f"Drop path can be set in a DeiT or ViT of this package. Received: {type(model).__name__}."
        )
    for trunk in trunks:
        rates = drop_path_rates(rate, len(trunk.blocks), shape=shape)
        for block, own_rate in zip(trunk.blocks, rates, strict=True):
            block.drop_path.rate = own_rate  # type: ignore[union-attr]


def _layer_scale(config: VisionTransformerConfig) -> nn.Module:
    return LayerScale(config.hidden_size, config.layer_scale_init) if config.layer_scale_init else nn.Identity()


class VisionTransformer(nn.Module):
    """The trunk: pixels to tokens.

    A ViT has a class token before its patches, a DeiT a distillation token as well; the configuration says which.
    The tensors carry the names of the paper's code: `cls_token`, `dist_token`, `pos_embed`, `patch_embed.proj`,
    `blocks.3.attn.qkv`, `norm`. Initial values are the paper's code's too (truncated normal for linear layers,
    tokens and position embedding); transformers starts tokens and positions at zero.

    Args:
        config: Sizes and rates.
        use_mask_token: Whether there is a token that stands for masked patches.

    Attributes:
        kept_tokens: A list gets the tokens that enter the first block and those of each block, (B, N, D), but not those
            of the last block where the prefix suffices: keeping them takes no time. None keeps nothing.
    """

    def __init__(self, config: VisionTransformerConfig, use_mask_token: bool = False) -> None:
        super().__init__()
        self.config = config
        width, depth = config.hidden_size, config.num_hidden_layers
        self.image_size, self.grid_size = config.grid_image_size, config.grid_size
        self.num_prefix_tokens = config.num_prefix_tokens
        num_patches = self.grid_size[0] * self.grid_size[1]
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width)) if self.num_prefix_tokens == 2 else None
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width)) if use_mask_token else None
        self.num_prefix_positions = self.num_prefix_tokens if config.pos_embed_prefix else 0
        self.pos_embed = nn.Parameter(torch.zeros(1, self.num_prefix_positions + num_patches, width))
        self.pos_drop = nn.Dropout(config.hidden_dropout_prob)
        rates = drop_path_rates(config.drop_path_rate, depth)
        pruned = config.pruned_heads
        self.blocks = nn.ModuleList(Block(config, rate, pruned.get(i, ())) for i, rate in enumerate(rates))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.checkpointing: Checkpointing | None = None
        self.kept_tokens: list[Tensor] | None = None

    @torch.no_grad()
    def initialize(self) -> None:
        """Draws new values for tokens and position embedding; layers are drawn by `initialize_layer`."""
        for token in (self.cls_token, self.dist_token, self.pos_embed):
            if token is not None:
                nn.init.trunc_normal_(token, std=self.config.initializer_range)
        if self.mask_token is not None:
            nn.init.zeros_(self.mask_token)

    def forward(
        self,
        pixels: Tensor,
        patch_mask: Tensor | None = None,
        *,
        interpolate: bool = False,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        need_hidden_states: bool = False,
        need_attentions: bool = False,
        prefix_only: bool = False,
    ) -> TrunkOutput:
        """Runs the network.

        Args:
            pixels: (B, C, H, W).
            patch_mask: (B, P), 1 or True where a patch is replaced by the mask token.
            interpolate: Whether the position embedding is resized to the image; else its size must be the trained one.
            attention_mask: (B, N) or (B, 1 or H, N, N); see `attention_bias`.
            head_mask: (H,) or (depth, H); see `head_mask_per_block`.
            need_hidden_states: Whether to return every block's output.
            need_attentions: Whether to return attention maps.
            prefix_only: Returns the prefix tokens alone and computes the last block only for them. That saves 7 % of
                the work of 12 blocks, in training too; numbers and gradients are the same.

        Raises:
            ValueError: Pixels or masks have the wrong shape.
        """
        x = self.embed(pixels, patch_mask, interpolate)
        plan = plan_attention(self.config, x, attention_mask, head_mask, need_attentions, len(self.blocks))
        plain = plan.implementation == "sdpa" and attention_mask is None and head_mask is None
        shortens = prefix_only and plain and not need_hidden_states and not (self.training and self.checkpointing)
        hidden_states, attentions, tokens = [x], [], None
        for i, (block, mask) in enumerate(zip(self.blocks, plan.head_masks, strict=True)):
            if shortens and i == len(self.blocks) - 1:
                tokens = first_tokens(block, self.norm, x, self.num_prefix_tokens, BLOCK_FORWARDS)
            if tokens is None:
                x, probabilities = self._run(i, block, x, plan.implementation, plan.bias, mask)
                if need_hidden_states or self.kept_tokens is not None:
                    hidden_states.append(x)
            if need_attentions:
                attentions.append(probabilities)
        if self.kept_tokens is not None:
            self.kept_tokens[:] = hidden_states
        tokens = self.norm(x) if tokens is None else tokens
        return TrunkOutput(
            tokens=tokens[:, : self.num_prefix_tokens] if prefix_only else tokens,
            hidden_states=tuple(hidden_states) if need_hidden_states else None,
            attentions=tuple(attentions) if need_attentions else None,
        )

    def _run(self, number: int, block: nn.Module, *arguments: Any) -> Any:
        if not self.training:
            return block(*arguments)
        run: Any = run_block
        if self.checkpointing is not None and number % self.checkpointing.every == 0:
            return self.checkpointing(run, block, *arguments, BLOCK_FORWARDS)
        return run(block, *arguments, BLOCK_FORWARDS)

    def embed(self, pixels: Tensor, patch_mask: Tensor | None = None, interpolate: bool = False) -> Tensor:
        """Returns the tokens that enter the first block, (B, N, D); arguments as in `forward`."""
        x = self.patch_embed(pixels)  # (B, P, D)
        height, width = pixels.shape[-2:]
        if not interpolate and (height, width) != self.image_size:
            raise UserError(
                f"The image is {height} x {width} pixels, the model was made for {self.image_size[0]} x "
                f"{self.image_size[1]}. Resize the image or pass interpolate_pos_encoding=True."
            )
        if patch_mask is not None:
            x = self._mask(x, patch_mask)
        positions = self.resized_position_embedding(height, width) if interpolate else self.pos_embed
        if not self.num_prefix_positions:
            x = x + positions  # DeiT III: the prefix tokens have no position
        prefix = [token.expand(x.shape[0], -1, -1) for token in (self.cls_token, self.dist_token) if token is not None]
        x = torch.cat((*prefix, x), dim=1)
        return self.pos_drop(x + positions if self.num_prefix_positions else x)

    def _mask(self, patches: Tensor, patch_mask: Tensor) -> Tensor:
        if self.mask_token is None:
            raise UserError("This model has no mask token. Build it with use_mask_token=True to pass bool_masked_pos.")
        if patch_mask.shape != patches.shape[:2]:
            raise UserError(
                f"bool_masked_pos must have the shape (batch, patches) = {tuple(patches.shape[:2])}. "
                f"Received: {tuple(patch_mask.shape)}."
            )
        mask = patch_mask.unsqueeze(-1).to(patches.dtype)
        return patches * (1.0 - mask) + self.mask_token * mask

    def resized_position_embedding(self, height: int, width: int) -> Tensor:
        """Returns the position embedding for an image of other size, (1, N, D); at the trained size it is itself.

        Args:
            height: Of the image, in pixels; a rest that fills no patch is ignored.
            width: Likewise.
        """
        patch_height, patch_width = self.patch_embed.patch_size
        grid = (height // patch_height, width // patch_width)
        return resize_position_embedding(
            self.pos_embed, self.grid_size, grid, num_prefix_positions=self.num_prefix_positions
        )


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
    elif isinstance(module, LayerScale):
        nn.init.constant_(module.gamma, module.initial_value)
    elif isinstance(module, (nn.Conv2d, nn.PReLU, XIELU)):
        module.reset_parameters()
