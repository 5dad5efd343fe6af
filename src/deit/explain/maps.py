"""Explains one image: for each head of a classifier a map of every block, and an overall map."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deit.core.errors import UserError, WrongTypeError, shown
from deit.core.labels import REGRESSION, names_in_order, numbers_by_name, repeated_names, several_classes
from deit.core.scores.functions import FUNCTIONS, function_name
from deit.explain.attention_lrp import attention_lrp
from deit.explain.methods import legrad, relevance, rollout
from deit.explain.network import Network, Trace, with_gradients
from deit.models.classifier import BOTH

Array = npt.NDArray[np.float32]
Target = int | str | Mapping[str, int | str] | None


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to explain.

    Attributes:
        title: Its name for people.
        source: The paper.
        signed: Whether a patch can speak against the class. Maps show what speaks for it.
        depends_on_class: Whether another target gives another map.
    """

    title: str
    source: str
    signed: bool = False
    depends_on_class: bool = True


RELEVANCE, ROLLOUT, LEGRAD, ATTNLRP = "relevance", "rollout", "legrad", "attnlrp"
METHODS: dict[str, Method] = {
    RELEVANCE: Method(title="gradient x attention relevance", source="Chefer et al., arXiv 2103.15679"),
    LEGRAD: Method(title="LeGrad", source="Bousselham et al., arXiv 2404.03214"),
    ATTNLRP: Method(title="AttnLRP", source="Achtibat et al., arXiv 2402.05602", signed=True),
    ROLLOUT: Method(title="attention rollout", source="Abnar and Zuidema, arXiv 2005.00928", depends_on_class=False),
}
# Best of all by both scores, on each of three models, see docs/explain.md.
DEFAULT_METHOD = ATTNLRP


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadMaps:
    """Where one head looked.

    Attributes:
        target: Number of the class that is explained.
        label: Its name.
        logit: The head's logit of that class.
        probability: The head's probability of it, without calibration; of a regression the value itself.
        blocks: (L, rows, columns), a map of each block, in 0..1; what it means depends on the method.
        overall: (rows, columns), in 0..1.
        values: (rows, columns), the overall map as the method gives it, with its sign and scale. Scores rank patches
            by it.
    """

    target: int
    label: str
    logit: float
    probability: float
    blocks: Array
    overall: Array
    values: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """Where the heads of a classifier looked in one image.

    Attributes:
        method: A key of `METHODS`.
        target: Number of the class that is explained in the answer of the model.
        label: Its name.
        grid: (rows, columns) of the patches.
        heads: Maps by the name of the head. With two heads "both" is the answer of the model; its values are the mean
            of the heads' values.
        notes: What a reader has to know about how the maps were made.
    """

    method: str
    target: int
    label: str
    grid: tuple[int, int]
    heads: dict[str, HeadMaps]
    notes: tuple[str, ...] = ()


def explain_image(
    model: Any,
    pixels: Tensor | npt.NDArray[Any],
    *,
    method: str = DEFAULT_METHOD,
    heads: Sequence[str] | None = None,
    target: Target = None,
) -> Explanation:
    """Explains the answer of a classifier for one image.

    The model is only read: nothing in it changes, and other threads may use it meanwhile. Its attention is computed
    anew for this image, in float32 and with gradients, whatever implementation the model uses. A model that merges
    tokens is explained without merging, which `notes` say.

    Args:
        model: A DeiT or ViT classifier of this package, on any device, in any mode.
        pixels: (1, C, H, W), preprocessed; of any size, positions are interpolated.
        method: A key of `METHODS`.
        heads: Those to explain, of "both", "class" and "distillation"; all that the model has when None.
        target: Number or name of the class to explain; a dict gives heads classes of their own. None is the class that
            the model predicts, for all heads.

    Raises:
        WrongTypeError: The model is of another kind, such as one of timm.
        UserError: A part of the model was replaced; the pixels have another shape; there is no such method, head or
            class; or the model answers with NaN or infinity.

    Examples:
        >>> from deit import ViTConfig, ViTForImageClassification
        >>> sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32}
        >>> model = ViTForImageClassification(ViTConfig(**sizes, patch_size=8))
        >>> explain_image(model, torch.zeros(1, 3, 32, 32)).heads["class"].blocks.shape
        (3, 4, 4)
    """
    check_method(method)
    network = Network(model)
    x = _one_image(pixels, network.device)
    with with_gradients(network.device):
        trace = network.run(x)
        logits = {name: row[0].detach().cpu().numpy() for name, row in trace.logits.items()}
        _refuse_no_numbers(logits)
        wanted = _chosen_heads(heads, tuple(logits))
        targets = _targets(model, logits, target)
        compute = cache(lambda head, number: _compute(network, trace, x, method, head, number))
        raw = {name: _raw(network, compute, name, targets[name]) for name in wanted}
    maps = {
        name: _head_maps(model, rows, trace.grid, method, logits[name], targets[name]) for name, rows in raw.items()
    }
    answer = targets[next(iter(logits))]
    notes = (_merging_note(model),) if network.merges else ()
    return Explanation(
        method=method, target=answer, label=_names(model)[answer], grid=trace.grid, heads=maps, notes=notes
    )


def check_method(method: str) -> None:
    """Checks that there is a method of that name.

    Raises:
        UserError: There is none.
    """
    if method not in METHODS:
        raise UserError(f"Unknown method {shown(method)}. Known: {', '.join(METHODS)}.")


def class_number(target: int | str, names: Sequence[str]) -> int:
    """Returns the number of a class.

    Args:
        target: Its name or its number; a text of digits is a number, unless a class has that name.
        names: Of all classes, in their order.

    Raises:
        UserError: There is no such class, or several have the name.
    """
    if isinstance(target, str):
        numbers = numbers_by_name(names)
        if target in numbers:
            return numbers[target]
        if target in repeated_names(names):
            raise UserError(several_classes(target, repeated_names(names)[target], names))
        if not target.isdecimal():
            raise UserError(
                f"The model has no class {shown(target)}. Its {len(names)} classes begin with: {_some(names)}."
            )
        target = int(target[:20])
    if isinstance(target, bool) or not isinstance(target, (int, np.integer)):
        raise WrongTypeError(f"target must be the number or the name of a class. Received: {shown(target)}.")
    if not 0 <= target < len(names):
        raise UserError(f"The model has {len(names)} classes, numbered from 0. Received: {target}.")
    return int(target)


def probability(logits: npt.NDArray[Any], target: int, problem_type: str | None) -> float:
    """Returns the probability of a class from logits (K,); of a regression the value itself."""
    return float(FUNCTIONS[function_name(problem_type, len(logits))](logits)[target])


def _some(names: Sequence[str]) -> str:
    return ", ".join(shown(name) for name in names[:5])


def _names(model: Any) -> list[str]:
    return names_in_order(model.config.id2label)


def _one_image(pixels: Any, device: torch.device) -> Tensor:
    tensor = torch.as_tensor(pixels)
    if tensor.ndim != 4 or len(tensor) != 1:
        raise UserError(
            f"Pixels of one image must have the shape (1, 3, height, width). Received: {tuple(tensor.shape)}."
        )
    tensor = tensor.detach()
    with torch.inference_mode(False):  # a tensor of inference mode cannot enter a graph of gradients
        return (tensor.clone() if tensor.is_inference() else tensor).to(device=device, dtype=torch.float32)


def _refuse_no_numbers(logits: Mapping[str, npt.NDArray[Any]]) -> None:
    if not all(np.isfinite(row).all() for row in logits.values()):
        raise UserError(
            "The model answers with NaN or infinity, so there is nothing to explain. Its weights may be damaged."
        )


def _chosen_heads(heads: Sequence[str] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    if heads is None:
        return known
    if isinstance(heads, str):
        heads = (heads,)
    unknown = [name for name in heads if name not in known]
    if unknown or not heads:
        raise UserError(f"The model has the heads {', '.join(known)}. Received: {shown(heads)}.")
    return tuple(dict.fromkeys(heads))


def _targets(model: Any, logits: Mapping[str, npt.NDArray[Any]], target: Target) -> dict[str, int]:
    """Returns the class number of each head: the one that is asked for, or that of the model's answer."""
    names = _names(model)
    answer = int(next(iter(logits.values())).argmax())
    if target is None:
        return dict.fromkeys(logits, answer)
    if not isinstance(target, Mapping):
        return dict.fromkeys(logits, class_number(target, names))
    unknown = [name for name in target if name not in logits]
    if unknown:
        raise UserError(f"The model has the heads {', '.join(logits)}. Received a target for {shown(unknown[0])}.")
    return {name: class_number(target[name], names) if name in target else answer for name in logits}


def _raw(
    network: Network, compute: Callable[[str, int], tuple[Tensor, Tensor]], head: str, target: int
) -> tuple[Tensor, Tensor]:
    """Returns the raw maps of the blocks (L, P) and the overall one (P,); those of both heads are means."""
    parts = [compute(name, target) for name in (network.head_names if head == BOTH else (head,))]
    return torch.stack([blocks for blocks, _ in parts]).mean(0), torch.stack([whole for _, whole in parts]).mean(0)


def _compute(
    network: Network, trace: Trace, pixels: Tensor, method: str, head: str, target: int
) -> tuple[Tensor, Tensor]:
    rows = _COMPUTE[method](network, trace, pixels, head, target).detach()
    if method == ATTNLRP:
        return rows[:-1], rows[-1]
    return rows, rows.mean(0) if method == LEGRAD else rows[-1]


_COMPUTE: dict[str, Callable[[Network, Trace, Tensor, str, int], Tensor]] = {
    RELEVANCE: lambda network, trace, _, head, target: relevance(network, trace, head, target),
    ROLLOUT: lambda network, trace, _, head, target: rollout(network, trace, head, target),
    LEGRAD: lambda network, trace, _, head, target: legrad(network, trace, head, target),
    ATTNLRP: lambda network, _, pixels, head, target: attention_lrp(network, pixels, head, target),
}


def _head_maps(
    model: Any, raw: tuple[Tensor, Tensor], grid: tuple[int, int], method: str, logits: npt.NDArray[Any], target: int
) -> HeadMaps:
    blocks = raw[0].cpu().numpy().astype(np.float32).reshape(-1, *grid)
    values = raw[1].cpu().numpy().astype(np.float32).reshape(grid)
    signed = METHODS[method].signed
    return HeadMaps(
        target=target,
        label=_names(model)[target],
        logit=float(logits[target]),
        probability=probability(logits, target, model.config.problem_type),
        blocks=np.stack([scaled(block, signed=signed) for block in blocks]),
        overall=scaled(values, signed=signed),
        values=values,
    )


def scaled(values: Array, *, signed: bool) -> Array:
    """Brings a map to 0..1 for showing it: the largest value becomes 1.

    Args:
        values: (rows, columns).
        signed: Values below 0 speak against the class and become 0; else the smallest value becomes 0. A map without
            differences becomes 0 everywhere.
    """
    low = 0.0 if signed else float(values.min())
    spread = float(values.max()) - low
    if not spread > 0:
        return np.zeros_like(values)
    return ((values - low).clip(min=0) / spread).astype(np.float32)


def _merging_note(model: Any) -> str:
    return (
        f"The model merges tokens ({model.config.token_merging}). The explanation is of the same weights without "
        "merging, whose answer can differ a little."
    )


def is_regression(model: Any) -> bool:
    """Whether the output of a model is a value, not a probability."""
    problem_type = model.config.problem_type
    return bool(problem_type == REGRESSION or (problem_type is None and model.config.num_labels == 1))
