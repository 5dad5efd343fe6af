"""Inspects a data set: opens it, looks at every image, and collects what a careful person would fix before training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.errors import UserError
from deit.core.images.reading import ValueRange
from deit.core.scores.metrics import SINGLE_LABEL
from deit.core.writing import writing
from deit.data.exclusions import IMAGES_LIST
from deit.data.labels.label_columns import UNLABELLED
from deit.data.readers.reader import DataPath, ReadOptions
from deit.data.sources import check_problem_type
from deit.data.streams.addresses import named
from deit.inspection.facts import Facts, collect_facts
from deit.inspection.files import FIX_NAME, JSON_NAME, REPORT_NAME, write_fix_list, write_images_list, write_json
from deit.inspection.findings import (
    Finding,
    class_notes,
    copies,
    first_of_each_content,
    odd,
    preference,
    unusable,
    wrong,
)
from deit.inspection.near_copies import near_copies
from deit.inspection.odd_images import odd_images
from deit.inspection.out_of_fold import Probabilities, ask_model, ask_thumbnails, labelled_rows, read_predictions
from deit.inspection.parts import Opened, open_parts
from deit.inspection.result import Inspection
from deit.inspection.wrong_labels import wrong_labels

Stage = Callable[[str, int, int], None]

# Out-of-fold accuracy under which thumbnails name more right labels than wrong ones.
LEAST_ACCURACY = 0.75
_LEAST_IMAGES = 20  # that labels are judged among


def inspect_data(
    path: DataPath,
    *,
    model: str | None = None,
    predictions: str | Path | None = None,
    image_column: str = "",
    label_column: str = "",
    problem_type: str = SINGLE_LABEL,
    label_separator: str = "",
    value_range: ValueRange | None = None,
    device: str = "auto",
    batch_size: int = 32,
    progress: Stage | None = None,
) -> Inspection:
    """Looks at a data set as a careful person would before training on it.

    Counts classes, sizes, modes and formats; lists files that cannot be used; finds exact and near copies, those across
    classes and across parts (leaks) among them; names odd images and likely wrong labels. Reads every image twice,
    keeps 1.1 kB of each, and changes nothing.

    Args:
        path: See `deit.data.open_data.open_data`. All its parts are looked at.
        model: Model directory or name of a classifier that helps to judge the labels.
        predictions: File of out-of-fold predictions, which `deit train --folds` writes. Without it and `model`, labels
            are judged by thumbnails, if these predict at least three labels of four.
        image_column: See `open_data`.
        label_column: See `open_data`.
        problem_type: See `open_data`. Labels are judged where an image has one class.
        label_separator: See `open_data`.
        value_range: See `open_data`.
        device: Of the model.
        batch_size: Images that go through the model together.
        progress: Called with (what is done, steps done, steps in all).

    Raises:
        FileNotFoundError: There is nothing at the path.
        UserError: The data is of no known kind or has no usable image; both `model` and `predictions` are given; or
            they do not fit the data.
    """
    _refuse(model, predictions, problem_type)
    tell = progress or (lambda what, done, total: None)
    options = ReadOptions(
        image_column=image_column, label_column=label_column, problem_type=problem_type,
        label_separator=label_separator, value_range=value_range,
        progress=lambda done, total: tell("Checking images", done, total),
    )  # fmt: skip
    opened = open_parts(path, options)
    facts = collect_facts(opened, lambda done, total: tell("Looking at images", done, total))
    copied, groups = _compared(opened, facts, tell)
    told, notes = None, class_notes(opened)
    if problem_type == SINGLE_LABEL:
        told, more = _judge(path, opened, facts, groups, model, predictions, device, batch_size, tell)
        notes += more
    labels = [] if told is None else wrong(opened, facts, told, wrong_labels(told.values, told.labels))
    findings = [*unusable(opened, facts), *sorted(copied, key=_order), *labels, *odd(opened, facts, odd_images(facts))]
    return Inspection(data=named(str(path)), opened=opened, facts=facts, findings=findings, notes=notes, told=told)


def _refuse(model: str | None, predictions: str | Path | None, problem_type: str) -> None:
    if problem_type != UNLABELLED:
        check_problem_type(problem_type)
    if model is not None and predictions is not None:
        raise UserError("Pass model or predictions, not both: labels are judged by one of them.")
    if (model or predictions) and problem_type != SINGLE_LABEL:
        raise UserError(f"Labels can be judged where an image has one class. Received: problem_type={problem_type}.")


def _compared(opened: Opened, facts: Facts, tell: Stage) -> tuple[list[Finding], npt.NDArray[np.int64]]:
    """Returns findings for copies, and for each row the number of its group of copies."""
    firsts = first_of_each_content(opened, facts)
    preferred = preference(opened, facts)  # copies are compared with those before them
    different = preferred[(firsts[preferred] == preferred) & facts.rows["readable"][preferred]]
    found = near_copies(
        facts.rows["gray"][different],
        facts.rows["colors"][different],
        progress=lambda done, total: tell("Comparing images", done, total),
    )
    return copies(opened, facts, firsts, replace(found, pairs=different[found.pairs]))


def _order(finding: Finding) -> tuple[bool, bool, str, int, int]:
    """Sorts copies: leaks, contradictions, others; exact ones first; those of one image together."""
    kind = finding.kind
    return "leak" not in kind, "contradiction" not in kind, kind, finding.other_row, finding.row


def _judge(
    path: DataPath,
    opened: Opened,
    facts: Facts,
    groups: Any,
    model: str | None,
    predictions: str | Path | None,
    device: str,
    batch_size: int,
    tell: Stage,
) -> tuple[Probabilities | None, list[str]]:
    """Returns what judges the labels, if anything does, and notes."""
    if predictions is not None:
        told = read_predictions(Path(predictions), opened, facts, path)
        return told, list(told.notes)
    rows, labels = labelled_rows(opened, facts)
    if len(np.unique(labels)) < 2 or len(np.unique(groups[rows])) < _LEAST_IMAGES:
        return None, [f"Labels were not judged: that takes two classes and {_LEAST_IMAGES} different images."]
    if model is not None:
        told = ask_model(
            model, opened, facts, groups, device=device, batch_size=batch_size,
            progress=lambda done, total: tell("Asking the model", done, total),
        )  # fmt: skip
        return told, list(told.notes)
    told = ask_thumbnails(opened, facts, groups)
    if told.accuracy < LEAST_ACCURACY:
        return None, [
            f"Labels were not judged: thumbnails predict {100 * told.accuracy:.1f} % of them, and at least "
            f"{100 * LEAST_ACCURACY:.0f} % are needed to tell wrong labels from hard images. Pass "
            "--predictions of deit train --folds, or --model."
        ]
    return told, []


def write_inspection(out: Path, inspection: Inspection, *, command: str = "") -> None:
    """Writes `report.html`, `inspection.json`, `fix.csv` and `images.csv` into a new folder.

    Args:
        out: The folder.
        inspection: What was found.
        command: The command line, for the report.

    Raises:
        FileExistsError: See `check_out`.
        WritingError: It cannot be written.
    """
    from deit.inspection.page import write_page_of

    check_out(out)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        write_images_list(out / IMAGES_LIST, inspection)
        write_fix_list(out / FIX_NAME, inspection)
        write_json(out / JSON_NAME, inspection)
        write_page_of(out / REPORT_NAME, inspection, command=command)


def check_out(out: Path) -> None:
    """Checks that a report can be written, before anything is read.

    Raises:
        FileExistsError: The folder holds a report, whose list may be edited, or is a file.
        ModuleNotFoundError: Jinja is not installed.
    """
    from importlib.util import find_spec

    if find_spec("jinja2") is None:
        raise ModuleNotFoundError("No module named 'jinja2'", name="jinja2")
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file. Pass a folder for the report.")
    if (out / FIX_NAME).exists():
        raise FileExistsError(f"{out} holds a report already, whose {FIX_NAME} may be edited. Pass another folder.")
