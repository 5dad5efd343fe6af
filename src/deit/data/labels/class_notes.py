"""Warns of classes without images and of classes that differ only in spelling."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from deit.core.errors import UserError
from deit.core.labels import NO_LABEL
from deit.core.scores.metrics import SINGLE_LABEL
from deit.data.sources import Data, Labels

logger = logging.getLogger(__name__)

_SHOWN = 3
_BETWEEN_WORDS = re.compile(r"[\s_-]+")
_LEADING_ZEROS = re.compile(r"0+(?=\d+$)")


def require_two_classes(classes: Sequence[str]) -> None:
    """Refuses data with a single class.

    Raises:
        UserError: There is only one class.
    """
    if len(classes) < 2:
        raise UserError(
            f"All images are of one class, {classes[0]!r}: there is nothing to distinguish. Images without labels are "
            "for deit pretrain."
        )


def note_classes(data: Data) -> None:
    """Logs classes without images and classes that may be one class in two spellings."""
    note_empty_classes(data)
    note_alike_classes(data.train.classes)


def note_empty_classes(data: Data) -> None:
    """Logs classes without a training or a validation image, for single classes."""
    if data.problem_type != SINGLE_LABEL:
        return
    classes = data.train.classes
    unknown = _without_image(data.train.labels, classes)
    unmeasured = [name for name in _without_image(data.val.labels, classes) if name not in set(unknown)]
    for empty, part in ((unknown, "training"), (unmeasured, "validation")):
        if empty:
            logger.warning(
                "%d of %d classes have no %s image, the first is %r.", len(empty), len(classes), part, empty[0]
            )


def _without_image(labels: Labels, classes: Sequence[str]) -> list[str]:
    counts = np.bincount(labels[labels != NO_LABEL], minlength=len(classes))
    return [name for name, count in zip(classes, counts, strict=True) if not count]


def alike_classes(classes: Sequence[str]) -> list[list[str]]:
    """Returns groups of names that differ only in case, spaces, underscores, hyphens, Unicode form or leading zeros.

    Excludes equal names, because ImageNet has two classes named `crane`.
    """
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(classes):
        groups.setdefault(_plain(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _plain(name: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    words = _BETWEEN_WORDS.sub(" ", folded).strip()
    return _LEADING_ZEROS.sub("", words) or name


def note_alike_classes(classes: Sequence[str]) -> None:
    """Logs classes that may be one class in several spellings."""
    groups = alike_classes(classes)
    if groups:
        shown = "; ".join(" and ".join(map(ascii, group)) for group in groups[:_SHOWN])
        logger.warning(
            "These classes differ only in spelling and are different classes: %s%s. If they are one, give all of "
            "its images the same name.",
            shown,
            "; ..." if len(groups) > _SHOWN else "",
        )
