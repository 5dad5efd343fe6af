"""Describes ways to quantize: from all products in 8 bits to those that matter most left as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Product:
    """A matrix product with a weight.

    Attributes:
        name: Of its node.
        inputs: Rows of the weight: channels that go in.
    """

    name: str
    inputs: int


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A way to quantize.

    Attributes:
        words: What is left in higher precision, in words.
        left: Numbers of the products to leave as they are, in the order of the model. A library may name its nodes anew
            in each conversion.
        smoothing: Exponent of SmoothQuant (Xiao et al. 2022, equation 4): how much of the range of activations moves
            to the weights.
    """

    words: str
    left: tuple[int, ...] = ()
    smoothing: float = 0.95


def attempts(products: Sequence[Product]) -> list[Attempt]:
    """Returns ways to quantize, the fastest first.

    Args:
        products: Those of the model in its order: patch embedding, blocks, heads.
    """
    ends = (0, len(products) - 1) if len(products) > 1 else ()
    most = max((each.inputs for each in products), default=0)
    second = tuple(i for i, each in enumerate(products) if each.inputs == most)
    return [
        Attempt(words="every product in 8 bits"),
        Attempt(words="patch embedding and heads in higher precision", left=ends, smoothing=0.5),
        Attempt(
            words="patch embedding, heads and the second product of each MLP in higher precision",
            left=tuple(dict.fromkeys((*ends, *second))),
            smoothing=0.5,
        ),
    ]
