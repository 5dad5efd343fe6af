"""Writes the report of an inspection: one self-contained HTML file with tables and pictures."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import deit
from deit.evaluate.html_page import picture_of, write_page
from deit.inspection.findings import Finding
from deit.inspection.result import Inspection

_MOST_PICTURES = 60  # of one kind
_MOST_CLASSES = 1000
TITLES = {
    "exact leak": "Leaks: the same file in two parts",
    "near leak": "Leaks: the same picture in two parts",
    "exact contradiction": "The same file with two labels",
    "near contradiction": "The same picture with two labels",
    "exact copy": "The same file twice",
    "near copy": "The same picture twice",
    "wrong label": "Likely wrong labels",
    "constant": "Images of one color",
    "tiny": "Tiny images",
    "long": "Long images",
    "dark": "Much darker than the others",
    "bright": "Much brighter than the others",
    "blurred": "Much less sharp than the others",
}


def write_page_of(path: Path, inspection: Inspection, *, command: str = "") -> Path:
    """Writes the page.

    Args:
        path: Of the page.
        inspection: What was found.
        command: The command line.
    """
    summary = inspection.summary()
    counts = summary["counts"]
    sections = [
        {"title": title, "kind": kind, "count": counts[kind], "cells": _cells(inspection, kind)}
        for kind, title in TITLES.items()
        if kind in counts
    ]
    files = [each for each in inspection.findings if each.kind not in TITLES]
    return write_page(
        path,
        "inspection",
        "inspection.html.j2",
        summary=summary,
        classes=list(summary["classes"].items())[:_MOST_CLASSES],
        most=max((sum(found.values()) for found in summary["classes"].values()), default=1) or 1,
        sections=sections,
        files=files[:_MOST_CLASSES],
        unusable=len(files),
        drop=len({(each.part, each.file) for each in inspection.findings if each.action == "drop"}),
        check=len({(each.part, each.file) for each in inspection.findings if each.action == "check"}),
        images=len(inspection.facts.rows),
        command=command,
        versions=f"deit {deit.__version__}, Python {platform.python_version()}",
    )


def _cells(inspection: Inspection, kind: str) -> list[dict[str, Any]]:
    found: Sequence[Finding] = [each for each in inspection.findings if each.kind == kind][:_MOST_PICTURES]
    return [
        {
            "finding": each,
            "pictures": [_picture(inspection, row) for row in (each.row, each.other_row) if row >= 0],
        }
        for each in found
    ]


def _picture(inspection: Inspection, row: int) -> dict[str, Any]:
    record = inspection.facts.rows[row]
    uri, tiny = picture_of(inspection.opened.parts[int(record["part"])].source, int(record["number"]))
    return {"uri": uri, "tiny": tiny}
