"""The transformer of DeiT and ViT in Keras: the network of `deit.models.trunk.vision_transformer`.

Letters in shape comments: B batch, C channels, N tokens, P patches, D embedding dimension, H heads, d = D / H.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from deit.core.config.vision_transformer import VisionTransformerConfig
from deit.keras.activations import find_activation
from deit.keras.layers import (
    DropPath,
    FileConvolution,
    LayerScale,
    NetworkLayer,
    as_rows,
    convolution,
    dense,
    dropout,
    norm,
    normal_values,
    token_shape,
)
from deit.keras.position_embedding import patch_grid, resize_position_embedding


class PatchEmbed(NetworkLayer):
    """Cuts the image into patches and projects each to D numbers by one matrix product.

    Args:
        config: Sizes.
        data_format: "channels_first" or "channels_last".
    """

    def __init__(self, config: VisionTransformerConfig, data_format: str, **options: Any) -> None:
        super().__init__(**options)
        self.num_channels = config.num_channels
        self.patch_size = config.grid_patch_size
        self.channels_last = data_format == "channels_last"
        with keras.name_scope(self.name):
            inputs = config.num_channels * self.patch_size[0] * self.patch_size[1]
            self.proj = convolution(inputs, config.hidden_size, name="proj", dtype=self.dtype_policy)
        self.finish(None, config.grid_size[0] * config.grid_size[1], config.hidden_size)

    def call(self, pixels: Any, *, grid: tuple[int, int]) -> Any:
        """Maps pixels to (B, P, D), row by row. Drops pixels that do not fill a patch."""
        (rows, columns), (height, width) = grid, self.patch_size
        if self.channels_last:
            pixels = pixels[:, : rows * height, : columns * width]
            x = ops.reshape(pixels, (-1, rows, height, columns, width, self.num_channels))
            x = ops.transpose(x, (0, 1, 3, 5, 2, 4))
        else:
            pixels = pixels[:, :, : rows * height, : columns * width]
            x = ops.reshape(pixels, (-1, self.num_channels, rows, height, columns, width))
            x = ops.transpose(x, (0, 2, 4, 1, 3, 5))
        x = self.proj(ops.reshape(x, (-1, self.num_channels * height * width)))
        return ops.reshape(x, (-1, rows * columns, x.shape[-1]))

    def network_parts(self) -> dict[str, Any]:
        """Returns the inner layers and variables by their names in the network."""
        return {"proj": FileConvolution(self.proj, self.patch_size)}


class Attention(NetworkLayer):
    """Multi-head self-attention with one fused projection for query, key and value.

    Args:
        config: Sizes and rates.
        pruned_heads: Indices of removed heads.
    """

    def __init__(self, config: VisionTransformerConfig, pruned_heads: Iterable[int] = (), **options: Any) -> None:
        super().__init__(**options)
        width = config.hidden_size
        self.head_width = width // config.num_attention_heads
        self.heads = tuple(sorted(set(range(config.num_attention_heads)) - set(pruned_heads)))
        self.is_pruned = len(self.heads) < config.num_attention_heads
        inner = len(self.heads) * self.head_width
        with keras.name_scope(self.name):
            self.qkv = dense(width, 3 * inner, config, use_bias=config.qkv_bias, name="qkv", dtype=self.dtype_policy)
            self.proj = dense(inner, width, config, name="proj", dtype=self.dtype_policy)
            tokens = token_shape(config)[1]
            shape = (None, len(self.heads), tokens, tokens)
            self.drop = dropout(config.attention_probs_dropout_prob, *shape, name="drop", dtype=self.dtype_policy)
        self.finish(*token_shape(config))

    def call(
        self, x: Any, head_mask: Any = None, *, need_probabilities: bool = False, training: bool = False
    ) -> tuple[Any, Any]:
        """Attends.

        Args:
            x: (B, N, D).
            head_mask: Factors of the probabilities, (B or 1, H or 1, N or 1, N or 1), pruned heads included.
            need_probabilities: Whether to return the probabilities.
            training: Whether dropout is active.

        Returns:
            (B, N, D), and the probabilities (B, H, N, N) or None.
        """
        tokens, heads = x.shape[1], len(self.heads)
        qkv = ops.reshape(self.qkv(as_rows(x)), (-1, tokens, 3, heads, self.head_width))
        qkv = ops.transpose(qkv, (2, 0, 3, 1, 4))
        query, key, value = qkv[0] * self.head_width**-0.5, qkv[1], qkv[2]  # each (B, H, N, d)
        scores = ops.cast(ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))), "float32")  # (B, H, N, N)
        probabilities = None
        if need_probabilities or head_mask is not None or (training and self.drop.rate):
            probabilities = self._masked(ops.softmax(scores, axis=-1), head_mask, training, value.dtype)
            mixed = ops.matmul(probabilities, value)  # (B, H, N, d)
        else:  # divides by the sums of softmax after the product: d numbers instead of N
            powers = ops.exp(scores - ops.max(scores, axis=-1, keepdims=True))
            mixed = ops.matmul(ops.cast(powers, value.dtype), value)
            mixed = mixed / ops.cast(ops.sum(powers, axis=-1, keepdims=True), value.dtype)
        mixed = self.proj(ops.reshape(ops.transpose(mixed, (0, 2, 1, 3)), (-1, heads * self.head_width)))
        return ops.reshape(mixed, (-1, tokens, mixed.shape[-1])), probabilities

    def _masked(self, probabilities: Any, head_mask: Any, training: bool, dtype: Any) -> Any:
        probabilities = self.drop(ops.cast(probabilities, dtype), training=training)
        if head_mask is None:
            return probabilities
        if self.is_pruned and head_mask.shape[1] > len(self.heads):
            head_mask = ops.take(head_mask, np.array(self.heads), axis=1)
        return probabilities * ops.cast(head_mask, dtype)

    def network_parts(self) -> dict[str, Any]:
        """Returns the inner layers and variables by their names in the network."""
        return {"qkv": self.qkv, "proj": self.proj}


class Mlp(NetworkLayer):
    """Two linear layers with an activation between them."""

    def __init__(self, config: VisionTransformerConfig, **options: Any) -> None:
        super().__init__(**options)
        with keras.name_scope(self.name):
            self.fc1 = dense(config.hidden_size, config.intermediate_size, config, name="fc1", dtype=self.dtype_policy)
            self.fc2 = dense(config.intermediate_size, config.hidden_size, config, name="fc2", dtype=self.dtype_policy)
            self.activation = find_activation(config.hidden_act, dtype=self.dtype_policy)
        self.finish(*token_shape(config))

    def call(self, x: Any) -> Any:
        """Maps (B, N, D) to (B, N, D)."""
        y = self.fc2(self.activation(self.fc1(as_rows(x))))
        return ops.reshape(y, (-1, *x.shape[1:]))

    def network_parts(self) -> dict[str, Any]:
        """Returns the inner layers and variables by their names in the network."""
        parts: dict[str, Any] = {"fc1": self.fc1, "fc2": self.fc2}
        if isinstance(self.activation, keras.layers.Layer):
            parts["activation"] = self.activation
        return parts


class Block(NetworkLayer):
    """Attention and MLP, each with a norm before and a residual connection, scaled in DeiT III."""

    def __init__(
        self, config: VisionTransformerConfig, drop_path_rate: float, pruned_heads: Iterable[int] = (), **options: Any
    ) -> None:
        super().__init__(**options)
        with keras.name_scope(self.name):
            self.norm1 = norm(config, name="norm1", dtype=self.dtype_policy)
            self.attn = Attention(config, pruned_heads, name="attn", dtype=self.dtype_policy)
            self.ls1 = self._layer_scale(config, "ls1")
            self.norm2 = norm(config, name="norm2", dtype=self.dtype_policy)
            self.mlp = Mlp(config, name="mlp", dtype=self.dtype_policy)
            self.ls2 = self._layer_scale(config, "ls2")
            shape = token_shape(config)
            self.drop = dropout(config.hidden_dropout_prob, *shape, name="drop", dtype=self.dtype_policy)
            self.drop_path = DropPath(drop_path_rate, *shape, name="drop_path", dtype=self.dtype_policy)
        self.finish(*shape)

    def _layer_scale(self, config: VisionTransformerConfig, name: str) -> LayerScale | None:
        return (
            LayerScale(token_shape(config), config.layer_scale_init, name=name, dtype=self.dtype_policy)
            if config.layer_scale_init
            else None
        )

    def call(
        self, x: Any, head_mask: Any = None, *, need_probabilities: bool = False, training: bool = False
    ) -> tuple[Any, Any]:
        """Maps (B, N, D) to (B, N, D); arguments and second result as in `Attention`."""
        mixed, probabilities = self.attn(
            self.norm1(x), head_mask, need_probabilities=need_probabilities, training=training
        )
        x = x + self._branch(mixed, self.ls1, training)
        return x + self._branch(self.mlp(self.norm2(x)), self.ls2, training), probabilities

    def _branch(self, x: Any, scale: LayerScale | None, training: bool) -> Any:
        x = self.drop(x, training=training)
        return self.drop_path(x if scale is None else scale(x), training=training)

    def network_parts(self) -> dict[str, Any]:
        """Returns the inner layers and variables by their names in the network."""
        return {name: getattr(self, name) for name in ("norm1", "attn", "ls1", "norm2", "mlp", "ls2")}


class KerasVisionTransformer(NetworkLayer):
    """Maps pixels to tokens; see `deit.models.trunk.vision_transformer.VisionTransformer`.

    Args:
        config: Sizes and rates.
        use_mask_token: Whether there is a token that replaces masked patches.
        data_format: "channels_first" or "channels_last".
    """

    def __init__(
        self,
        config: VisionTransformerConfig,
        *,
        use_mask_token: bool = False,
        data_format: str = "channels_first",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.config = config
        depth = config.num_hidden_layers
        self.num_prefix_tokens = config.num_prefix_tokens
        self.num_prefix_positions = self.num_prefix_tokens if config.pos_embed_prefix else 0
        self.channels_last = data_format == "channels_last"
        positions = self.num_prefix_positions + config.grid_size[0] * config.grid_size[1]
        with keras.name_scope(self.name):
            self.patch_embed = PatchEmbed(config, data_format, name="patch_embed", dtype=self.dtype_policy)
            self.cls_token = self._token("cls_token", 1)
            self.dist_token = self._token("dist_token", 1) if self.num_prefix_tokens == 2 else None
            self.mask_token = None
            if use_mask_token:
                self.mask_token = self.add_weight(
                    shape=(1, 1, config.hidden_size), initializer="zeros", name="mask_token"
                )
            self.pos_embed = self._token("pos_embed", positions)
            shape = token_shape(config)
            self.pos_drop = dropout(config.hidden_dropout_prob, *shape, name="pos_drop", dtype=self.dtype_policy)
            rates = [config.drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
            pruned = config.pruned_heads
            self.blocks = [
                Block(config, rate, pruned.get(i, ()), name=f"blocks_{i}", dtype=self.dtype_policy)
                for i, rate in enumerate(rates)
            ]
            self.norm = norm(config, name="norm", dtype=self.dtype_policy)
        self.finish(*shape)

    def _token(self, name: str, count: int) -> Any:
        start = normal_values(self.config.initializer_range)
        return self.add_weight(shape=(1, count, self.config.hidden_size), initializer=start, name=name)

    def network_parts(self) -> dict[str, Any]:
        """Returns the inner layers and variables by their names in the network."""
        names = ("cls_token", "dist_token", "mask_token", "pos_embed", "patch_embed")
        blocks = {f"blocks.{i}": block for i, block in enumerate(self.blocks)}
        return {**{name: getattr(self, name) for name in names}, **blocks, "norm": self.norm}

    def call(
        self,
        pixels: Any,
        patch_mask: Any = None,
        head_mask: Any = None,
        *,
        need_hidden_states: bool = False,
        need_attentions: bool = False,
        training: bool = False,
    ) -> dict[str, Any]:
        """Runs the network.

        Args:
            pixels: (B, C, H, W), or (B, H, W, C) for channels last. For another image size than the trained one, the
                position embedding is resized.
            patch_mask: (B, P), 1 or True where the mask token replaces a patch.
            head_mask: (L, B or 1, H or 1, N or 1, N or 1), see `head_mask_per_block`.
            need_hidden_states: Whether to return the output of every block.
            need_attentions: Whether to return attention maps.
            training: Whether dropout and drop path are active.

        Returns:
            "tokens" (B, N, D) after the final norm; "hidden_states" and "attentions" if asked for.
        """
        x = self.embed(pixels, patch_mask, training=training)
        hidden_states, attentions = [x], []
        for i, block in enumerate(self.blocks):
            own_mask = None if head_mask is None else head_mask[i]
            x, probabilities = block(x, own_mask, need_probabilities=need_attentions, training=training)
            hidden_states.append(x)
            attentions.append(probabilities)
        result = {"tokens": self.norm(x)}
        if need_hidden_states:
            result["hidden_states"] = tuple(hidden_states)
        if need_attentions:
            result["attentions"] = tuple(attentions)
        return result

    def embed(self, pixels: Any, patch_mask: Any = None, *, training: bool = False) -> Any:
        """Returns the tokens that enter the first block, (B, N, D); arguments as in `call`."""
        size = pixels.shape[1:3] if self.channels_last else pixels.shape[2:4]
        grid = patch_grid(tuple(size), self.config)
        x = self.patch_embed(pixels, grid=grid)  # (B, P, D)
        if patch_mask is not None:
            x = self._mask(x, patch_mask)
        positions = resize_position_embedding(
            ops.convert_to_tensor(self.pos_embed, dtype=x.dtype),
            self.config.grid_size,
            grid,
            num_prefix_positions=self.num_prefix_positions,
        )
        if not self.num_prefix_positions:
            x = x + positions  # DeiT III: prefix tokens have no position
        prefix = [token for token in (self.cls_token, self.dist_token) if token is not None]
        shape = (ops.shape(x)[0], 1, self.config.hidden_size)
        x = ops.concatenate([*(ops.broadcast_to(ops.cast(token, x.dtype), shape) for token in prefix), x], axis=1)
        return self.pos_drop(x + positions if self.num_prefix_positions else x, training=training)

    def _mask(self, patches: Any, patch_mask: Any) -> Any:
        mask = ops.cast(patch_mask, patches.dtype)[:, :, None]
        return patches * (1.0 - mask) + ops.cast(self.mask_token, patches.dtype) * mask
