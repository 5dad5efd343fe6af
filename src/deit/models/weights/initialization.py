"""Starting a model from a checkpoint of other classes, another resolution, other tokens or another purpose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from deit.core.config.vision_transformer import VisionTransformerConfig
from deit.core.errors import UserError
from deit.core.weights.names import TRUNK, name_in_trunk
from deit.models.trunk.position_embedding import resize_position_embedding

Shape = tuple[int, ...]

_CLASS_HEADS = ("cls_classifier", "classifier")
_DISTILLATION_HEAD = "distillation_classifier"
_DECODER = "decoder"


@dataclass(frozen=True, kw_only=True)
class InitReport:
    """What became of each tensor when a model was started from a checkpoint. Names are the network's.

    Attributes:
        source: The checkpoint.
        loaded: (name, shape) of tensors that were taken as they are; rows of a head may have been put in another order.
        resized: (name, shape in the checkpoint, shape in the model).
        new: (name, shape) of tensors that started anew.
        dropped: (name, shape) of tensors of the checkpoint that the model has no use for.
        notes: What else a reader should know, in sentences.
    """

    source: str
    loaded: tuple[tuple[str, Shape], ...] = ()
    resized: tuple[tuple[str, Shape, Shape], ...] = ()
    new: tuple[tuple[str, Shape], ...] = ()
    dropped: tuple[tuple[str, Shape], ...] = ()
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """Returns the report as a few lines of text."""
        text = [f"Started from {self.source}: {len(self.loaded)} tensors taken as they are."]
        text += [f"Resized: {name} from {_by(old)} to {_by(shape)}." for name, old, shape in self.resized]
        for word, entries in (("New", self.new), ("Not used", self.dropped)):
            if entries:
                text.append(f"{word}: {', '.join(f'{name} ({_by(shape)})' for name, shape in entries)}.")
        return "\n".join([*text, *self.notes])


def _by(shape: Shape) -> str:
    return " x ".join(map(str, shape))


@dataclass
class _Progress:
    """What was done so far."""

    loaded: list[tuple[str, Shape]] = field(default_factory=list)
    resized: list[tuple[str, Shape, Shape]] = field(default_factory=list)
    new: list[tuple[str, Shape]] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def take(self, name: str, destination: Tensor, value: Tensor, *, of: str = "") -> None:
        if value.shape != destination.shape:
            raise UserError(
                f"{name} has the shape {_by(tuple(value.shape))} in the checkpoint and "
                f"{_by(tuple(destination.shape))} in the model. Take the architecture of the checkpoint."
            )
        destination.copy_(value)
        self.loaded.append((name, tuple(destination.shape)))
        self.used.add(of or name)


@torch.no_grad()
def initialize_from(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    source_config: VisionTransformerConfig,
    *,
    head_rows: Sequence[int] | None,
    source: str,
) -> InitReport:
    """Starts a model from the tensors of a checkpoint.

    The position embedding is resized to the model's image. A distillation token that the checkpoint has not starts
    where its class token is, with the class token's position and, where classes are kept, the class head. Both heads,
    and their mean, then begin with the accuracy of the checkpoint, so that small learning rates and few epochs do; a
    token drawn at random says nothing at first and needs epochs to catch up. The two part as soon as they learn from
    different targets. A model of masked images takes mask token and decoder where the checkpoint has them.

    Args:
        model: A classifier or a model of masked images with initial values, which are kept where the checkpoint has
            none.
        tensors: Result of `deit.models.weights.loading.read_network`.
        source_config: Of the checkpoint; sizes but for the image must be the model's.
        head_rows: For each class of the model, the number of its class in the checkpoint's heads; None starts the
            heads anew.
        source: Name of the checkpoint, for the report and messages.

    Raises:
        ValueError: A tensor of the trunk is missing or has another shape.
    """
    progress = _Progress()
    state = {name_in_trunk(name): tensor for name, tensor in model.state_dict().items() if TRUNK in name}
    heads = {name: tensor for name, tensor in model.state_dict().items() if TRUNK not in name}
    if "dist_token" in state and "dist_token" not in tensors and "cls_token" in tensors:
        progress.notes.append("The distillation token starts as a copy of the class token.")
        progress.take("dist_token", state.pop("dist_token"), tensors["cls_token"], of="cls_token")
    if "mask_token" in state and "mask_token" not in tensors:
        progress.new.append(("mask_token", tuple(state.pop("mask_token").shape)))
    lost = [name for name in state if name not in tensors]
    if lost:
        raise UserError(
            f"{source} lacks {len(lost)} tensors of the trunk, such as {lost[0]!r}. Is it of another depth or kind?"
        )
    assert isinstance(model.config, VisionTransformerConfig)
    _take_positions(model.config, state.pop("pos_embed"), tensors["pos_embed"], source_config, progress)
    for name, destination in state.items():
        progress.take(name, destination, tensors[name])
    _take_heads(heads, tensors, head_rows, progress)
    dropped = [(name, tuple(tensor.shape)) for name, tensor in tensors.items() if name not in progress.used]
    return InitReport(
        source=source,
        loaded=tuple(progress.loaded),
        resized=tuple(progress.resized),
        new=tuple(progress.new),
        dropped=tuple(dropped),
        notes=tuple(progress.notes),
    )


def _take_positions(
    config: VisionTransformerConfig,
    destination: Tensor,
    positions: Tensor,
    source_config: VisionTransformerConfig,
    progress: _Progress,
) -> None:
    own_prefix, prefix = (c.num_prefix_tokens if c.pos_embed_prefix else 0 for c in (config, source_config))
    rows, columns = source_config.grid_size
    if positions.ndim != 3 or positions.shape[1] != prefix + rows * columns:
        raise UserError(
            f"pos_embed of the checkpoint has {positions.shape[1]} positions; {prefix} prefix tokens and {rows} x "
            f"{columns} patches need {prefix + rows * columns}."
        )
    value = resize_position_embedding(positions, (rows, columns), config.grid_size, num_prefix_positions=prefix)
    if own_prefix > prefix:
        value = torch.cat((value[:, :1], value), dim=1)
        progress.notes.append("The position of the distillation token starts as a copy of the class token's.")
    elif own_prefix < prefix:
        value = torch.cat((value[:, :1], value[:, 2:]), dim=1)
        progress.notes.append("The distillation token's position is not used.")
    progress.take("pos_embed", destination, value)
    if config.grid_size != (rows, columns):
        progress.loaded.pop()
        progress.resized.append(("pos_embed", tuple(positions.shape), tuple(destination.shape)))


def _take_heads(
    heads: Mapping[str, Tensor], tensors: Mapping[str, Tensor], rows: Sequence[int] | None, progress: _Progress
) -> None:
    class_head = next((name for name in _CLASS_HEADS if f"{name}.weight" in tensors), "")
    copied = False
    for name, destination in heads.items():
        head, _, kind = name.rpartition(".")
        if head.startswith(_DECODER):
            _take_decoder(name, destination, tensors, progress)
            continue
        own = f"{head}.{kind}" if head == _DISTILLATION_HEAD else f"{class_head}.{kind}"
        if own not in tensors and head == _DISTILLATION_HEAD:
            own = f"{class_head}.{kind}"
            copied = rows is not None and own in tensors
        if rows is None or own not in tensors:
            progress.new.append((name, tuple(destination.shape)))
        else:
            progress.take(name, destination, tensors[own][list(rows)], of=own)
    if copied:
        progress.notes.append("The distillation head starts as a copy of the class head.")


def _take_decoder(name: str, destination: Tensor, tensors: Mapping[str, Tensor], progress: _Progress) -> None:
    value = tensors.get(name)
    if value is not None and value.shape == destination.shape:
        progress.take(name, destination, value)
    else:
        progress.new.append((name, tuple(destination.shape)))
