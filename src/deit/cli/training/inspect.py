"""`deit inspect`: looks at a data set before training and writes what to fix."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deit.cli.terminal.console import print_table, progress_bar, report_skipped, reports_errors, say, say_json
from deit.cli.terminal.parameters import (
    Device,
    ImageColumn,
    InferenceBatchSize,
    LabelColumn,
    ValueRange,
    command_line,
    path,
    place,
)

Images = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Images, as deit train takes them: a folder, Parquet, CSV or tar files, or a folder of "
        "datasets.save_to_disk. All parts are looked at.",
        parser=place,
    ),
]
ReportFolder = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER",
        help="New folder to write report.html, fix.csv, images.csv and inspection.json to.",
        parser=path,
    ),
]
Judge = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Classifier that helps to judge the labels: model directory or name on the Hugging Face Hub.",
        show_default="none",
        parser=place,
    ),
]
Predictions = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Out-of-fold predictions to judge the labels by: out_of_fold.npz of deit train --folds.",
        show_default="none",
        parser=path,
    ),
]
ProblemType = Annotated[
    str,
    typer.Option(
        metavar="TYPE",
        help="What the labels are: single_label_classification, multi_label_classification, regression, or unlabelled "
        "to ignore them.",
    ),
]


@reports_errors
def inspect(
    context: typer.Context,
    data: Images,
    out: ReportFolder = Path("report"),
    model: Judge = None,
    predictions: Predictions = None,
    image_column: ImageColumn = "",
    label_column: LabelColumn = "",
    problem_type: ProblemType = "single_label_classification",
    value_range: ValueRange = None,
    batch_size: InferenceBatchSize = 32,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print inspection.json without its findings.")] = False,
) -> None:
    """Look at a data set before training: counts, copies, leaks, odd images, likely wrong labels.

    Changes nothing. Edit the column action of fix.csv, then run deit train DATA --exclude fix.csv.
    """
    from deit.inspection.inspecting import check_out, inspect_data, write_inspection
    from deit.inspection.result import describe
    from deit.train.run.folder import refuse_inside_data

    check_out(out)
    refuse_inside_data(out, data, "--out")
    with progress_bar("Inspecting") as update:
        found = inspect_data(
            data,
            model=model,
            predictions=predictions,
            image_column=image_column,
            label_column=label_column,
            problem_type=problem_type,
            value_range=value_range,
            batch_size=batch_size,
            device=device,
            progress=lambda what, done, total: update(done, total, what),
        )
    write_inspection(out, found, command=command_line(context, without=("out", "batch_size", "device", "as_json")))
    if as_json:
        say_json({**found.summary(), "out": str(out)})
        return
    report_skipped(found.opened.skipped)
    for line in describe(found):
        say(line)
    rows = [(kind, str(count)) for kind, count in found.counts().items()]
    if rows:
        print_table("To fix", ("what", "images"), rows)
    else:
        say("Nothing to fix was found.")
    then = f"deit train {found.data} --exclude {out / 'fix.csv'}"
    say(f"Report: {out / 'report.html'}  (edit {out / 'fix.csv'}, then: {then})")
