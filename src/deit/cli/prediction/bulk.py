"""`deit classify --out FOLDER`: a bulk job, which can be stopped and resumed. Also audits one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deit.cli.terminal.answers import KINDS
from deit.cli.terminal.console import PARTLY, progress_bar, reports_errors, say
from deit.cli.terminal.parameters import place
from deit.core.errors import UserError

if TYPE_CHECKING:
    from deit.core.scores.conformal import Coverage

_MOST_PROBLEMS = 20  # that are printed


def is_bulk(out: str) -> bool:
    """Whether predictions go to a folder: the name ends in a slash, has no ending, or is a folder's."""
    path = Path(out)
    return out.endswith("/") or not path.suffix or (path.is_dir() and path.suffix.lower() not in KINDS)


@reports_errors
def _audit(folder: str, *, contents: bool) -> None:
    """Audits a job, prints the result, and exits with code 0, or 3 if an input is missing or there twice."""
    from deit.bulk.auditing import audit

    with progress_bar("Auditing") as update:
        result = audit(Path(folder), contents=contents, progress=update)
    for problem in result.problems[:_MOST_PROBLEMS]:
        say(problem, err=True)
    if len(result.problems) > _MOST_PROBLEMS:
        say(f"... and {len(result.problems) - _MOST_PROBLEMS} more", err=True)
    say(result.describe())
    raise typer.Exit(PARTLY if result.problems else 0)


def _audit_output(folder: str | None) -> None:
    if folder:
        _audit(folder, contents=False)


def _audit_contents(folder: str | None) -> None:
    if folder:
        _audit(folder, contents=True)


Resume = Annotated[
    bool, typer.Option("--resume", help="Bulk: go on with the job in --out exactly where it stopped, or start it.")
]
On = Annotated[
    str,
    typer.Option(
        metavar="ENGINE", help="Bulk: what hands out the units: local, ray, or ray:HOST:PORT for another cluster."
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Bulk: number of processes, each with the model.", show_default="1; on Ray, what fits"
    ),
]
UnitImages = Annotated[
    int, typer.Option(metavar="N", help="Bulk: images per unit, which is the most that a killed process loses.")
]
Embedding = Annotated[
    bool, typer.Option("--embedding", help="Bulk: also write the features that the class head is given.")
]
Explanation = Annotated[
    str,
    typer.Option(
        "--explain",
        metavar="METHOD",
        help="Bulk: also write a map of where the model looked: relevance, legrad, attnlrp or rollout.",
        show_default="none",
    ),
]
AuditOutput = Annotated[
    str | None,
    typer.Option(
        "--audit",
        metavar="FOLDER",
        help="Bulk: prove from the predictions in FOLDER that every input is there once, and exit. Code 3 if not.",
        show_default="no audit",
        callback=_audit_output,
        is_eager=True,
        parser=place,
    ),
]
AuditContents = Annotated[
    str | None,
    typer.Option(
        "--audit-contents",
        metavar="FOLDER",
        help="Bulk: the same, and read every input again to see that it has not changed.",
        show_default="no audit",
        callback=_audit_contents,
        is_eager=True,
        parser=place,
    ),
]


def classify_in_bulk(context: typer.Context, wanted: Coverage | None) -> None:
    """Starts or resumes the job that the options of `deit classify` describe, and prints how it ended.

    Args:
        context: With the options.
        wanted: What prediction sets must keep, or None.

    Raises:
        UserError: Options do not fit a bulk job, or see `run_bulk`.
    """
    from deit.bulk.identity import BulkOptions
    from deit.bulk.running import BulkRequest, describe, run_bulk

    given: dict[str, Any] = context.params
    for name in ("as_json", "strict"):
        if given[name]:
            option = "--json" if name == "as_json" else "--strict"
            raise UserError(f"{option} is for predictions on the screen or in one file, not for a folder.")
    options = BulkOptions(
        coverage=None if wanted is None else wanted.percent,
        explanation=given["explain"],
        **{
            name: given[name]
            for name in (
                "top_k", "batch_size", "unit_images", "sets", "per_class", "abstain", "raw", "value_range", "average",
                "embedding", "image_column",
            )
        },
    )  # fmt: skip
    request = BulkRequest(
        inputs=given["images"],
        out=Path(given["out"]),
        options=options,
        **{name: given[name] for name in ("model", "device", "engine", "resume", "on", "workers")},
    )
    with progress_bar("Listing") as listed, progress_bar("Classifying") as update:
        result = run_bulk(request, update, lambda done: listed(done, done))
    if result.is_first:
        *notes, last = describe(result)
        for line in notes:
            say(line, err=True)
        say(last)
    if result.is_partial:
        raise typer.Exit(PARTLY)


def refuse_bulk_options(context: typer.Context) -> None:
    """Refuses options of bulk jobs where there is none.

    Raises:
        UserError: One was passed.
    """
    given = context.params
    names = ("resume", "on", "workers", "unit_images", "embedding", "explain", "image_column")
    defaults = {parameter.name: parameter.default for parameter in context.command.params}
    used = ["--" + name.replace("_", "-") for name in names if given[name] != defaults[name]]
    if used:
        raise UserError(f"{', '.join(used)}: only for a bulk job. Pass --out FOLDER, such as --out predictions/.")
