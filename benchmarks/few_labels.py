"""Measures the gain from pre-training without labels and from a teacher with few labels, on CIFAR-10, over seeds.

    python benchmarks/few_labels.py FOLDER --out runs/few-labels

FOLDER holds CIFAR-10 as Parquet in the Hugging Face layout, a file for training and one for testing. For each seed and
each share of labels it trains four students for the same number of steps:

* scratch: learns from the labeled images only;
* pre-trained: reconstructs all images, masked and without labels, for a third of the steps, then learns from the
  labeled images;
* distilled: learns from the labels, and from a convnet's answers on all images. The convnet is trained on the labeled
  images only;
* both: a third of the steps as pre-training, two thirds as distilled.

Other cells change one thing of "distilled", see `INGREDIENTS`; "together" changes several. Some learn from a better
convnet, which is trained on all images: the running average of its weights labels those that have no label.

The steps of a student do not include the convnet's training, which uses the same labels. The same command resumes a
stopped run. The default budget suits two CPU cores; `--budget gpu` suits a GPU.
`--only 0.01` runs one share of labels, `--cells scratch distilled` two of the students, `--steps 6000` another length,
`--images 50000` all images. `--often 25` uses strong augmentation for images that are shown more often than that.
`--budget screen` compares cells on 5,000 images in some minutes each. `--budget tiny` runs everything in a minute, as a
test. `--jobs 15` trains fifteen models at once, in a process each with one thread, for a GPU that a single small model
leaves idle; `--limit 540` stops them after 540 seconds, and prints the table of what is finished.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from few_labels_cells import (
    BEGIN_MASKED,
    BUDGETS,
    CELLS,
    CONVNET,
    INGREDIENTS,
    PRE_TRAINING,
    TEACHER,
    Outcome,
    Run,
    Trainings,
    all_runs,
    some_of,
)
from harness import report
from side_by_side import Job, run_side_by_side

from deit.core.model_directory import read_training_record
from deit.data.open_data import open_data


def in_turn(trainings: Trainings, runs: Sequence[Run]) -> dict[Run, Outcome]:
    """Trains one model after the other in this process."""
    outcomes: dict[Run, Outcome] = {}
    for run in runs:
        outcomes[run] = trainings.train(run)
        print(f"{run.folder}: {outcomes[run].score:.2f}", flush=True)
    return outcomes


def side_by_side(
    trainings: Trainings, runs: Sequence[Run], jobs: int, limit: float | None
) -> tuple[dict[Run, Outcome], dict[str, str]]:
    """Trains several models at once, the convnets first.

    Then the cells in the order asked for, each in all seeds and shares, so that a limit costs the last cells.

    Returns:
        The outcomes of the finished runs, and why each other one is unfinished.
    """
    first = [CONVNET, PRE_TRAINING, TEACHER]  # the longest first, and what others need before them
    names = [*first, *dict.fromkeys(run.name for run in runs if run.name not in first)]
    work = [
        Job(
            name=run.folder,
            work=partial(trainings.train, run),
            log=trainings.out / f"{run.folder}.log",
            needs=tuple(each.folder for each in run.needs()),
        )
        for run in sorted(runs, key=lambda run: names.index(run.name))
        if trainings.finished(run) is None
    ]
    run_of = {run.folder: run for run in runs}

    def describe(job: Job) -> str:
        outcome = trainings.finished(run_of[job.name])
        return "without an outcome" if outcome is None else f"{outcome.score:.2f}"

    unfinished = run_side_by_side(work, at_once=jobs, limit=limit, describe=describe)
    return {run: found for run in runs if (found := trainings.finished(run))}, unfinished


def rows_of(outcomes: dict[Run, Outcome]) -> list[dict[str, Any]]:
    """Returns a row for each seed and share, of what is finished there."""
    rows = []
    for seed, share in dict.fromkeys((run.seed, run.share) for run in outcomes if run.share):
        here = {run.name: outcome for run, outcome in outcomes.items() if (run.seed, run.share) == (seed, share)}
        masked = outcomes.get(Run(seed=seed, name=PRE_TRAINING))
        rows.append(
            {
                "seed": seed,
                "share": share,
                "top-1": {name: outcome.score for name, outcome in here.items()},
                "heads": {
                    name: {head: scores["top1"] for head, scores in outcome.heads.items()}
                    for name, outcome in here.items()
                },
                "reconstruction": masked and masked.score,
                "seconds": {name: outcome.history[-1]["seconds"] for name, outcome in here.items()},
            }
        )
    return rows


def table(rows: list[dict[str, Any]], names: Sequence[str]) -> str:
    """Returns top-1 in percent as a Markdown table: mean and spread over the seeds, "-" where nothing is finished."""
    lines = [f"| labels | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for share in sorted({row["share"] for row in rows}):
        shown = []
        for name in names:
            values = [row["top-1"][name] for row in rows if row["share"] == share and name in row["top-1"]]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            shown.append(f"{statistics.mean(values):.1f}{spread}" if values else "-")
        lines.append(f"| {100 * share:g} % | {' | '.join(shown)} |")
    return "\n".join(lines)


def draw(runs: dict[tuple[float, int], dict[str, Outcome]], masked_steps: int, path: Path) -> None:
    """Draws top-1 over a student's steps, pre-training included: a picture for each share, a line for each seed.

    Args:
        runs: (share of labels, seed) -> name -> run.
        masked_steps: Steps of pre-training, the offset of students that start with it.
        path: Path of the PNG.
    """
    from matplotlib.figure import Figure

    shares = sorted({share for share, _ in runs})
    figure = Figure(figsize=(3.6 * len(shares), 3.6), layout="constrained")
    for axis, share in zip(figure.subplots(1, len(shares), sharey=True, squeeze=False)[0], shares, strict=True):
        of_share = [each for (own_share, _), each in sorted(runs.items()) if own_share == share]
        shown = [name for name in (TEACHER, CONVNET, *CELLS, *INGREDIENTS) if any(name in run for run in of_share)]
        for number_of_colour, name in enumerate(shown):
            colour = "C7" if name == TEACHER else f"C{number_of_colour - 1}"
            for number, each in enumerate(run[name] for run in of_share if name in run):
                label = name if not number else None
                if name in (TEACHER, CONVNET):
                    axis.axhline(each.history[-1]["val_top1"], color=colour, linestyle=":", label=label)
                    continue
                start = masked_steps if name in BEGIN_MASKED else 0
                steps, top1 = [start + row["step"] for row in each.history], [row["val_top1"] for row in each.history]
                axis.plot(steps, top1, color=colour, marker="o", markersize=3, linewidth=1.4, label=label)
        axis.set(title=f"{100 * share:g} % of the labels", xlabel="step")
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("top-1 (%)")
    figure.axes[-1].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def read_options() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--budget", choices=list(BUDGETS), default="cpu")
    parser.add_argument("--only", type=float, nargs="+", help="shares of labels; all of the budget without")
    parser.add_argument("--cells", choices=(*CELLS, *INGREDIENTS), nargs="+", default=CELLS)
    parser.add_argument("--steps", type=int, help="of a student; those of the budget without")
    parser.add_argument("--images", type=int, help="to train on, labeled or not; those of the budget without")
    parser.add_argument("--often", type=int, help="images shown more often than this get strong augmentation; 100")
    parser.add_argument("--device")
    parser.add_argument("--jobs", type=int, default=1, help="models to train at once, in a process each; 1")
    parser.add_argument("--workers", type=int, help="processes that prepare a model's images; with --jobs none")
    parser.add_argument("--limit", type=float, help="seconds after which trainings stop; the same command resumes")
    return parser.parse_args()


def main() -> None:
    options = read_options()
    budget = BUDGETS[options.budget]
    budget = dataclasses.replace(
        budget,
        steps=options.steps or budget.steps,
        train_images=options.images or budget.train_images,
        often=options.often or budget.often,
    )
    apart = options.jobs > 1 or options.limit is not None
    workers = options.workers if options.workers is not None else 0 if options.jobs > 1 else -1
    data = some_of(open_data(options.data), budget)
    trainings = Trainings(data, budget, options.out, options.device, workers)
    runs = all_runs(options.seeds, options.only or budget.shares, options.cells)
    unfinished: dict[str, str] = {}
    if apart:
        outcomes, unfinished = side_by_side(trainings, runs, options.jobs, options.limit)
    else:
        outcomes = in_turn(trainings, runs)
    rows = rows_of(outcomes)
    if not rows:
        sys.exit("Nothing is finished: there is no table.")
    finished: dict[tuple[float, int], dict[str, Outcome]] = {}
    for run, outcome in outcomes.items():
        if run.share:
            finished.setdefault((run.share, run.seed), {})[run.name] = outcome
    draw(finished, budget.masked_steps, options.out / "curves.png")
    print(table(rows, list(dict.fromkeys(run.name for run in runs if run.share))))
    for share in sorted({row["share"] for row in rows}):
        scores = [row["top-1"] for row in rows if row["share"] == share]
        gains = [each["distilled"] - each["scratch"] for each in scores if {"distilled", "scratch"} <= each.keys()]
        if gains:
            print(f"{100 * share:g} % of the labels: distilled over scratch {statistics.mean(gains):+.2f} points")
    complete = budget == BUDGETS[options.budget] and not options.only and set(options.cells) == set(CELLS)
    name = "few-labels" if complete else f"few-labels-{budget.train_images}-images-{budget.steps}-steps"
    record = read_training_record(options.out / next(iter(outcomes)).folder) or {}
    about = {"budget": dataclasses.asdict(budget), "jobs": options.jobs, "device": record.get("device")}
    if unfinished:
        about["unfinished"] = unfinished
    report(f"{name}-incomplete" if unfinished else name, [about, *rows], write=options.budget != "tiny")
    if unfinished:
        sys.exit(f"Incomplete: {len(unfinished)} of {len(runs)} runs are unfinished. The same command goes on.")


if __name__ == "__main__":
    main()
