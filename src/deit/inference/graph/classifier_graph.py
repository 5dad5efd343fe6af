"""A classifier as one module for inference and conversion: pixels to the logits of each head."""

from __future__ import annotations

import logging

from torch import Tensor, nn

from deit.inference.contract import Contract
from deit.inference.graph.folding import fold, rescaling
from deit.inference.graph.known_models import why_unknown
from deit.models.classifier import head_logits

logger = logging.getLogger(__name__)


class PlainClassifier(nn.Module):
    """A classifier as it is, with the inputs and outputs of `classifier_graph`.

    Args:
        model: Any module that `head_logits` takes.
        contract: Of the model.
        takes_uint8: See `classifier_graph`.
    """

    factor: Tensor  # (C, 1, 1)
    shift: Tensor

    def __init__(self, model: nn.Module, contract: Contract, *, takes_uint8: bool) -> None:
        super().__init__()
        self.model, self.head_names, self.takes_uint8 = model, contract.head_names, takes_uint8
        if takes_uint8:
            factor, shift = rescaling(contract.processor, contract.num_channels)
            parameter = next(model.parameters(), factor.float())
            self.register_buffer("factor", factor[:, None, None].to(parameter))
            self.register_buffer("shift", shift[:, None, None].to(parameter))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Returns the logits (B, K) of each head of the contract."""
        if self.takes_uint8:
            pixels = pixels.to(self.factor.dtype) * self.factor + self.shift
        heads = head_logits(self.model, pixels)
        return tuple(heads[name] for name in self.head_names)


def classifier_graph(
    model: nn.Module, contract: Contract, *, takes_uint8: bool = False, with_features: bool = False
) -> nn.Module:
    """Rewrites a classifier for inference and for other engines.

    A classifier of this package becomes a `LeanClassifier`: equal up to rounding, with weights of its own, so later
    changes of the model do not reach it. Any other module, and one of ours that was changed or is watched by hooks,
    stays as it is, in a `PlainClassifier`.

    Args:
        model: A classifier in evaluation mode.
        contract: Of the model.
        takes_uint8: Whether the pixels are integers from 0 to 255, before rescaling and normalizing; else they are what
            `contract.processor` makes.
        with_features: Adds a last output, (B, D): what the class head is given. A model that stays as it is has none.

    Returns:
        A module from pixels (B, C, H, W) to a tuple of logits (B, K), in the order of `contract.head_names`.

    Raises:
        UserError: `takes_uint8`, and the image processor does something else as well after the pixels were integers.
    """
    reason = why_unknown(model)
    if reason is None:
        return fold(model, contract.processor, takes_uint8=takes_uint8, with_features=with_features)
    logger.info("The model is run as it is, because %s.", reason)
    return PlainClassifier(model, contract, takes_uint8=takes_uint8).eval()
