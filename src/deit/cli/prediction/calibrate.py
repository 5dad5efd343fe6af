"""`deit calibrate`: calibrates the scores of a model on held-out images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from deit.cli.terminal.console import print_table, progress_bar, report_found, reports_errors, say, say_json
from deit.cli.terminal.parameters import (
    Average,
    Device,
    ImageColumn,
    InferenceBatchSize,
    LabelColumn,
    LabeledImages,
    Model,
    Strict,
    ValueRange,
    place,
)

if TYPE_CHECKING:
    from deit.core.scores.calibration_file import Calibration


Training = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="Images that the model was trained on, used to detect outliers.",
        show_default="those of DATA",
        parser=place,
    ),
]
Precision = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Precision to choose thresholds for, such as 0.95; for models of two classes or several labels.",
        show_default="none",
    ),
]
Recall = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE", help="Recall to choose thresholds for, such as 0.95; see --precision.", show_default="none"
    ),
]


@reports_errors
def calibrate(
    model: Model,
    data: LabeledImages,
    training_images: Training = None,
    precision: Precision = None,
    recall: Recall = None,
    positive: Annotated[
        str, typer.Option(metavar="CLASS", help="Of two classes, the one that the threshold is for.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    batch_size: InferenceBatchSize = 64,
    device: Device = "auto",
    image_column: ImageColumn = "",
    label_column: LabelColumn = "",
    value_range: ValueRange = None,
    average: Average = None,
    strict: Strict = False,
) -> None:
    """Calibrate the scores of a model on labeled images that it has not learned from.

    Writes calibration.json into the model directory: temperatures, and what prediction sets and outliers are judged
    by. Leaves out images that the model learned from, so you can pass the data that it was trained on.
    """
    from deit.data.open_data import open_labelled, open_training
    from deit.evaluate.calibrating import Aim, calibrate as calibrated
    from deit.inference.predictor import Predictor

    aims: dict[str, Any] = {"precision": precision, "recall": recall, "positive": positive}
    Aim(**aims)  # refuses bad ones before anything is opened
    predictor = Predictor.open(model, device=device, engine="torch", head_average=average, calibrated=False)
    contract = predictor.engine.contract
    options: dict[str, Any] = {"image_column": image_column, "label_column": label_column, "strict": strict}
    options |= {"classes": contract.label_names, "problem_type": contract.problem_type}
    options["value_range"] = value_range or predictor.processor.value_range
    with progress_bar("Checking images") as update:
        source = open_labelled(data, progress=update, **options)
        if training_images is None:
            training = open_training(data, progress=update, **options)
        else:
            training = open_labelled(training_images, part="train", progress=update, **options)
    report_found(len(source.labels), source.skipped, source.ignored)
    with progress_bar("Calibrating") as update:
        result = calibrated(predictor, source, training_images=training, batch_size=batch_size, on_batch=update, **aims)
    if as_json:
        say_json(_values(result, str(contract.folder)))
    else:
        _tell(result, f"{model} on {data}", str(contract.folder))


def _values(result: Calibration, folder: str) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "folder": folder,
        "images": result.images,
        "measured": result.measured,
        "heads": {name: asdict(head) for name, head in result.heads.items()},
        "points": [asdict(point) for point in result.points],
        "outliers": result.outliers is not None,
        "notes": list(result.notes),
    }


def _tell(result: Calibration, title: str, folder: str) -> None:
    from deit.core.scores.conformal import Coverage, describe_sets
    from deit.core.scores.metrics import MULTI_LABEL

    if result.heads:
        rows = []
        for name, head in result.heads.items():
            low, high = head.interval
            errors = [f"{100 * error:.2f}" for error in (head.raw_error, head.error)]
            rows.append([name, f"{head.temperature:.3f}", f"{low:.3f} to {high:.3f}", *errors])
        print_table(title, ["head", "temperature", "95 % interval", "ECE % raw", "calibrated"], rows)
    if result.problem_type != MULTI_LABEL:
        say(describe_sets(result.images, Coverage(), result.problem_type))
    for point in result.points:
        say(point.describe())
    if result.outliers is not None:
        say(f"Outliers are judged by {result.outliers.images} training images.")
    for note in result.notes:
        say(note)
    say(f"Written: {folder}/calibration.json")
