"""`deit benchmark`: measures how fast a model answers on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deit.cli.terminal.console import print_table, progress_bar, reports_errors, say, say_json
from deit.cli.terminal.parameters import path, place
from deit.core.errors import UserError

if TYPE_CHECKING:
    from deit.inference.measuring.result import Benchmark, CellResult

_INTERRUPTED = 130  # 128 + SIGINT, as shells count


Measured = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="Model directory, name on the Hugging Face Hub, or timm/NAME. Left out: DeiT small, distilled, with "
        "random weights.",
        parser=place,
        show_default=False,
    ),
]
Engines = Annotated[
    str, typer.Option(metavar="NAMES", help="Engines to measure, separated by commas.", show_default="all here")
]
Precisions = Annotated[
    str, typer.Option(metavar="NAMES", help="Precisions to measure, separated by commas.", show_default="all here")
]
BatchSizes = Annotated[str, typer.Option(metavar="NUMBERS", help="Images in a call: numbers, separated by commas.")]
Threads = Annotated[
    int | None,
    typer.Option(metavar="N", help="Threads of each engine.", show_default="OMP_NUM_THREADS, or one for each core"),
]
Figures = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder to write benchmark.json and benchmark.png to.",
        show_default="none",
        parser=path,
    ),
]


@reports_errors
def benchmark(
    model: Measured = None,
    engines: Engines = "",
    precisions: Precisions = "",
    batch_sizes: BatchSizes = "1,8,32",
    seconds: Annotated[
        float, typer.Option(metavar="N", help="Time to measure in, beside the time that the engines need to open.")
    ] = 60.0,
    noisy: Annotated[
        bool, typer.Option("--noisy", help="Measure also beside a process that keeps one core busy all the time.")
    ] = False,
    threads: Threads = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="Device to measure on: cpu, cuda, cuda:1, ...")] = "cpu",
    out: Figures = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Measure how fast a model answers here: latency, throughput, time to the first answer and memory.

    Each engine, precision and batch size is measured in a process of its own, with the same number of threads, in
    turns. Ctrl-C ends the measurement and prints what was measured until then.
    """
    from deit.inference.measuring.benchmark import benchmark as measured

    if out is not None:
        import matplotlib.figure  # noqa: F401  # says what is missing before anything is measured

        if out.exists() and not out.is_dir():
            raise UserError(f"--out must be a folder. {out} is a file.")
    if model is None and not as_json:
        say("No model was given: measuring DeiT small, distilled, with random weights.", err=True)
    with progress_bar("Measuring") as update:
        result = measured(
            model,
            engines=_words(engines),
            precisions=_words(precisions),
            batch_sizes=_numbers(batch_sizes),
            seconds=seconds,
            noisy=noisy,
            threads=threads,
            device=device,
            progress=lambda what, done, total: update(done, total, what),
        )
    if as_json:
        say_json(result.as_dict())
    else:
        _tell(result)
    if out is not None:
        result.write(out)
        if not as_json:
            say(f"Written: {out / 'benchmark.json'} and {out / 'benchmark.png'}")
    if result.interrupted:
        raise typer.Exit(_INTERRUPTED)


def _words(text: str) -> list[str] | None:
    return [word.strip() for word in text.split(",") if word.strip()] or None


def _numbers(text: str) -> list[int]:
    words = _words(text) or []
    if not all(word.isdecimal() for word in words):
        raise UserError(f"--batch-sizes must be numbers separated by commas, such as 1,8,32. Received: {text!r}.")
    return [int(word) for word in words]


def _tell(result: Benchmark) -> None:
    noisy = result.fair_share is not None
    columns = ["engine", "precision", "batch", "images/s", *(["beside a neighbor", "of it"] if noisy else [])]
    columns += ["p50 ms", "p95 ms", "p99 ms", "of matrix rate", "first answer s", "memory MB"]
    rows = [_row(each, noisy=noisy) for each in result.cells if each.quiet.latencies]
    print_table(f"{result.model}, {_size(result)}", columns, rows)
    say(result.machine.describe())
    for each in result.cells:
        if each.error:
            say(f"Not measured: {each.cell.describe()}: {each.error}", err=True)
    for note in result.notes():
        say(note)


def _size(result: Benchmark) -> str:
    return "" if result.image_size is None else "{} x {} pixels".format(*result.image_size)


def _row(each: CellResult, *, noisy: bool) -> list[str]:
    quiet = each.quiet.throughput
    row: list[Any] = [each.cell.engine, each.cell.precision, str(each.cell.batch_size), _shown(quiet)]
    if noisy:
        beside = each.noisy.throughput
        row += [_shown(beside), _percent(None if beside is None or not quiet else beside / quiet)]
    for percent in (50, 95, 99):
        latency = each.quiet.percentile(percent)
        row.append(_shown(None if latency is None else 1e3 * latency))
    row += [_percent(each.share), _shown(each.first_answer), f"{each.peak_bytes / 1e6:.0f}" if each.peak_bytes else "-"]
    return row


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"
