"""Turns what was seen into findings: which image, what is wrong with it, and what to do."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deit.core.printable import some_of
from deit.data.duplicates import first_copies
from deit.data.exclusions import CHECK, DROP
from deit.inspection.facts import Facts
from deit.inspection.near_copies import NearCopies
from deit.inspection.odd_images import Odd
from deit.inspection.out_of_fold import Probabilities
from deit.inspection.parts import NO_LABEL_TEXT, Opened
from deit.inspection.wrong_labels import WrongLabels

EXACT_COPY, NEAR_COPY = "exact copy", "near copy"
EXACT_LEAK, NEAR_LEAK = "exact leak", "near leak"
EXACT_CONTRADICTION, NEAR_CONTRADICTION = "exact contradiction", "near contradiction"
WRONG_LABEL = "wrong label"
FEW_IMAGES, UNEVEN = 10, 10  # images of a class; ratio of the largest class and the smallest
NO_ROW = -1  # of a file that is no image of the data set

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something to fix in one image.

    Attributes:
        part: Its part.
        file: Its name, see `name_in`.
        kind: What is wrong: a copy, a leak, a contradiction, a kind of odd image, "wrong label", or the kind of a file
            that cannot be used.
        reason: A sentence.
        action: "drop" or "check".
        label: Its label; empty for none.
        suggested_label: The label that it should perhaps have; empty for none.
        other: Name of the image that it is a copy of.
        other_label: The label of that one.
        score: Of a near copy the correlation, of a wrong label the margin; else 0.
        row: Its row in the facts.
        other_row: Of the other image.
    """

    part: str
    file: str
    kind: str
    reason: str
    action: str = CHECK
    label: str = ""
    suggested_label: str = ""
    other: str = ""
    other_label: str = ""
    score: float = 0.0
    row: int = NO_ROW
    other_row: int = NO_ROW


class _Named:
    """Names, labels and parts of the rows of the facts."""

    def __init__(self, opened: Opened, facts: Facts) -> None:
        self._opened = opened
        self._parts = facts.rows["part"].tolist()
        self._numbers = facts.rows["number"].tolist()
        self.label_numbers = facts.rows["label"].tolist()

    def part(self, row: int) -> str:
        return self._opened.parts[self._parts[row]].name

    def file(self, row: int) -> str:
        return self._opened.parts[self._parts[row]].files[self._numbers[row]]

    def label(self, row: int) -> str:
        return self._opened.labels[self.label_numbers[row]]

    def finding(self, row: int, kind: str, reason: str, *, other: int = NO_ROW, **more: object) -> Finding:
        values = {"other": self.file(other), "other_label": self.label(other), "other_row": other} if other >= 0 else {}
        return Finding(
            part=self.part(row), file=self.file(row), kind=kind, reason=reason, label=self.label(row), row=row,
            **values, **more,  # type: ignore[arg-type]
        )  # fmt: skip


def unusable(opened: Opened, facts: Facts) -> list[Finding]:
    """Returns the files that cannot be used: those that the reader left out, and those that changed meanwhile."""
    named = _Named(opened, facts)
    left_out = "deit train leaves it out"
    found = [
        Finding(part="", file=file.path, kind=file.kind, reason=f"{file.reason.rstrip('.')}; {left_out}.")
        for file in opened.skipped
    ]
    return [*found, *(named.finding(row, "unreadable", reason) for row, reason in facts.errors.items())]


def odd(opened: Opened, facts: Facts, found: Sequence[Odd]) -> list[Finding]:
    """Returns findings for odd images; a constant one is to be dropped."""
    named = _Named(opened, facts)
    return [
        named.finding(each.number, each.kind, f"{each.reason}.", action=DROP if each.drop else CHECK) for each in found
    ]


def wrong(opened: Opened, facts: Facts, told: Probabilities, found: WrongLabels) -> list[Finding]:
    """Returns findings for likely wrong labels, the likeliest first."""
    named = _Named(opened, facts)
    findings = []
    for number, suggested, margin in zip(found.numbers, found.suggested, found.margins, strict=True):
        values = told.values[number]
        reason = (
            f"is labeled {told.classes[told.labels[number]]} ({_percent(values[told.labels[number]])}) and looks like "
            f"{told.classes[suggested]} ({_percent(values[suggested])}), says {told.origin}."
        )
        findings.append(
            named.finding(
                int(told.numbers[number]),
                WRONG_LABEL,
                reason,
                suggested_label=told.classes[suggested],
                score=round(float(margin), 4),
            )
        )
    return findings


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else "< 0.1 %"


# --- copies -------------------------------------------------------------------------------------------


def first_of_each_content(opened: Opened, facts: Facts) -> Numbers:
    """Returns for each row that of the preferred image with the same bytes; its own where it is that."""
    rows, order = facts.rows, preference(opened, facts)
    firsts = np.arange(len(rows))
    known = order[(rows["hash"][order] != 0) & rows["readable"][order]]
    firsts[known] = known[first_copies(rows["hash"][known])]
    return firsts


def preference(opened: Opened, facts: Facts) -> Numbers:
    """Returns all rows, the preferred ones first.

    Images of test and validation parts are preferred to those that are trained on, then labelled images, then large
    ones, then the first.
    """
    rows = facts.rows
    rank = np.array([{"train": 2, "val": 1, "test": 0}.get(part.name, 2) for part in opened.parts])[rows["part"]]
    unlabelled = np.array([name == NO_LABEL_TEXT for name in opened.labels])[rows["label"]]
    area = rows["width"].astype(np.int64) * rows["height"]
    order: Numbers = np.lexsort((np.arange(len(rows)), -area, unlabelled, rank))
    return order


def copies(opened: Opened, facts: Facts, firsts: Numbers, near: NearCopies) -> tuple[list[Finding], Numbers]:
    """Returns findings for copies, and for each row the number of its group of copies.

    Of each group the preferred image stays. Every other one was compared with that one itself: copies of copies do not
    chain. A copy in the same part with the same label is to be dropped; one in another part is a leak, and that in the
    part that is trained on is to be dropped; one with another label is to be checked.

    Args:
        opened: The data set.
        facts: Of it.
        firsts: From `first_of_each_content`.
        near: Pairs among these first images, as rows of the facts.
    """
    named = _Named(opened, facts)
    beside: dict[int, dict[int, float]] = defaultdict(dict)
    for (one, two), score in zip(near.pairs.tolist(), near.correlations.tolist(), strict=True):
        beside[one][two] = beside[two][one] = score
    exact: dict[int, list[int]] = defaultdict(list)
    for row, first in enumerate(firsts.tolist()):
        if row != first:
            exact[first].append(row)
    groups = np.arange(len(facts.rows))
    taken: set[int] = set()
    findings: list[Finding] = []
    for original in preference(opened, facts).tolist():
        if original in taken or firsts[original] != original:
            continue
        near_by = [(row, score) for row, score in beside[original].items() if row not in taken]
        taken.update([original, *(row for row, _ in near_by)])
        same = [(first, copy) for first in (original, *(row for row, _ in near_by)) for copy in exact[first]]
        groups[[row for row, _ in near_by] + [copy for _, copy in same]] = original
        labels = [named.label(row) for row in (original, *(row for row, _ in near_by), *(copy for _, copy in same))]
        suggestion = _majority(labels)
        for row, score in near_by:
            findings += _copy(named, original, row, score, suggestion, exact=False)
        for first, copy in same:
            findings += _copy(named, first, copy, 1.0, suggestion, exact=True)
    return findings, groups


def _majority(labels: Sequence[str]) -> str:
    """Returns the label of more than half of some copies; empty where there is none."""
    ((label, times),) = Counter(labels).most_common(1)
    return label if 2 * times > len(labels) else ""


def _copy(named: _Named, original: int, row: int, score: float, suggestion: str, *, exact: bool) -> list[Finding]:
    what = "has the same bytes as" if exact else f"shows the same picture as (correlation {score:.3f})"
    of = f"{what} {named.file(original)}"
    value = 0.0 if exact else round(score, 4)
    one, two = named.label(row), named.label(original)
    contradicts = one != two and NO_LABEL_TEXT not in (one, two)
    findings = []
    if named.part(row) != named.part(original):
        other = f", where it is labeled {two}" if contradicts else ""
        reason = f"{of} of the part {named.part(original)}{other}."
        kind = EXACT_LEAK if exact else NEAR_LEAK
        findings.append(named.finding(row, kind, reason, other=original, action=DROP, score=value))
    elif not contradicts:
        kind = EXACT_COPY if exact else NEAR_COPY
        findings.append(named.finding(row, kind, f"{of}.", other=original, action=DROP, score=value))
    if contradicts:
        reason = f"{of}, which is labeled {two}; this one is labeled {one}."
        suggested = suggestion if suggestion != one else ""
        kind = EXACT_CONTRADICTION if exact else NEAR_CONTRADICTION
        findings.append(named.finding(row, kind, reason, other=original, suggested_label=suggested, score=value))
    return findings


# --- classes ------------------------------------------------------------------------------------------


def class_notes(opened: Opened) -> list[str]:
    """Returns sentences about classes with too few images, of uneven size, or in one part alone."""
    counts = opened.class_counts()
    notes = []
    names = [part.name for part in opened.parts]
    trained = "train" if "train" in names else names[0]
    few = {name: found[trained] for name, found in counts.items() if 0 < found[trained] < FEW_IMAGES}
    if few:
        counted = [f"{name} ({count})" for name, count in sorted(few.items(), key=lambda item: item[1])]
        notes.append(f"Classes with fewer than {FEW_IMAGES} images in the part {trained}: {some_of(counted)}.")
    for part in names:
        lacking = [name for name, found in counts.items() if not found[part]]
        if lacking:
            notes.append(f"Classes without an image in the part {part}: {some_of(lacking)}.")
    sizes = [found[trained] for found in counts.values() if found[trained]]
    if sizes and max(sizes) >= UNEVEN * min(sizes):
        notes.append(f"The largest class has {max(sizes)} images in the part {trained}, the smallest {min(sizes)}.")
    return notes
