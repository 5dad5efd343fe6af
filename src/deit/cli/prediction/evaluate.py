"""`deit evaluate`: measures a model on labeled images."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deit.cli.terminal.console import counted, print_table, progress_bar, report_found, reports_errors, say, say_json
from deit.cli.terminal.parameters import (
    Average,
    CacheSize,
    Device,
    Engine,
    ImageColumn,
    InferenceBatchSize,
    LabelColumn,
    LabeledImages,
    Model,
    Strict,
    ValueRange,
    command_line,
    path,
    place,
    use_cache_size,
)
from deit.core.errors import UserError
from deit.data.streams.addresses import named

if TYPE_CHECKING:
    from deit.data.sources import Source
    from deit.evaluate.results import Evaluation, HeadResult
    from deit.inference.predictor import Predictor

Teacher = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Second model, whose answers are compared with those of the first.",
        show_default="none",
        parser=place,
    ),
]
Head = Annotated[
    str,
    typer.Option(
        metavar="HEAD",
        help="Head to report in detail: both, class or distillation.",
        show_default="both, or the only one",
    ),
]
Known = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="Labeled images to find nearest neighbors among: scores the features in place of the classifier.",
        show_default="none",
        parser=place,
    ),
]


@reports_errors
def evaluate(
    context: typer.Context,
    model: Model,
    data: LabeledImages,
    teacher: Teacher = None,
    head: Head = "",
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="HTML file to write a report with images to.", parser=path)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    batch_size: InferenceBatchSize = 64,
    device: Device = "auto",
    engine: Engine = "torch",
    precision: Annotated[
        str, typer.Option(metavar="TYPE", help="Number format: fp32, bf16 or auto (the faster).")
    ] = "fp32",
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Use only the images that training held out for validation.")
    ] = False,
    image_column: ImageColumn = "",
    label_column: LabelColumn = "",
    knn: Known = None,
    value_range: ValueRange = None,
    average: Average = None,
    strict: Strict = False,
    cache_size: CacheSize = None,
) -> None:
    """Measure accuracy, calibration and speed on labeled images.

    Reports heads, classes, frequent mistakes and throughput. Processes (deit --processes N, torchrun) share the images.
    """
    use_cache_size(cache_size)
    if knn is not None:
        _score_features(context, knn)
        return
    from deit.evaluate.evaluation import evaluate_model
    from deit.evaluate.report import check_report_path
    from deit.inference.predictor import Predictor
    from deit.runtime.processes import process_group

    if report is not None:
        check_report_path(report)
    with process_group(device) as processes:
        precision = processes.on_first(lambda: _precision(context))
        placed: dict[str, Any] = {"device": device, "engine": engine, "precision": precision}
        predictor = Predictor.open(model, head_average=average, **placed)
        folder = predictor.engine.contract.folder or Path(model)
        opinion = None if teacher is None else Predictor.open(teacher, calibrated=False, **placed)
        options: dict[str, Any] = {"image_column": image_column, "label_column": label_column, "strict": strict}
        options["value_range"] = value_range or predictor.processor.value_range
        source = _open(data, predictor, options, silent=not processes.is_first)
        skipped = [f"{file.path}: {file.reason}" for file in getattr(source, "skipped", ())]
        if held_out:
            source = _held_out(folder, source)
        with _bar("Evaluating", shown=processes.is_first) as update:
            options = {"batch_size": batch_size, "head": head, "teacher": opinion, "processes": processes}
            result = evaluate_model(predictor, source, on_batch=update, **options)
    if result is not None:  # the first process speaks for all
        source = _readable(source, result)
        _tell(result, source, context, _notes(result, folder, source), folder, skipped)


def _precision(context: typer.Context) -> str:
    """Returns what --precision stands for in PyTorch; other engines decide by themselves what "auto" is."""
    from deit.runtime.auto_precision import INFERENCE, choose_precision
    from deit.runtime.devices import resolve

    given = context.params
    precision = str(given["precision"])
    if given["engine"] != "torch":
        return precision
    return choose_precision(precision, resolve(given["device"]).device, INFERENCE).precision


def _tell(
    result: Evaluation, source: Source, context: typer.Context, notes: list[str], folder: Path, skipped: list[str]
) -> None:
    """Prints a result, and writes the report if one was requested; `skipped` was left out when the data was opened."""
    from deit.data.sources import place_of

    given = context.params
    model, data, report = str(given["model"]), named(str(given["data"])), given["report"]
    if report is not None:
        _write_report(report, result, source, context, notes, folder)
    if given["as_json"]:
        values = {"model": model, "data": data, "notes": notes, **result.as_dict()}
        values["left_out"] = [*skipped, *values["left_out"]]
        for mistake in values["mistakes"]:
            mistake["place"] = place_of(source, mistake["index"])
        say_json(values)
        return
    _print(result, f"{model} on {data}", notes)
    if report is not None:
        say(f"Report: {report}")


def _score_features(context: typer.Context, known: str) -> None:
    from deit.cli.prediction.embed import evaluate_features_of

    given = context.params
    unused = [name for name in ("teacher", "head", "report", "held_out") if given[name]]
    if given["precision"] != "fp32":
        unused.append("precision")
    if given["engine"] != "torch":
        unused.append("engine")
    if unused:
        options = ", ".join("--" + name.replace("_", "-") for name in unused)
        raise UserError(f"--knn scores features, not answers. Received also: {options}. Leave out one of them.")
    evaluate_features_of(
        given["model"],
        given["data"],
        known,
        batch_size=given["batch_size"],
        device=given["device"],
        columns=(given["image_column"], given["label_column"]),
        strict=given["strict"],
        value_range=given["value_range"],
        as_json=given["as_json"],
    )


def _open(data: str, predictor: Predictor, options: dict[str, Any], *, silent: bool) -> Source:
    from deit.data.open_data import open_labelled

    contract = predictor.engine.contract
    with _bar("Checking images", shown=not silent) as update:
        source = open_labelled(
            data, classes=contract.label_names, problem_type=contract.problem_type, progress=update, **options
        )
    if not silent:
        report_found(len(source.labels), source.skipped, source.ignored)
    return source


def _bar(label: str, *, shown: bool) -> AbstractContextManager[Any]:
    """Returns a progress bar, which only the first of several processes shows."""
    return progress_bar(label) if shown else nullcontext(lambda *_: None)


def _held_out(model: Path, source: Source) -> Source:
    from deit.evaluate.recorded_scores import held_out

    part = held_out(model, source)
    if part is None:
        raise UserError(
            f"Which of these images {model} was not trained on cannot be told: its training.json is of other images, "
            "or there is none. Pass the data that deit train was given, or leave out --held-out."
        )
    return part


def _readable(source: Source, result: Evaluation) -> Source:
    """Returns the images of a result, without those that could not be read."""
    import numpy as np

    from deit.data.sources import Subset

    numbers = [i for i in range(len(source.labels)) if i not in result.left_out]
    return Subset(source, np.array(numbers, np.int64)) if result.left_out else source


def _notes(result: Evaluation, model: Path, source: Source) -> list[str]:
    from deit.data.duplicates import contradictions, describe_contradictions
    from deit.evaluate.recorded_scores import VALIDATION, held_out, read_recorded_scores

    notes = []
    if result.left_out:
        first = next(iter(result.left_out.values()))
        notes.append(f"Left out, unreadable by now: {counted(len(result.left_out), 'image')}; the first: {first}")
    results = {**result.heads, "teacher": result.teacher} if result.teacher else result.heads
    unanswered = {name: h.scores.unanswered for name, h in results.items() if h and h.scores.unanswered}
    if unanswered:
        counts = ", ".join(f"{name} {count}" for name, count in unanswered.items())
        notes.append(f"Images whose logits are NaN or infinite: {counts} of {len(result.labels)}. They count as wrong.")
    if len(result.kept) < len(result.labels):
        notes.append(
            f"Temperature, mistakes and scores of many labels are from {len(result.kept)} of the images, evenly spaced."
        )
    recorded = read_recorded_scores(model, source)
    counted_overlap = result.overlap is not None and bool(result.overlap.learnt)
    if recorded is not None and (recorded.part == VALIDATION or not counted_overlap):  # else it is said below
        notes += recorded.notes({name: h.scores.as_dict() for name, h in result.heads.items()})
    if result.overlap is not None:
        notes += result.overlap.notes()
        kept = held_out(model, source) if result.overlap.learnt else None
        if kept is not None and not any("--held-out" in note for note in notes):
            notes.append("Pass --held-out to score the images that training kept for validation.")
    if result.teacher_overlap is not None and result.teacher_overlap.learnt:
        count, images = result.teacher_overlap.learnt, result.teacher_overlap.images
        notes.append(f"The teacher was trained on {count} of these {images} images, so its scores are too good.")
    contradicting = contradictions([source])
    if contradicting:
        notes.append(describe_contradictions(contradicting))
    return notes


def _write_report(
    path: Path, result: Evaluation, source: Source, context: typer.Context, notes: list[str], folder: Path
) -> None:
    from deit.evaluate.report import write_evaluation_report

    write_evaluation_report(
        path,
        result,
        source,
        model=str(context.params["model"]),
        data=named(str(context.params["data"])),
        command=command_line(context),
        notes=notes,
        folder=folder,
        settings=_settings(context),
    )


def _settings(context: typer.Context) -> dict[str, str]:
    """Returns all options, defaults included."""
    given = {name: value for name, value in context.params.items() if name not in ("report", "as_json", "knn")}
    return {name.replace("_", " "): named(str(value)) for name, value in given.items() if value not in (None, "")}


# --- the table -----------------------------------------------------------------------------------------


def _print(result: Evaluation, title: str, notes: list[str]) -> None:
    results = dict(result.heads)
    if result.teacher is not None:
        results["teacher"] = result.teacher
    single = bool(result.heads[result.head].bins)
    from deit.core.scores.metrics import score_title

    scores = list(result.heads[result.head].scores.as_dict())
    columns = ["head", *map(score_title, scores), *(["ECE %"] * single), "images"]
    print_table(title, columns, [_row(name, head, single) for name, head in results.items()])
    for line in [*_lines(result), *notes]:
        say(line)


def _row(name: str, head: HeadResult, single: bool) -> list[str]:
    from deit.core.scores.metrics import score_text

    shown = [score_text(key, value) for key, value in head.scores.as_dict().items()]
    return [name, *shown, *([f"{100 * head.calibration_error:.2f}"] * single), str(head.scores.images)]


def _lines(result: Evaluation) -> list[str]:
    lines = []
    if worst := result.worst_classes():
        key, factor = ("accuracy", 1) if "accuracy" in worst[0] else ("average_precision", 100)
        found = ", ".join(f"{row['class']} {factor * row[key]:.1f} % of {row['images']}" for row in worst)
        lines.append(f"Worst classes ({key.replace('_', ' ')}): {found}")
    if not math.isnan(result.mean_average_precision):
        lines.append(f"Mean average precision: {100 * result.mean_average_precision:.2f} %")
    if result.temperature is not None:
        error, best = result.heads[result.head].calibration_error, result.temperature
        lines.append(
            f"Calibration ({result.head}): ECE {100 * error:.2f} %; divided by the best temperature, "
            f"{best.temperature:.3f}: {100 * best.calibration_error:.2f} %, loss {best.loss:.3f}"
        )
    if result.trust is not None:
        lines += result.trust.lines()
    if result.agreement:
        pairs = [f"{pair.replace(', ', ' and ')} {share:.2f} %" for pair, share in result.agreement.items()]
        lines.append(f"Agreement: {', '.join(pairs)}")
    speed = result.throughput
    shared = f", {speed.processes} processes" if speed.processes > 1 else ""
    lines.append(
        f"Throughput: {speed.model:.1f} images/s, with reading and preprocessing {speed.end_to_end:.1f} "
        f"({speed.device}, batches of {speed.batch_size}{shared})"
    )
    return lines
