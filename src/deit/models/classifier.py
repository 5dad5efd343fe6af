"""Opens classifiers, and returns the logits of each of their heads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deit.core.errors import UserError, WrongTypeError
from deit.models.auto import CLASSIFICATION, AutoModelForImageClassification, names_of
from deit.models.auto_openers import AutoConfig
from deit.models.outputs import DeiTForImageClassificationWithTeacherOutput, ImageClassifierOutput
from deit.models.weights.finiteness import refuse_non_finite_model
from deit.models.weights.from_pretrained import OWN_MEMORY

BOTH, CLASS, DISTILLATION = "both", "class", "distillation"


def open_classifier(folder: Path) -> Any:
    """Opens a DeiT or ViT classifier, with the class that its configuration names.

    `AutoModelForImageClassification` also opens what is no classifier yet, and gives it new heads; this does not. The
    weights are read into memory, so whatever happens to the files changes no answer.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The folder holds no classifier, a damaged one, or one whose weights are NaN or infinite.
    """
    config = AutoConfig.from_pretrained(folder)
    if not set(config.architectures or ()) & set(names_of(CLASSIFICATION)):
        raise UserError(
            f"{folder} holds {config.architectures}, which is no image classifier. "
            f"Known: {', '.join(names_of(CLASSIFICATION))}."
        )
    model = AutoModelForImageClassification.from_pretrained(folder, config=config, **OWN_MEMORY)
    refuse_non_finite_model(model, folder)
    return model


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Returns the names of a classifier's heads, in the order of `head_logits`."""
    return (BOTH, CLASS, DISTILLATION) if hasattr(model, "distillation_classifier") else (CLASS,)


@contextmanager
def last_inputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what the class head of a classifier is given, (B, D), in the calls of a block.

    Args:
        model: A DeiT or ViT classifier, or a model of timm; of any other, nothing is collected.
    """
    taken: list[Tensor] = []
    head: Any = getattr(model, "cls_classifier", None) or getattr(model, "classifier", None)
    if head is None and hasattr(model, "get_classifier"):
        ask: Any = model.get_classifier
        found = ask()
        head = found[0] if isinstance(found, (tuple, list)) else found  # timm's distilled models have two
    if not isinstance(head, nn.Linear):
        yield taken
        return
    handle = head.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0].detach()))
    try:
        yield taken
    finally:
        handle.remove()


def head_logits(model: nn.Module, pixels: Tensor) -> dict[str, Tensor]:
    """Returns the logits (B, K) of each head; the first one is the model's answer.

    Args:
        model: A DeiT classifier, or any module from pixels to logits.
        pixels: (B, C, H, W).

    Returns:
        "both" (their mean), "class" and "distillation" for a model with two heads, else "class" alone.

    Raises:
        TypeError: The model returns neither logits nor a known output.
    """
    output = model(pixels)
    if isinstance(output, DeiTForImageClassificationWithTeacherOutput):
        assert output.logits is not None
        assert output.cls_logits is not None
        assert output.distillation_logits is not None
        return {BOTH: output.logits, CLASS: output.cls_logits, DISTILLATION: output.distillation_logits}
    if isinstance(output, ImageClassifierOutput):
        output = output.logits
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise WrongTypeError(
            f"{type(model).__name__} must return logits (batch, classes). Received: {type(output).__name__}."
        )
    return {CLASS: output}
