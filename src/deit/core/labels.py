"""Maps class names to class numbers. A name that several classes share identifies none of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

# What labels are for: one class, any number of classes, or a number.
SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)

NO_LABEL = -100  # PyTorch's and transformers' number for "has no class"


def problem_type_of(dtype: str, num_labels: int) -> str:
    """Infers what labels are for from their type, as transformers does.

    One output is a regression. Integers of 32 or 64 bits are classes. All else, booleans and bytes too, marks several
    labels of an image.

    Args:
        dtype: Of the labels, such as "int64".
        num_labels: Outputs of the model.
    """
    if num_labels == 1:
        return REGRESSION
    return SINGLE_LABEL if dtype in ("int64", "int32") else MULTI_LABEL


def id2label_from_names(names: Sequence[str]) -> dict[int, str]:
    """Numbers class names in the order given; several classes may have one name, as two of ImageNet's are "crane"."""
    return dict(enumerate(names))


def names_in_order(id2label: Mapping[int, str]) -> list[str]:
    """Returns the class names ordered by their number."""
    return [id2label[i] for i in sorted(id2label)]


def repeated_names(names: Sequence[str]) -> dict[str, list[int]]:
    """Returns the names that several classes share, with the numbers of those classes.

    Examples:
        >>> repeated_names(["crane", "cat", "crane"])
        {'crane': [0, 2]}
    """
    counts = Counter(names)
    repeated: dict[str, list[int]] = {name: [] for name, count in counts.items() if count > 1}
    for number, name in enumerate(names):
        if name in repeated:
            repeated[name].append(number)
    return repeated


def numbers_by_name(names: Sequence[str]) -> dict[str, int]:
    """Returns the class number of each unique name."""
    repeated = repeated_names(names)
    return {name: number for number, name in enumerate(names) if name not in repeated}


def distinct_names(names: Sequence[str]) -> list[str]:
    """Returns distinct names: appends the class number to names that several classes share.

    Examples:
        >>> distinct_names(["crane", "cat", "crane"])
        ['crane (0)', 'cat', 'crane (2)']
    """
    repeated = repeated_names(names)
    return [f"{name} ({number})" if name in repeated else name for number, name in enumerate(names)]


def several_classes(name: str, numbers: Sequence[int], names: Sequence[str]) -> str:
    """Returns an error message for a name that several classes share.

    Args:
        name: The name.
        numbers: Of those classes.
        names: Of all classes.
    """
    shown = ", ".join(map(str, numbers))
    return (
        f"{len(numbers)} of the {len(names)} classes are called {name!r} (numbers {shown}), so that the name does not "
        "say which. Give the number of the class in place of its name, for all images."
    )
