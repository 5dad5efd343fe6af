"""Class names: where they come from and what can be wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

NO_LABEL = -100  # PyTorch's and transformers' number for "has no class"


def id2label_from_names(names: Sequence[str]) -> dict[int, str]:
    """Numbers class names in the order given.

    Raises:
        ValueError: A name comes twice.
    """
    if len(set(names)) != len(names):
        twice = sorted({n for n in names if list(names).count(n) > 1})
        raise ValueError(f"Class names must differ. Named more than once: {', '.join(twice)}.")
    return dict(enumerate(names))


def names_in_order(id2label: Mapping[int, str]) -> list[str]:
    """Returns the class names ordered by their number."""
    return [id2label[i] for i in sorted(id2label)]
