"""Class names of two origins: which class of one is which of the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from deit.models.timm.models import imagenet_labels
from deit.runtime.library_order import make_order_safe

_IMAGENET_CLASSES = 1000
# A list of 1000 names is ImageNet's when this share of them stands where ImageNet's stand: releases spell a few their
# own way ("crane bird" for the second "crane").
_IMAGENET_SHARE = 0.95


@dataclass(frozen=True, kw_only=True)
class LabelMatch:
    """Where the wanted classes are among the known ones.

    Attributes:
        places: For each wanted name in order, the number of the known class.
        rule: By what they were found: "by name", "by name, ignoring case and separators", or "by ImageNet's names".
        missing: Wanted names that were not found, or that fit several classes; `places` is then empty.
    """

    places: tuple[int, ...]
    rule: str
    missing: tuple[str, ...] = ()


def match_labels(known: Sequence[str], wanted: Sequence[str]) -> LabelMatch:
    """Finds classes by their names: exactly, else ignoring case, "_", "-" and " ".

    Where the known names are ImageNet-1k's, in any of their spellings (WordNet identities, first or all synonyms), the
    wanted ones may be in another: folders of ImageNet are named n01440764, models say "tench".

    Args:
        known: Of a teacher or a checkpoint, in the order of its logits.
        wanted: Of the data.

    Examples:
        >>> match_labels(["cat", "Polar Bear"], ["polar_bear", "cat"]).places
        (1, 0)
    """
    if list(known) == list(wanted):  # names that come twice are then no matter
        return LabelMatch(places=tuple(range(len(known))), rule="by name")
    best = _match(known, wanted)
    for spelling in _imagenet_spellings(known) if best.missing else ():
        other = replace(_match(spelling, wanted), rule="by ImageNet's names")
        if len(other.missing) < len(best.missing):
            best = other
    return best


def _match(known: Sequence[str], wanted: Sequence[str]) -> LabelMatch:
    exact = _unique(known, str)
    loose = _unique(known, _simplified)
    twice = Counter(map(_simplified, wanted))
    places, missing = [], []
    rule = "by name"
    for name in wanted:
        place = exact.get(name)
        if place is None and twice[_simplified(name)] == 1:
            place = loose.get(_simplified(name))
            rule = "by name, ignoring case and separators"
        if place is None:
            missing.append(name)
        else:
            places.append(place)
    if missing or len(set(places)) != len(places):
        return LabelMatch(places=(), rule=rule, missing=tuple(missing or wanted))
    return LabelMatch(places=tuple(places), rule=rule)


def _unique(names: Sequence[str], key: Callable[[str], str]) -> dict[str, int]:
    """Returns the numbers of the names that mean one class."""
    counts = Counter(map(key, names))
    return {key(name): i for i, name in enumerate(names) if counts[key(name)] == 1}


def _simplified(name: str) -> str:
    return "".join(character for character in name.casefold() if character not in "_- ")


def _imagenet_spellings(known: Sequence[str]) -> list[list[str]]:
    """Returns ImageNet's names in every spelling when `known` are its names in one, else nothing."""
    if len(known) != _IMAGENET_CLASSES:
        return []
    make_order_safe()
    from timm.data.imagenet_info import ImageNetInfo

    identities = imagenet_labels()
    synonyms = list(ImageNetInfo("imagenet-1k").label_descriptions())
    spellings = [identities, synonyms, [text.partition(",")[0] for text in synonyms]]
    for spelling in spellings:
        if sum(one == other for one, other in zip(known, spelling, strict=True)) >= _IMAGENET_SHARE * _IMAGENET_CLASSES:
            return spellings
    return []


def head_rows(
    known: Sequence[str] | None, count: int, classes: Sequence[str]
) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    """Decides which rows of a checkpoint's heads a student keeps when it is fine-tuned on other data.

    Args:
        known: Class names of the checkpoint, or None.
        count: Classes of its heads; 0 for none.
        classes: Of the data.

    Returns:
        For each class of the data the row of the heads, or None where they must start anew; and the reason, in
        sentences, where it is not plain.
    """
    if count == 0:
        return None, ("The checkpoint has no classifier.",)
    if known is None:
        if count == len(classes):
            return tuple(range(count)), (
                f"The checkpoint does not name its {count} classes; they are taken to be those of the data, in order.",
            )
        return None, (f"The checkpoint has {count} classes and the data has {len(classes)}: the heads start anew.",)
    match = match_labels(known, classes)
    if match.missing or len(match.places) != count:
        return None, ("The classes of the checkpoint are not those of the data: the heads start anew.",)
    if list(known) == list(classes):
        return match.places, ()
    return match.places, (f"The heads keep their classes, put in the order of the data's {match.rule}.",)
