"""`deit classify`: predicts the classes of images."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from deit.cli.prediction.bulk import (
    AuditContents,
    AuditOutput,
    Embedding,
    Explanation,
    On,
    Resume,
    UnitImages,
    Workers,
    classify_in_bulk,
    is_bulk,
    refuse_bulk_options,
)
from deit.cli.terminal.answers import Rows, Take, check_predictions_path, json_rows, written_predictions
from deit.cli.terminal.console import PARTLY, counted, progress_bar, report_found, reports_errors, say
from deit.cli.terminal.parameters import (
    Average,
    Device,
    Engine,
    ImageColumn,
    InferenceBatchSize,
    Model,
    Strict,
    ValueRange,
    place,
)
from deit.core.errors import UserError
from deit.core.printable import some_of

if TYPE_CHECKING:
    from deit.core.scores.conformal import Coverage
    from deit.data.storage.image_search import FoundFiles
    from deit.inference.judgement import Judge
    from deit.inference.predictor import Classified, Predictor


Percent = Annotated[
    float | None,
    typer.Option(
        metavar="PERCENT",
        help="Print the set of classes that holds the true one for so many of 100 images, such as 95.",
        show_default="no sets",
    ),
]
Sets = Annotated[
    str,
    typer.Option(
        metavar="KIND", help="How sets are made: lac (smallest on average), aps or raps (larger if difficult)."
    ),
]
PerClass = Annotated[
    bool, typer.Option("--per-class", help="Keep the coverage for each class, not only over all images.")
]
Abstain = Annotated[
    bool,
    typer.Option("--abstain", help="Name no class if several are possible at the coverage (95), or for an outlier."),
]
Raw = Annotated[bool, typer.Option("--raw", help="Use the scores of the model without its calibration.")]


@reports_errors
def classify(
    context: typer.Context,
    model: Model,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES",
            help="Image files, folders, patterns such as 'a/*.jpg', or - for one image on standard input. For a bulk "
            "job also Parquet files or tar shards.",
            parser=place,
        ),
    ],
    top_k: Annotated[int, typer.Option(metavar="N", help="Number of classes to print per image.")] = 3,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="Write the predictions to this .csv, .parquet or .jsonl file instead of printing them; or, as a bulk "
            "job, to a folder such as predictions/.",
            parser=place,
        ),
    ] = None,
    batch_size: InferenceBatchSize = 32,
    device: Device = "auto",
    engine: Engine = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    value_range: ValueRange = None,
    average: Average = None,
    strict: Strict = False,
    coverage: Percent = None,
    sets: Sets = "lac",
    per_class: PerClass = False,
    abstain: Abstain = False,
    raw: Raw = False,
    resume: Resume = False,
    on: On = "local",
    workers: Workers = None,
    unit_images: UnitImages = 1024,
    embedding: Embedding = False,
    explain: Explanation = "",
    image_column: ImageColumn = "",
    audit: AuditOutput = None,
    audit_contents: AuditContents = None,
) -> None:
    """Predict the classes of images.

    Uses the calibration of deit calibrate. Skips and reports unreadable files, and exits with code 3 if there were any.
    With --out FOLDER it is a bulk job over any number of images, which --resume continues.
    """
    wanted = _coverage(coverage, sets, per_class=per_class, abstain=abstain, raw=raw)
    if out is not None and is_bulk(out):
        classify_in_bulk(context, wanted)
        return
    refuse_bulk_options(context)
    _classify(context, None if out is None else Path(out), wanted)


def _classify(context: typer.Context, out: Path | None, wanted: Coverage | None) -> None:
    """Predicts the images that the options name, on the screen or into one file."""
    from deit.core.images.image_files import MOST_FILE_BYTES
    from deit.data.storage.image_search import find_images
    from deit.inference.predictor import Predictor

    if out is not None:
        check_predictions_path(out)
    given = context.params
    strict, top_k, abstain, as_json = given["strict"], given["top_k"], given["abstain"], given["as_json"]
    found = find_images(given["images"], strict=strict)
    sources = [sys.stdin.buffer.read(MOST_FILE_BYTES + 1) if source is None else source for source in found.paths]
    predictor = Predictor.open(
        given["model"],
        device=given["device"],
        engine=given["engine"],
        head_average=given["average"],
        calibrated=not given["raw"],
    )
    judge = _judge(predictor, wanted, abstain=abstain)
    if given["value_range"] is not None:
        predictor.processor.value_range = given["value_range"]
    with _written(out, min(top_k, len(predictor.label_names)), judged=judge is not None) as write:
        rows = Rows([name for name in found.paths if name is not None], predictor.problem_type)
        with json_rows() if as_json else nullcontext([] if out is not None else [rows]) as show:
            options: dict[str, Any] = {"top_k": top_k, "batch_size": given["batch_size"], "strict": strict}
            results = predictor.classify_each(sources, judge=judge, **options)
            used, broken = _tell(results, len(sources), [*write, *show], shown=out is not None or _is_file(sys.stdout))
        if not used:
            raise UserError(f"None of {len(sources)} file(s) could be classified.")
    _report(found, used, broken, predictor, out, err=as_json)
    if broken:
        raise typer.Exit(PARTLY)


def _coverage(coverage: float | None, sets: str, *, per_class: bool, abstain: bool, raw: bool) -> Coverage | None:
    """Returns what prediction sets must keep, or None for no sets.

    Raises:
        UserError: Options contradict each other.
    """
    from deit.core.scores.conformal import wanted_coverage

    wants_sets = coverage is not None or abstain
    if raw and wants_sets:
        raise UserError(
            "--raw leaves the calibration aside, which --coverage and --abstain need. Leave out one of them."
        )
    if not wants_sets and (per_class or sets != "lac"):
        raise UserError("--sets and --per-class say how sets are made. Pass --coverage with them, such as 95.")
    return wanted_coverage(coverage, sets=sets, per_class=per_class, abstain=abstain)


def _judge(predictor: Predictor, wanted: Coverage | None, *, abstain: bool) -> Judge | None:
    """Returns what judges answers. Prints, on standard error, that scores are calibrated, and what the sets promise."""
    from deit.core.scores.conformal import classes_sharing, describe_sets

    judge, calibration = predictor.judge(wanted, abstain=abstain), predictor.calibration
    if calibration is None:
        return judge
    say(calibration.describe(), err=True)
    if wanted is None:
        return judge
    say(describe_sets(calibration.images, wanted, predictor.problem_type), err=True)
    if sharing := classes_sharing(calibration.labels, calibration.classes, wanted):
        say(f"With too few held-out images for that, these share one threshold: {some_of(sharing, 5)}.", err=True)
    return judge


def _report(
    found: FoundFiles, used: int, broken: list[Classified], predictor: Predictor, out: Path | None, *, err: bool
) -> None:
    """Prints, on standard error, what became of the files, which engine answered and how large photos were decoded."""
    from deit.core.processing.reduced_reading import EXACT_VARIABLE
    from deit.data.storage.image_search import SkippedFile

    report_found(used, found.skipped, found.ignored, others=[SkippedFile(path=r.name, reason=r.error) for r in broken])
    _tell_engine(predictor)
    if reduced := predictor.reduced_images:
        photos = counted(reduced, "large photo")
        say(f"Decoded at a reduced size: {photos}. To decode them whole: {EXACT_VARIABLE}=1.", err=True)
    if out is not None:
        say(f"Predictions of {counted(used, 'image')}: {out}", err=err)


def _tell_engine(predictor: Predictor) -> None:
    """Prints, on standard error, which engine "auto" took, if it took another one."""
    choice = getattr(predictor.engine, "choice", None)
    if choice is not None and choice.speedup is not None:
        say(choice.describe(), err=True)


def _is_file(stream: TextIO) -> bool:
    """Whether a stream writes to a file. A program that reads from a pipe may print to the terminal itself."""
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):  # replaced by something that is no file of the system
        return False


def _written(out: Path | None, top_k: int, *, judged: bool) -> AbstractContextManager[list[Take]]:
    return nullcontext([]) if out is None else written_predictions(out, top_k, judged=judged)


def _tell(results: Iterator[Classified], total: int, takes: list[Take], *, shown: bool) -> tuple[int, list[Classified]]:
    """Passes each result to the writers. Returns the number of predictions, and the results without one."""
    used, broken = 0, []
    with progress_bar("Classifying", shown=shown) as update:
        for number, result in enumerate(results, start=1):
            if result.error:
                say(f"Left out: {result.error}", err=True)
                broken.append(result)
            used += not result.error
            for take in takes:
                take(result)
            update(number, total)
    return used, broken
