"""What an inspection found, and how it is told in a few lines."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

import deit
from deit.core.printable import counted
from deit.inspection.facts import Facts
from deit.inspection.findings import Finding
from deit.inspection.out_of_fold import Probabilities
from deit.inspection.parts import Opened


@dataclass(frozen=True, kw_only=True, eq=False)
class Inspection:
    """What was found in a data set.

    Attributes:
        data: What it was opened by, as text.
        opened: Its parts.
        facts: What was seen of each image.
        findings: What to fix, in the order of their kinds; wrong labels the likeliest first.
        notes: Sentences about classes and about what was not looked at.
        told: Where the judgment of labels comes from; None without one.
    """

    data: str
    opened: Opened
    facts: Facts
    findings: list[Finding]
    notes: list[str]
    told: Probabilities | None

    def counts(self) -> dict[str, int]:
        """Returns kind of finding -> number, in the order of the findings."""
        return dict(Counter(each.kind for each in self.findings))

    def summary(self) -> dict[str, Any]:
        """Returns plain values without the findings; docs/inspect.md describes them."""
        return self._summary

    @cached_property
    def _summary(self) -> dict[str, Any]:
        rows = self.facts.rows
        seen = rows[rows["readable"]]
        kinds = Counter(seen["kind"].tolist())
        sizes = Counter(zip(seen["width"].tolist(), seen["height"].tolist(), strict=True))
        parts = rows["part"]
        return {
            "deit": deit.__version__,
            "data": self.data,
            "problem_type": self.opened.problem_type,
            "parts": {
                part.name: {"images": int((parts == i).sum()), "fingerprint": part.source.fingerprint()}
                for i, part in enumerate(self.opened.parts)
            },
            "classes": self.opened.class_counts(),
            "formats": [
                {"format": self.facts.kinds[kind][0], "mode": self.facts.kinds[kind][1], "images": count}
                for kind, count in kinds.most_common()
            ],
            "sizes": {
                "different": len(sizes),
                "most_common": [{"width": w, "height": h, "images": n} for (w, h), n in sizes.most_common(10)],
                **{name: _spread(seen[name]) for name in ("width", "height") if len(seen)},
            },
            "ignored": dict(self.opened.ignored),
            "notes": self.notes,
            "labels_judged_by": None if self.told is None else self.told.as_dict(),
            "counts": self.counts(),
        }  # fmt: skip


def _spread(sides: npt.NDArray[Any]) -> dict[str, float]:
    return {"least": int(sides.min()), "median": float(np.median(sides)), "most": int(sides.max())}


def describe(inspection: Inspection) -> list[str]:
    """Returns lines for the terminal: what there is, and notes."""
    parts = ", ".join(f"{counted(len(part.source.labels), 'image')} in {part.name}" for part in inspection.opened.parts)
    lines = [f"{parts}; {counted(len(inspection.opened.classes), 'class', 'classes')}."]
    if inspection.told is not None:
        lines.append(
            f"Labels judged by {inspection.told.origin}: {100 * inspection.told.accuracy:.1f} % of "
            f"{counted(len(inspection.told.labels), 'label')} agree."
        )
    return [*lines, *inspection.notes]
