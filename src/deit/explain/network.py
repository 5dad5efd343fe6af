"""Computes a DeiT or ViT classifier anew from its weights, with attention maps that have gradients.

The model itself is only read: no hook, no attribute, no mode of it changes. So a model that answers in other threads,
by fused attention, in training mode or with merged tokens goes on undisturbed, also after an error.

Letters in shape comments: B batch, N tokens, P patches, D embedding dimension, H heads, d = D / H, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deit.core.errors import UserError, WrongTypeError, shown
from deit.models.classifier import BOTH, CLASS, DISTILLATION
from deit.models.deit import ImageClassifier, ModelWithHeads, average_heads
from deit.models.merging.blocks import MergingAttention, MergingBlock, MergingTransformer
from deit.models.trunk.position_embedding import resize_position_embedding
from deit.models.trunk.vision_transformer import (
    Attention,
    Block,
    DropPath,
    LayerScale,
    Mlp,
    PatchEmbed,
    VisionTransformer,
)
from deit.runtime.devices import Placement

Norm = Callable[[Tensor, Tensor, Tensor, float], Tensor]
Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Activate = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]

# The parts of a trunk whose computation is repeated here. A trunk with other parts computes something else.
_KNOWN = (
    VisionTransformer, MergingTransformer, PatchEmbed, Block, MergingBlock, Attention, MergingAttention, Mlp,
    LayerScale, DropPath, nn.LayerNorm, nn.Linear, nn.Conv2d, nn.Dropout, nn.Identity, nn.ModuleList,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """How the operations of the network are computed. A method of explanation may give them other gradients.

    Attributes:
        linear: From (..., in), a weight (out, in) and a bias (out,) or None to (..., out).
        norm: LayerNorm of (..., D) with weight, bias and epsilon.
        activate: Applies an activation to a tensor.
        product: Product of two batches of matrices.
    """

    linear: Linear
    norm: Norm
    activate: Activate
    product: Callable[[Tensor, Tensor], Tensor]


def _plain_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, epsilon)


PLAIN = Arithmetic(linear=F.linear, norm=_plain_norm, activate=lambda function, x: function(x), product=torch.matmul)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What one forward pass leaves behind, with its graph of gradients.

    Attributes:
        patches: (B, P, D), the patch embeddings without positions.
        states: Depth + 1 tensors (B, N, D): what enters the first block, then each block's output.
        attentions: Depth tensors (B, H, N, N) of attention probabilities.
        logits: (B, K) of each head, by the names of `head_logits`.
        grid: (rows, columns) of the patches.
    """

    patches: Tensor
    states: list[Tensor]
    attentions: list[Tensor]
    logits: dict[str, Tensor]
    grid: tuple[int, int]


@contextmanager
def with_gradients(device: torch.device) -> Iterator[None]:
    """Records gradients in float32, whatever the caller has switched off: a server answers in inference mode."""
    with torch.inference_mode(False), torch.enable_grad(), Placement(device).autocast():
        yield


class Network:
    """A classifier of this package, as functions of its weights in float32.

    Weights are read, never copied, unless they have another type or belong to inference mode.

    Args:
        model: A DeiT or ViT classifier.

    Attributes:
        head_names: The heads that look from a token of their own: "class", and "distillation" where there are two.
        prefix: Number of tokens before the patches.
        merges: Whether the model merges tokens. The network does not.

    Raises:
        WrongTypeError: The model is of another kind.
        UserError: A part of it was replaced, its weights are not in memory, or it has no classifier.
    """

    def __init__(self, model: Any) -> None:
        self.trunk = _trunk_of(model)
        self.config = model.config
        self.heads = _heads_of(model)
        self.head_names = tuple(self.heads)
        self.prefix = int(self.trunk.num_prefix_tokens)
        self.merges = isinstance(self.trunk, MergingTransformer)
        self.device = self.trunk.cls_token.device
        _refuse_unknown(model, self.trunk)

    def run(self, pixels: Tensor, arithmetic: Arithmetic = PLAIN) -> Trace:
        """Runs the network and keeps what explanations need. Call it inside `with_gradients`.

        Args:
            pixels: (B, C, H, W) of any size; positions are interpolated. A rest that fills no patch is ignored.
            arithmetic: How operations are computed.

        Raises:
            UserError: The pixels have another shape, or are smaller than a patch.
        """
        patches, grid = self.embed(pixels)
        if not patches.requires_grad:  # the weights have no gradients, so the graph begins here
            patches.requires_grad_(torch.is_grad_enabled())
        x = self._with_prefix(patches, grid)
        states, attentions = [x], []
        for block in self.trunk.blocks:
            x, attention = self._block(block, x, arithmetic)
            states.append(x)
            attentions.append(attention)
        logits = self._all_logits(x, arithmetic)
        return Trace(patches=patches, states=states, attentions=attentions, logits=logits, grid=grid)

    def logits(self, pixels: Tensor) -> dict[str, Tensor]:
        """Returns the logits (B, K) of each head, as `run`, and keeps nothing else."""
        x = self._with_prefix(*self.embed(pixels))
        for block in self.trunk.blocks:
            x, _ = self._block(block, x, PLAIN)
        return self._all_logits(x, PLAIN)

    def _all_logits(self, x: Tensor, arithmetic: Arithmetic) -> dict[str, Tensor]:
        found = {name: self.logits_of(name, x[:, number], arithmetic) for number, name in enumerate(self.head_names)}
        if len(found) == 1:
            return found
        return {BOTH: average_heads(found[CLASS], found[DISTILLATION], self.config), **found}

    def logits_of(self, head: str, token: Tensor, arithmetic: Arithmetic = PLAIN) -> Tensor:
        """Returns the logits (B, K) that a head gives a token (B, D) of any block, after the final norm."""
        layer, norm = self.heads[head], self.trunk.norm
        normed = arithmetic.norm(token, weight(norm.weight), weight(norm.bias), norm.eps)
        return arithmetic.linear(normed, weight(layer.weight), optional(layer.bias))

    def embed(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Returns the patch embeddings (B, P, D) without positions, and their grid.

        Args:
            pixels: (B, C, H, W).

        Raises:
            UserError: See `run`.
        """
        embedding = self.trunk.patch_embed
        if pixels.ndim != 4 or pixels.shape[1] != embedding.num_channels:
            raise UserError(
                f"Pixels must have the shape (batch, {embedding.num_channels}, height, width). "
                f"Received: {tuple(pixels.shape)}."
            )
        grid = (pixels.shape[2] // embedding.patch_size[0], pixels.shape[3] // embedding.patch_size[1])
        if not all(grid):
            raise UserError(
                f"The image of {pixels.shape[2]} x {pixels.shape[3]} pixels is smaller than a patch of "
                f"{embedding.patch_size[0]} x {embedding.patch_size[1]}."
            )
        layer = embedding.proj
        x = F.conv2d(pixels, weight(layer.weight), optional(layer.bias), layer.stride, layer.padding)
        return x.flatten(2).transpose(1, 2), grid

    def _with_prefix(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Adds positions and the prefix tokens: (B, P, D) to (B, N, D)."""
        trunk = self.trunk
        positions = resize_position_embedding(
            weight(trunk.pos_embed), trunk.grid_size, grid, num_prefix_positions=trunk.num_prefix_positions
        )
        tokens = [weight(token) for token in (trunk.cls_token, trunk.dist_token) if token is not None]
        prefix = torch.cat(tokens, dim=1).expand(len(patches), -1, -1)
        if not trunk.num_prefix_positions:
            return torch.cat((prefix, patches + positions), dim=1)
        return torch.cat((prefix, patches), dim=1) + positions

    def _block(self, block: Any, x: Tensor, arithmetic: Arithmetic) -> tuple[Tensor, Tensor]:
        mixed, attention = self._attend(block.attn, _normed(block.norm1, x, arithmetic), arithmetic)
        x = x + _scaled(block.ls1, mixed)
        hidden = _linear(block.mlp.fc1, _normed(block.norm2, x, arithmetic), arithmetic)
        hidden = arithmetic.activate(block.mlp.activation, hidden)
        return x + _scaled(block.ls2, _linear(block.mlp.fc2, hidden, arithmetic)), attention

    def _attend(self, attention: Any, x: Tensor, arithmetic: Arithmetic) -> tuple[Tensor, Tensor]:
        if attention.qkv is not None:
            qkv = _linear(attention.qkv, x, arithmetic)
        else:
            layers = [getattr(attention, name) for name in attention.qkv_names]
            qkv = torch.cat([_linear(layer, x, arithmetic) for layer in layers], dim=-1)
        qkv = qkv.unflatten(2, (3, len(attention.heads), attention.head_width))  # (B, N, 3, H, d)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, N, d)
        scores = arithmetic.product(query, key.transpose(2, 3)) * attention.head_width**-0.5
        probabilities = scores.softmax(dim=-1)
        mixed = arithmetic.product(probabilities, value).transpose(1, 2).flatten(2)
        return _linear(attention.proj, mixed, arithmetic), probabilities


def weight(parameter: Tensor) -> Tensor:
    """Returns a weight in float32, without gradients, that may enter a graph of gradients."""
    values = parameter.detach()
    values = values.clone() if values.is_inference() else values
    return values.float()


def optional(parameter: Tensor | None) -> Tensor | None:
    """Returns `weight` of a bias, or None where there is none."""
    return None if parameter is None else weight(parameter)


def _normed(layer: Any, x: Tensor, arithmetic: Arithmetic) -> Tensor:
    return arithmetic.norm(x, weight(layer.weight), weight(layer.bias), layer.eps)


def _linear(layer: Any, x: Tensor, arithmetic: Arithmetic) -> Tensor:
    return arithmetic.linear(x, weight(layer.weight), optional(layer.bias))


def _scaled(layer: Any, x: Tensor) -> Tensor:
    return x * weight(layer.gamma) if isinstance(layer, LayerScale) else x


# --- what can be explained ----------------------------------------------------------------------------


def _trunk_of(model: Any) -> Any:
    if not isinstance(model, ModelWithHeads):
        kind = type(model)
        origin = "a model of timm" if kind.__module__.partition(".")[0] == "timm" else f"of the class {kind.__name__}"
        raise WrongTypeError(
            "Explanations need a DeiT or ViT classifier of this package, whose attention is computed anew. "
            f"Received: {origin}. `deit convert` makes one of the original and timm weights of a DeiT or ViT."
        )
    return getattr(model, model.base_model_prefix).trunk


def _heads_of(model: Any) -> dict[str, Any]:
    if isinstance(model, ImageClassifier):
        heads: dict[str, nn.Module] = {CLASS: model.classifier}
    elif hasattr(model, "distillation_classifier"):
        heads = {CLASS: model.cls_classifier, DISTILLATION: model.distillation_classifier}
    else:
        raise WrongTypeError(f"Explanations are of a class. {type(model).__name__} is no classifier.")
    for name, head in heads.items():
        if type(head) is not nn.Linear:
            kind = "has no classes" if isinstance(head, nn.Identity) else f"is a {type(head).__name__}"
            raise UserError(f"Explanations are of a class. The {name} head of the model {kind}.")
    return heads


def _refuse_unknown(model: nn.Module, trunk: nn.Module) -> None:
    for name, module in trunk.named_modules():
        is_activation = name.endswith("mlp.activation")
        if type(module) not in _KNOWN and not is_activation:
            raise UserError(
                f"The part {shown(name)} of the model was replaced by a {type(module).__name__}, whose computation is "
                "unknown here. Explain the model before such a change, or merge adapters into its weights first."
            )
    for name, parameter in model.named_parameters():
        if parameter.is_meta or not parameter.is_floating_point():
            raise UserError(f"The weight {name} of the model is not in memory, or is quantized. Explain the original.")
