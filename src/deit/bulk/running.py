"""Starts a bulk job or goes on with one, runs it, and says how it ended."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from deit.bulk.claims import CLAIMS_NAME, Claims
from deit.bulk.identity import BulkOptions, absolute_model, identity_of_job, open_predictor, settled_engine
from deit.bulk.job import (
    FAILED_NAME,
    MANIFEST_NAME,
    Job,
    Lists,
    changed_inputs,
    differences,
    open_job,
    write_lists,
    write_manifest,
)
from deit.bulk.listing import Listing, list_inputs
from deit.bulk.on_ray import RAY_THREADS, run_on_ray
from deit.bulk.predictions import PartWriter, first_batches
from deit.bulk.units import UnitError, UnitImages
from deit.bulk.work import Progress, clean_claims, work_through
from deit.bulk.workers import Launch, current_launch, run_workers
from deit.core.errors import DamagedFileError, UserError
from deit.core.files import remove_leftovers
from deit.core.printable import counted
from deit.core.writing import writing
from deit.data.readers.webdataset import DAMAGED
from deit.inference.contract import Array
from deit.inference.engines.auto_engine import AutoEngine
from deit.inference.engines.opening import TORCH
from deit.inference.predictor import Predictor
from deit.runtime.packages import require_packages
from deit.runtime.threads import inference_threads

LOCAL, RAY = "local", "ray"

_BEGINNING = "manifest"  # what is claimed while it is written
_MOST_NAMED = 10


@dataclass(frozen=True, kw_only=True)
class BulkRequest:
    """What a user asks for.

    Attributes:
        model: Path or name of the model.
        inputs: Files, folders and patterns.
        out: Folder of the predictions.
        options: What the predictions depend on.
        device: See `Predictor.open`.
        engine: See `Predictor.open`; "auto" is settled once, when the job begins.
        resume: Go on with the job in the folder, if there is one.
        on: What hands out the units: "local", "ray", or "ray:ADDRESS".
        workers: Processes, each with the model; of Ray actors. None is one process, and for Ray what the cluster holds.
    """

    model: str
    inputs: Sequence[str]
    out: Path
    options: BulkOptions = field(default_factory=BulkOptions)
    device: str = "auto"
    engine: str = "auto"
    resume: bool = False
    on: str = LOCAL
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.on.partition(":")[0] not in (LOCAL, RAY) or self.on.startswith(f"{LOCAL}:"):
            raise UserError(f"on must be local, ray or ray:ADDRESS. Received: {self.on!r}.")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"workers must be at least 1. Received: {self.workers}.")


@dataclass(frozen=True, kw_only=True)
class BulkResult:
    """How a job ended.

    Attributes:
        folder: Of the predictions.
        images: Images with a row.
        unreadable: Of these, the ones whose row holds an error.
        failed: Unit -> why it could not be read.
        left_out: Counts of inputs that are not used, by kind.
        is_first: Whether this process speaks for those that started together.
    """

    folder: Path
    images: int
    unreadable: int
    failed: Mapping[int, str]
    left_out: Mapping[str, int]
    is_first: bool = True

    @property
    def is_partial(self) -> bool:
        """Whether an image has no prediction."""
        return bool(self.unreadable or self.failed or self.left_out.get(DAMAGED))


def run_bulk(
    request: BulkRequest, progress: Progress | None = None, listed: Callable[[int], None] = lambda done: None
) -> BulkResult:
    """Starts a job or goes on with it, and returns when every unit has its part or a report.

    Under `torchrun` and in a Slurm array, the processes share the units; the first one to come begins the job.

    Args:
        request: What is asked for.
        progress: Called with (images done, images in all).
        listed: Called with the number of images while the inputs are listed.

    Raises:
        FileNotFoundError: There is no such input or model.
        UserError: The folder holds another job or other files; the job exists and `resume` is off; model, options or
            inputs differ from those it began with; the Ray cluster cannot be reached.
        WritingError: A file cannot be written.
    """
    require_packages("A bulk job", "pyarrow", extra="parquet")
    launch = current_launch()
    job, predictor = begin(request, launch, listed)
    if request.on != LOCAL:
        run_on_ray(job, request.on.partition(":")[2], request.workers, progress)
    elif (request.workers or 1) > 1:
        run_workers(job, request.workers or 1, progress)
    else:
        work_through(job, PartWriter(job, predictor).write, launch.share, progress)
    clean_claims(job)
    return result_of(job, is_first=launch.share.number == 0)


def begin(request: BulkRequest, launch: Launch, listed: Callable[[int], None]) -> tuple[Job, Predictor]:
    """Returns the job, begun or opened, and its model."""
    out = request.out
    check_folder(out, request.inputs, resume=request.resume, launch=launch.name)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        claims = Claims(out / CLAIMS_NAME)
    try:
        while not (out / MANIFEST_NAME).is_file():
            if not claims.take(_BEGINNING):  # another process is writing it
                time.sleep(0.2)
                continue
            if not (out / MANIFEST_NAME).is_file():
                remove_leftovers(out)
                return _new_job(request, launch, listed)
        claims.release(_BEGINNING)
        check_folder(out, request.inputs, resume=request.resume, launch=launch.name)  # another may have begun it now
        for folder in (out, out / FAILED_NAME):
            remove_leftovers(folder)
        return _opened_job(request)
    finally:
        claims.close()


def check_folder(out: Path, inputs: Sequence[str], *, resume: bool, launch: str = "") -> None:
    """Refuses a folder that is none, that holds other files or a job without `resume`, or that lies in the inputs.

    Raises:
        UserError: See above.
    """
    if os.path.lexists(out) and not out.is_dir():
        raise UserError(f"{out} is a file. Pass a folder for the predictions.")
    place = out.resolve()
    for each in inputs:
        if os.path.isdir(each) and place.is_relative_to(Path(each).resolve()):
            raise UserError(f"{out} lies in the input {each}. Pass a folder outside of it for the predictions.")
    if (out / MANIFEST_NAME).is_file():
        if not resume and not (launch and open_job(out).manifest.launch == launch):
            job = open_job(out)
            raise UserError(
                f"{out} holds a bulk job: {len(job.done())} of {counted(len(job.units), 'unit')} are done. Go "
                "on with it with resume (--resume), or pass another folder."
            )
        return
    others = [name for name in os.listdir(out) if not name.startswith(("_", "."))] if out.is_dir() else []
    if others:
        raise UserError(f"{out} holds files of something else, such as {others[0]}. Pass a new or an empty folder.")


def _new_job(request: BulkRequest, launch: Launch, listed: Callable[[int], None]) -> tuple[Job, Predictor]:
    options, model, threads = request.options, absolute_model(request.model), _threads(request)
    torch.set_num_threads(threads)
    engine = TORCH if options.explanation and request.engine == "auto" else request.engine
    predictor = open_predictor(model, options, device=request.device, engine=engine, precision=None)
    listing = list_inputs(request.inputs, options.image_column)
    lists = write_lists(request.out, listing, options.unit_images, listed)
    settled = settled_engine(predictor, _some_pixels(listing, lists, predictor, options), lists.images)
    if settled[0] != predictor.engine.name or engine == "auto":  # the identity is that of the engine that answers
        predictor = open_predictor(model, options, device=request.device, engine=settled[0], precision=settled[1])
    write_manifest(
        request.out,
        listing,
        lists,
        inputs=request.inputs,
        identity=identity_of_job(model, predictor, options, settled),
        opening={"model": model, "threads": threads},
        launch=launch.name,
    )
    return open_job(request.out), predictor


def _threads(request: BulkRequest) -> int:
    """Returns the number of threads of each process, which stays the same: another one may round differently."""
    mine = inference_threads()
    return min(mine, RAY_THREADS) if request.on != LOCAL else max(mine // (request.workers or 1), 1)


def _some_pixels(listing: Listing, lists: Lists, predictor: Predictor, options: BulkOptions) -> list[Array]:
    """Returns the pixels of some images, if an engine has to be chosen."""
    if not isinstance(predictor.engine, AutoEngine) or predictor.engine.is_decided:
        return []
    for number in range(len(lists.units)):
        try:
            images = UnitImages(lists.units.facts(number), Path.cwd(), listing.kind, listing.column)
            return first_batches(images, predictor, options.batch_size)
        except UnitError:
            continue
    return []


def _opened_job(request: BulkRequest) -> tuple[Job, Predictor]:
    """Opens a job that is there, and compares it with what is asked for.

    Raises:
        UserError: They differ.
    """
    job, options, model = open_job(request.out), request.options, absolute_model(request.model)
    kept = job.manifest.identity["engine"]
    engine = kept["name"] if request.engine == "auto" else request.engine
    precision = kept["precision"] if engine == kept["name"] else None
    torch.set_num_threads(job.manifest.opening["threads"])
    device = kept["device"] if request.device == "auto" else request.device
    predictor = open_predictor(model, options, device=device, engine=engine, precision=precision)
    now = identity_of_job(model, predictor, options, (engine, precision))
    found = differences(job.manifest.identity, now) + changed_inputs(job, request.inputs, options.image_column)
    if found:
        raise UserError(
            f"{request.out} holds a job that began differently: {'; '.join(found)}. Pass the same model, options and "
            "inputs, or another folder."
        )
    return job, predictor


def result_of(job: Job, *, is_first: bool = True) -> BulkResult:
    """Returns how a job stands, from the errors in its parts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = unreadable = 0
    for number in sorted(job.done()):
        try:
            with pq.ParquetFile(job.part(number)) as file:
                errors = file.read(columns=["error"]).column("error")
        except (pa.ArrowException, OSError, KeyError) as error:
            path = job.part(number)
            raise DamagedFileError(
                f"{path} is damaged ({error}). Remove it, and go on with resume (--resume)."
            ) from error
        images += len(errors)
        unreadable += len(errors) - errors.null_count
    failed = {number: why for number, why in job.failures().items() if not job.part(number).exists()}
    return BulkResult(
        folder=job.folder,
        images=images,
        unreadable=unreadable,
        failed=failed,
        left_out=Counter(job.manifest.left_out),
        is_first=is_first,
    )


def describe(result: BulkResult) -> list[str]:
    """Returns lines about how a job ended."""
    lines = []
    for number, why in list(result.failed.items())[:_MOST_NAMED]:
        lines.append(f"Unit {number} cannot be read: {why}")
    if result.failed:
        lines.append(f"{counted(len(result.failed), 'unit')} without predictions: {result.folder / FAILED_NAME}")
    if result.left_out:
        shown = ", ".join(f"{count} {kind}" for kind, count in sorted(result.left_out.items()))
        lines.append(f"Left out when the inputs were listed: {shown}.")
    if result.unreadable:
        lines.append(f"{counted(result.unreadable, 'image')} cannot be read; the rows say why.")
    lines.append(f"Predictions of {counted(result.images - result.unreadable, 'image')}: {result.folder}")
    return lines
