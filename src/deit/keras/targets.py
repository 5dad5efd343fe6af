"""Pairs the outputs of a model with targets, by name, for compiled losses and metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from deit.core.errors import UserError
from deit.core.outputs import ModelOutput

# A loss without names uses the first of these outputs that the model returns.
_MAIN_OUTPUTS = ("logits", "reconstruction", "pooler_output", "last_hidden_state")
_NO_TARGETS = ("loss", "hidden_states", "attentions")


def main_output(output: ModelOutput) -> str:
    """Returns the name of the output that a loss without names uses."""
    return next((name for name in _MAIN_OUTPUTS if name in output), next(iter(output)))


def for_loss(y: Any, output: Any, loss: Any) -> tuple[Any, Any]:
    """Returns the targets and outputs that a compiled loss compares.

    Args:
        y: One array: the targets of every output that the loss names, or of the main one. Or targets by the names of
            outputs.
        output: Output of the model; values other than a `ModelOutput` are returned unchanged.
        loss: The argument of `compile`: one loss, or losses by the names of outputs.

    Raises:
        ValueError: The model has no output of a name, or a loss has no targets.
    """
    if not isinstance(output, ModelOutput):
        return y, output
    named = {name: each for name, each in loss.items() if each is not None} if isinstance(loss, Mapping) else None
    if named is None and not isinstance(y, Mapping):
        _refuse_list(y)
        return y, output[main_output(output)]
    names = list(y) if named is None else list(named)
    _check_names(names, output, "loss" if named is not None else "y")
    return _targets(y, names, "loss"), {name: output[name] for name in names}


def for_metrics(y: Any, output: Any, metrics: Iterable[Any]) -> tuple[Any, Any]:
    """Returns the targets and outputs that compiled metrics compare; arguments and errors as in `for_loss`.

    Args:
        y: See `for_loss`.
        output: See `for_loss`.
        metrics: The arguments `metrics` and `weighted_metrics` of `compile`.
    """
    if not isinstance(output, ModelOutput):
        return y, output
    asked = [name for group in metrics if isinstance(group, Mapping) for name in group]
    if asked:
        _check_names(asked, output, "metrics")
        targets = _targets(y, dict.fromkeys(asked), "metrics")
        # All outputs, so that Keras finds the same ones at each batch. It ignores those without a metric.
        names = [name for name in output if name not in _NO_TARGETS]
        return {name: targets.get(name, targets[asked[0]]) for name in names}, {name: output[name] for name in names}
    main = main_output(output)
    if not isinstance(y, Mapping):
        return y, output[main]
    _check_names(y, output, "y")
    if main not in y and len(y) > 1:
        first = next(iter(y))
        raise UserError(f"Metrics must say which output they are of. Pass metrics={{{first!r}: [...]}}.")
    name = main if main in y else next(iter(y))
    return y[name], output[name]


def _targets(y: Any, names: Iterable[str], what: str) -> dict[str, Any]:
    if not isinstance(y, Mapping):
        _refuse_list(y)
        return dict.fromkeys(names, y)
    missing = [name for name in names if name not in y]
    if missing:
        raise UserError(f"y has no targets of {missing[0]!r}, which {what} names. Received: {', '.join(y)}.")
    return {name: y[name] for name in names}


def _check_names(names: Iterable[str], output: ModelOutput, what: str) -> None:
    known = [name for name in output if name not in _NO_TARGETS]
    for name in names:
        if name not in known:
            raise UserError(f"{what} names {name!r}, which is no output of the model. Known: {', '.join(known)}.")


def _refuse_list(y: Any) -> None:
    if isinstance(y, (list, tuple)):
        raise UserError(
            "The targets of several outputs must be named: y={'logits': ..., ...}. "
            f"Received: a {type(y).__name__} of {len(y)}."
        )
