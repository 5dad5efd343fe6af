"""What identifies a job: the options, the model, the engine and the versions that its predictions depend on."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deit.core.errors import UserError
from deit.core.file_names import CALIBRATION_NAME, CLOUDS_NAME
from deit.core.files import sha256_of_file
from deit.core.scores.calibration_file import identity_of
from deit.core.scores.conformal import Coverage, wanted_coverage
from deit.inference.contract import Array
from deit.inference.engines.auto_engine import AutoEngine
from deit.inference.engines.exported import find_export
from deit.inference.engines.opening import TORCH
from deit.inference.predictor import Predictor
from deit.runtime.packages import installed_versions

UNIT_IMAGES = 1024  # a multiple of usual batch sizes, so that batches are full

_PACKAGES = ("deit", "torch", "numpy", "Pillow", "pyarrow")
# Measuring engines may take so much of the time of the job, and at most so many seconds; less than the second is not
# worth it.
_SHARE, _MOST_SECONDS, _LEAST_SECONDS = 0.05, 60.0, 4.0


@dataclass(frozen=True, kw_only=True)
class BulkOptions:
    """What the predictions of a job depend on, besides the model and the images.

    Attributes:
        top_k: Classes of each image.
        batch_size: Images that go through the model together. Batches do not cross units.
        unit_images: Images of a unit, which is the most that is lost when a process is killed. A group of rows of a
            Parquet file is not divided.
        coverage: Percentage for prediction sets; None for none.
        sets: See `Coverage`.
        per_class: See `Coverage`.
        abstain: See `Predictor.classify`.
        raw: Leave the calibration aside.
        value_range: Range of gray images with more than 8 bits; None takes that of the model.
        average: See `open_engine`.
        embedding: Also write what the class head is given.
        explanation: Method of `deit.explain` whose map is written too; empty for none.
        image_column: Column of images of Parquet files; ending of the images of shards.
    """

    top_k: int = 3
    batch_size: int = 32
    unit_images: int = UNIT_IMAGES
    coverage: float | None = None
    sets: str = "lac"
    per_class: bool = False
    abstain: bool = False
    raw: bool = False
    value_range: tuple[float, float] | None = None
    average: str | None = None
    embedding: bool = False
    explanation: str = ""
    image_column: str = ""

    def __post_init__(self) -> None:
        if min(self.top_k, self.batch_size, self.unit_images) < 1:
            raise UserError(
                "top_k, batch_size and unit_images must be at least 1. "
                f"Received: {self.top_k}, {self.batch_size} and {self.unit_images}."
            )

    def wanted(self) -> Coverage | None:
        """Returns what prediction sets must keep; None for no sets."""
        return wanted_coverage(self.coverage, sets=self.sets, per_class=self.per_class, abstain=self.abstain)


def absolute_model(model: str) -> str:
    """Returns the absolute path of a model that is a path; a name as it is."""
    return os.path.abspath(model) if os.path.exists(model) else model


def open_predictor(model: str, options: BulkOptions, *, device: str, engine: str, precision: str | None) -> Predictor:
    """Opens a model for a job; see `Predictor.open`."""
    opened = Predictor.open(
        model,
        device=device,
        engine=engine,
        precision=precision,
        head_average=options.average,
        calibrated=not options.raw,
    )
    if options.value_range is not None:
        opened.processor.value_range = options.value_range
    opened.judge(options.wanted(), abstain=options.abstain)  # refuses what the calibration cannot keep
    if options.embedding and not getattr(opened.engine, "gives_features", True):
        raise UserError(f"The engine {opened.engine.name} gives no embeddings. Pass engine='torch'.")
    if options.explanation:
        _check_explained(opened, options.explanation)
    return opened


def _check_explained(opened: Predictor, method: str) -> None:
    """Refuses what cannot be explained, before anything is written."""
    from deit.explain.maps import check_method
    from deit.explain.network import Network

    check_method(method)
    if opened.engine.name != TORCH:
        raise UserError(f"The engine {opened.engine.name} cannot be explained. Pass engine='torch'.")
    Network(getattr(opened.engine, "model", None))


def identity_of_job(
    model: str, predictor: Predictor, options: BulkOptions, engine: tuple[str, str | None]
) -> dict[str, Any]:
    """Returns what must be equal for two runs to give the same bytes, as plain values of JSON.

    Args:
        model: As it was opened.
        predictor: The opened model.
        options: Of the job.
        engine: Name and precision.
    """
    contract, package = predictor.engine.contract, engine[0].partition("-")[0]
    weights: dict[str, Any] = asdict(
        identity_of(
            contract.folder,
            predictor.processor,
            contract.label_names,
            contract.problem_type,
            contract.head_average,
        )
    )
    if not weights["weights"]:  # of a model that is no directory
        weights["weights"] = model
    exported = find_export(Path(model), engine[0]) if os.path.exists(model) else None
    if exported is not None:
        weights["export"] = sha256_of_file(exported.file)
    weights["calibration"] = "" if predictor.calibration is None else _calibration_of(contract.folder)
    values = {
        "model": weights,
        "engine": {"name": engine[0], "precision": engine[1], "device": str(predictor.engine.device).partition(":")[0]},
        "options": {**asdict(options), "exact_decoding": predictor.exact_decoding},
        "versions": installed_versions((*_PACKAGES, *({package} - {"torch"}))),
    }
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def _calibration_of(folder: Path | None) -> str:
    digest = hashlib.sha256()
    for name in (CALIBRATION_NAME, CLOUDS_NAME):
        if folder is not None and (folder / name).is_file():
            digest.update(bytes.fromhex(sha256_of_file(folder / name)))
    return digest.hexdigest()


def settled_engine(predictor: Predictor, batches: Sequence[Array], images: int) -> tuple[str, str | None]:
    """Returns the engine and precision that a whole job is answered with: it must not change within the job.

    The engine "auto" is given images of the job until it has decided, if the job is long enough for that; else it is
    plain PyTorch. For all other engines, the answer is the engine itself and the precision None, its own.

    Args:
        predictor: The opened model.
        batches: Pixels (B, 3, H, W) of some images.
        images: Number of images of the job.
    """
    engine = predictor.engine
    if not isinstance(engine, AutoEngine):
        return engine.name, None
    started, answered = time.perf_counter(), 0
    judge = predictor.judge()
    ask = engine.with_features if judge is not None and judge.needs_features else engine
    while batches and not engine.is_decided:
        for pixels in batches:
            ask(pixels)
            answered += len(pixels)
            spent = time.perf_counter() - started
            limit = min(_SHARE * spent * images / answered, _MOST_SECONDS)
            if engine.is_decided or (spent > limit and answered >= 2 * len(pixels)) or limit < _LEAST_SECONDS:
                return engine.name, engine.precision
    return engine.name, engine.precision
