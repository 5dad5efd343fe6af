"""Matches class names of a teacher or checkpoint to those of the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from deit.models.timm.models import imagenet_labels
from deit.runtime.library_order import make_order_safe

_IMAGENET_CLASSES = 1000
# A list of 1000 names is taken for ImageNet's if this share agrees with ImageNet's names at their positions. Releases
# spell a few names differently ("crane bird" for the second "crane").
_IMAGENET_SHARE = 0.95


@dataclass(frozen=True, kw_only=True)
class LabelMatch:
    """Positions of the wanted classes among the known ones.

    Attributes:
        places: For each wanted name in order, the number of the known class.
        rule: Rule that found them: "by name", "by name, ignoring case and separators", or "by ImageNet's names".
        missing: Wanted names that were not found or match several classes; `places` is then empty.
    """

    places: tuple[int, ...]
    rule: str
    missing: tuple[str, ...] = ()


def match_labels(known: Sequence[str], wanted: Sequence[str]) -> LabelMatch:
    """Finds classes by their names: exactly, else ignoring case, "_", "-" and " ".

    If the known names are ImageNet-1k's in any spelling (WordNet identities, first synonyms, all synonyms), the wanted
    names may use another spelling: folders of ImageNet are named n01440764, models say "tench".

    Args:
        known: Names of a teacher or a checkpoint, in the order of its logits.
        wanted: Names of the data.

    Examples:
        >>> match_labels(["cat", "Polar Bear"], ["polar_bear", "cat"]).places
        (1, 0)
    """
    if list(known) == list(wanted):  # correct even if a name occurs twice
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
    """Returns the numbers of the names that are unique."""
    counts = Counter(map(key, names))
    return {key(name): i for i, name in enumerate(names) if counts[key(name)] == 1}


def _simplified(name: str) -> str:
    return "".join(character for character in name.casefold() if character not in "_- ")


def _imagenet_spellings(known: Sequence[str]) -> list[list[str]]:
    """Returns ImageNet's names in every spelling if `known` are its names in one spelling, else nothing."""
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
    """Selects the rows of a checkpoint's heads that a student keeps in fine-tuning.

    Args:
        known: Class names of the checkpoint, or None.
        count: Number of classes of its heads; 0 without heads.
        classes: Class names of the data.

    Returns:
        The row of the heads for each class of the data, or None for new heads; and sentences that explain the choice.
    """
    if count == 0:
        return None, ("The checkpoint has no classifier.",)
    if known is None:
        if count == len(classes):
            return tuple(range(count)), (
                f"The checkpoint does not name its {count} classes. They are taken for those of the data, in order.",
            )
        return None, (f"The checkpoint has {count} classes and the data has {len(classes)}: the heads are new.",)
    match = match_labels(known, classes)
    if match.missing or len(match.places) != count:
        return None, ("The classes of the checkpoint are not those of the data: the heads are new.",)
    if list(known) == list(classes):
        return match.places, ()
    return match.places, (f"The heads keep their classes, reordered to those of the data {match.rule}.",)
