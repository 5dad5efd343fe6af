"""Writes what was found: `inspection.json`, `fix.csv` to edit, and `images.csv` with every image."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deit.core.files import replaced_file, write_json_atomically
from deit.inspection.result import Inspection

REPORT_NAME, JSON_NAME, FIX_NAME = "report.html", "inspection.json", "fix.csv"
FIX_COLUMNS = (
    "part", "file", "kind", "reason", "action", "label", "suggested_label", "other", "other_label", "score", "content",
)  # fmt: skip
IMAGE_COLUMNS = (
    "part", "file", "label", "content", "bytes", "width", "height", "format", "mode", "brightness", "contrast",
    "sharpness",
)  # fmt: skip


def write_fix_list(path: Path, inspection: Inspection) -> None:
    """Writes `fix.csv`, a row for each finding; `deit train --exclude` reads it."""
    contents = inspection.facts.rows["hash"].tolist()
    rows = (
        [
            *(_cell(getattr(each, name)) for name in FIX_COLUMNS[:-1]),
            _content(contents[each.row]) if each.row >= 0 else "",
        ]
        for each in inspection.findings
    )
    _write(path, FIX_COLUMNS, rows)


def write_images_list(path: Path, inspection: Inspection) -> None:
    """Writes `images.csv`, a row for each image."""
    facts, parts, labels = inspection.facts, inspection.opened.parts, inspection.opened.labels

    def rows() -> Iterable[list[str]]:
        for row in facts.rows:
            part = parts[int(row["part"])]
            kind = facts.kinds[int(row["kind"])] if row["readable"] else ("", "")
            name, label = part.files[int(row["number"])], labels[int(row["label"])]
            sizes = [str(int(row[each])) for each in ("bytes", "width", "height")]
            seen = [f"{float(row[each]):.4g}" for each in ("brightness", "contrast", "sharpness")]
            yield [part.name, name, label, _content(int(row["hash"])), *sizes, *kind, *seen]

    _write(path, IMAGE_COLUMNS, rows())


def write_json(path: Path, inspection: Inspection) -> None:
    """Writes `inspection.json`; `docs/inspect.md` describes it."""
    findings = [
        {name: value for name, value in asdict(each).items() if name not in ("row", "other_row")}
        for each in inspection.findings
    ]
    write_json_atomically(path, {**inspection.summary(), "findings": findings})


def _content(value: int) -> str:
    return f"{value:016x}" if value else ""


def _cell(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(rows)
    with replaced_file(path) as temporary:
        temporary.write_bytes(text.getvalue().encode("utf-8", "surrogateescape"))
