"""Makes the calibration of a model from held-out images: temperatures, conformal scores, thresholds, outliers."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.errors import UserError
from deit.core.images.known_images import CALIBRATED, MEASURED, KnownImages
from deit.core.printable import counted, some_of
from deit.core.scores.calibration import (
    TEMPERATURE_RANGE,
    confidences,
    expected_calibration_error,
    fit_temperature,
    pairs_of,
    reliability,
    temperature_interval,
)
from deit.core.scores.calibration_file import (
    Calibration,
    HeadCalibration,
    Outliers,
    identity_of,
)
from deit.core.scores.conformal import RESIDUAL, SETS, images_needed, threshold, true_scores
from deit.core.scores.functions import sigmoid
from deit.core.scores.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Array, Floats, softmax
from deit.core.scores.operating_points import PRECISION, RECALL, OperatingPoint, check_share, choose_point
from deit.core.scores.outliers import FeatureClouds
from deit.data.readers.reader import DataPath
from deit.data.sources import Source, Subset, contents_of
from deit.evaluate.calibration_images import (
    Answered,
    OnBatch,
    answers_to,
    divided_images,
    opened_images,
    training_images_of,
)
from deit.evaluate.evaluation import check_images
from deit.inference.predictor import Predictor

# From fewer images a temperature is off by a third and more: its 95 % interval is about +- 2.1 / sqrt(images).
FEWEST_IMAGES = 50
# Training images whose features are taken: enough for a covariance of 768 numbers.
_MOST_TRAINING_IMAGES = 10_000
_OUTLIER_PERCENT = 95.0  # of held-out images that no outlier score above 1 is given to
_FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What the thresholds of a binary or multi-label model are chosen for: one of both.

    Attributes:
        precision: Share of the named images that must be right.
        recall: Share of the images of a class that must be named.
        positive: Of two classes, the one that the threshold is for.
    """

    precision: float | None = None
    recall: float | None = None
    positive: str = ""

    def __post_init__(self) -> None:
        if self.precision is not None and self.recall is not None:
            raise UserError("Pass precision or recall, not both: a threshold is chosen for one of them.")
        if self.precision is not None:
            check_share(PRECISION, self.precision)
        if self.recall is not None:
            check_share(RECALL, self.recall)
        if self.positive and self.name is None:
            raise UserError("positive names the class of a threshold. Pass precision or recall with it.")

    @property
    def name(self) -> str | None:
        """One of "precision" and "recall"; None for no thresholds."""
        return PRECISION if self.precision is not None else RECALL if self.recall is not None else None

    @property
    def share(self) -> float:
        """The precision or recall."""
        share = self.precision if self.precision is not None else self.recall
        assert share is not None
        return share


def calibrate(
    model: str | os.PathLike[str] | Predictor,
    data: DataPath | Source,
    *,
    training_images: DataPath | Source | None = None,
    precision: float | None = None,
    recall: float | None = None,
    positive: str = "",
    batch_size: int = 64,
    device: str = "cpu",
    on_batch: OnBatch | None = None,
) -> Calibration:
    """Calibrates a model on images that it has not learned from, and writes `calibration.json` into its directory.

    Leaves out images that the model learned from, where its directory records them. What the images decide:
    temperatures of all heads (Guo et al. 2017), conformal scores for prediction sets (of regressions: intervals),
    thresholds of binary and multi-label models for a precision or a recall, and from which distance to the training
    images on an image is an outlier.

    Args:
        model: A model directory; or a predictor, whose calibration is only returned unless it was opened from a
            directory.
        data: Labeled images, or where they are; see `open_labelled`. At least 50 must be left.
        training_images: Images that the model learned from, for outliers; those of `data` when None.
        precision: Share of the images named as a class that must be of it; for two classes or several labels.
        recall: The same for the share of the images of a class that must be named.
        positive: Of two classes, the one that the threshold is for.
        batch_size: Images that go through the model together.
        device: See `Predictor.open`; for a model directory.
        on_batch: Called with (batches done, batches in all), of the held-out images first.

    Returns:
        The calibration. Its `notes` say what was left out and what is not possible.

    Raises:
        FileNotFoundError: See `Predictor.open` and `open_labelled`.
        UserError: See `Predictor.open` and `open_labelled`; too few images are left, all of one class, or their labels
            do not suit the model; the model has neither two classes nor several labels for a threshold.

    Examples:
        >>> calibration = deit.calibrate("OUT", "photos")
        >>> calibration.temperature("both")
        1.41
    """
    aim = Aim(precision=precision, recall=recall, positive=positive)
    predictor = model if isinstance(model, Predictor) else _opened(model, device)
    notes: list[str] = []
    part, learnt = _held_out(predictor, data, aim, notes)
    seen = answers_to(predictor, part, batch_size, on_batch)
    _check_answers(seen, notes)
    held = Subset(part, seen.indices)
    found = _fitted(predictor, held, seen, aim, notes)
    training = training_images_of(predictor, data, training_images, part) or learnt
    outliers = _outliers(predictor, training, seen.features, batch_size, on_batch, notes)
    found = replace(found, outliers=outliers, notes=tuple(notes))
    folder = predictor.engine.contract.folder
    if folder is not None and folder.is_dir():
        found.write(folder)
        _record(folder, contents_of(held))
    return found


def _opened(model: Any, device: str) -> Predictor:
    return Predictor.open(model, device=device, engine="torch", calibrated=False)  # the same bits in every run


def _held_out(predictor: Predictor, data: Any, aim: Aim, notes: list[str]) -> tuple[Source, Source | None]:
    """Returns the images to calibrate on, and those among them that the model learned from; or refuses them."""
    source = opened_images(data, predictor)
    check_images(predictor.engine.contract, source)
    _check_aim(predictor, aim)
    part, learnt = divided_images(predictor, source, notes)
    _check_enough(predictor, part)
    return part, learnt


def _check_answers(seen: Answered, notes: list[str]) -> None:
    notes += seen.notes()
    if seen.count < FEWEST_IMAGES:
        raise UserError(_too_few(seen.count, "could be read and have an answer"))


def _check_enough(predictor: Predictor, part: Source) -> None:
    if len(part.labels) < FEWEST_IMAGES:
        raise UserError(_too_few(len(part.labels), "that the model has not learned from"))
    if predictor.problem_type == SINGLE_LABEL and len(np.unique(part.labels)) == 1:
        name = predictor.label_names[int(part.labels[0])]
        raise UserError(
            f"All {len(part.labels)} held-out images are of the class {name}. A calibration needs images of several."
        )


def _too_few(count: int, which: str) -> str:
    return (
        f"A calibration needs at least {FEWEST_IMAGES} images {which}. Received: {count}. A coverage of 95 % can be "
        f"promised from {images_needed(95)} images on, but a temperature from fewer than {FEWEST_IMAGES} may be off by "
        "a third. Pass more labeled images."
    )


def _check_aim(predictor: Predictor, aim: Aim) -> None:
    if aim.name is None:
        return
    names, kind = predictor.label_names, predictor.problem_type
    if kind == REGRESSION or (kind == SINGLE_LABEL and len(names) != 2):
        what = "a regression" if kind == REGRESSION else f"one class of {len(names)}"
        raise UserError(
            f"A {aim.name} is for models of two classes or of several labels. This one is for {what}. Use a coverage."
        )
    if kind == SINGLE_LABEL and aim.positive not in names:
        raise UserError(f"positive must be one of the two classes, {' or '.join(names)}. Received: {aim.positive!r}.")
    if kind == MULTI_LABEL and aim.positive:
        raise UserError("positive is for models of two classes. With several labels, each class gets its threshold.")


# --- what they say --------------------------------------------------------------------------------------


def _fitted(predictor: Predictor, held: Source, seen: Answered, aim: Aim, notes: list[str]) -> Calibration:
    contract, kind, labels = predictor.engine.contract, predictor.problem_type, held.labels
    heads = (
        {} if kind == REGRESSION else {n: _head(n, logits, labels, kind, notes) for n, logits in seen.logits.items()}
    )
    answer = next(iter(seen.logits.values()))
    single = kind == SINGLE_LABEL
    scores: dict[str, Floats] = {}
    if single:
        scores = {sets: true_scores(sets, answer, labels) for sets in SETS}
        missing = [name for k, name in enumerate(predictor.label_names) if not (labels == k).any()]
        if missing:
            notes.append(f"Without any held-out image, so nothing is known of them: {some_of(missing, 5)}.")
    if kind == REGRESSION:
        scores = {RESIDUAL: np.abs(answer[:, 0].astype(np.float64) - labels)}
    known, contents, measured = contract.known_images, contents_of(held), None
    if known is not None and contents is not None:
        measured = int((known.roles_of(contents) & MEASURED != 0).sum())
    if measured:
        notes.append(
            f"Training scored the model on {measured} of these images. If it chose among weights by them, the "
            "calibration is a little too good."
        )
    temperature = next(iter(heads.values())).temperature if heads else 1.0
    return Calibration(
        problem_type=kind,
        classes=list(predictor.label_names),
        heads=heads,
        images=seen.count,
        fingerprint=_fingerprint(held),
        measured=measured,
        identity=identity_of(contract.folder, predictor.processor, contract.label_names, kind, contract.head_average),
        labels=labels if single else np.zeros(0, np.int64),
        scores=scores,
        points=_points(predictor, answer / np.float32(temperature), labels, aim, notes),
    )


def _head(name: str, logits: Array, labels: Any, kind: str, notes: list[str]) -> HeadCalibration:
    """Fits the temperature of one head. Its error after that is of images that had no part in their temperature."""
    folds = np.arange(len(logits)) % _FOLDS  # by images, so that all answers to one are in one fold
    if kind == MULTI_LABEL:
        folds = np.repeat(folds, logits.shape[1])
        logits, labels = pairs_of(logits, labels)
    best = fit_temperature(logits, labels)
    if best in TEMPERATURE_RANGE:
        notes.append(
            f"No temperature is best for the head {name}: every answer is right, or worse than guessing. "
            "Its scores stay as they are. Pass more images, among them difficult ones."
        )
        best = 1.0
    sure = np.empty(len(logits), np.float32)
    for number in range(_FOLDS):
        others = folds != number
        fitted = fit_temperature(logits[others], labels[others])
        sure[~others] = confidences(logits[~others], 1.0 if fitted in TEMPERATURE_RANGE else fitted)
    right = logits.argmax(axis=1) == labels
    return HeadCalibration(
        temperature=best,
        interval=temperature_interval(logits, labels, best),
        raw_error=expected_calibration_error(reliability(confidences(logits), right)),
        error=expected_calibration_error(reliability(sure, right)),
    )


def _points(
    predictor: Predictor, logits: Array, labels: npt.NDArray[Any], aim: Aim, notes: list[str]
) -> tuple[OperatingPoint, ...]:
    if aim.name is None:
        return ()
    names = predictor.label_names
    if predictor.problem_type == SINGLE_LABEL:
        k = names.index(aim.positive)
        chosen = {aim.positive: (softmax(logits)[:, k], labels == k)}
    else:
        probabilities = sigmoid(logits)
        chosen = {name: (probabilities[:, k], labels[:, k] == 1) for k, name in enumerate(names)}
    points = []
    for name, (scores, positive) in chosen.items():
        point = choose_point(name, scores, positive, aim.name, aim.share)
        if point is None:
            notes.append(
                f"No threshold for {name}: a {aim.name} of {aim.share:g} is out of reach with "
                f"{counted(int(positive.sum()), 'held-out image')} of it. It is never named by a threshold."
            )
        else:
            points.append(point)
    if not points:
        raise UserError(f"{' '.join(notes[-1:])} Ask for a lower {aim.name}, or pass more images.")
    return tuple(points)


def _outliers(
    predictor: Predictor,
    training: Source | None,
    features: Array | None,
    batch_size: int,
    on_batch: OnBatch | None,
    notes: list[str],
) -> Outliers | None:
    """Fits the clouds of the training images' features, and the distance that 95 % of the held-out ones keep."""
    if features is None:
        notes.append("Outliers cannot be found: the features of this model are unknown.")
        return None
    if training is None or len(training.labels) < FEWEST_IMAGES:
        count = 0 if training is None else len(training.labels)
        notes.append(
            f"Outliers are not looked for: that needs {FEWEST_IMAGES} of the training images, and {count} were "
            "given. Pass the data that the model was trained on."
        )
        return None
    chosen = _spread(training, _MOST_TRAINING_IMAGES)
    if len(chosen.labels) < len(training.labels):
        notes.append(f"Outliers are judged by {len(chosen.labels)} of {len(training.labels)} training images.")
    seen = answers_to(predictor, chosen, batch_size, on_batch)
    assert seen.features is not None
    labels = chosen.labels[seen.indices]
    # A class of its own for each label, where images have one.
    groups = labels if predictor.problem_type == SINGLE_LABEL else np.zeros(len(labels), np.int64)
    clouds = FeatureClouds.fit(seen.features, groups)
    limit = threshold(clouds.distances(features), _OUTLIER_PERCENT)
    if not math.isfinite(limit) or limit <= 0:
        notes.append("Outliers are not looked for: the features of the held-out images are all alike.")
        return None
    return Outliers(clouds=clouds, threshold=limit, images=seen.count)


def _spread(source: Source, most: int) -> Source:
    """Returns at most so many images, evenly spaced over the classes."""
    count = len(source.labels)
    if count <= most:
        return source
    order = np.argsort(source.labels, kind="stable") if source.labels.ndim == 1 else np.arange(count)
    return Subset(source, np.sort(order[np.linspace(0, count - 1, most).astype(np.int64)]))


def _fingerprint(images: Source) -> str:
    """Returns a hash of the images, in whatever order."""
    contents = contents_of(images)
    return images.fingerprint() if contents is None else hashlib.sha256(np.sort(contents).tobytes()).hexdigest()


def _record(folder: Path, contents: npt.NDArray[np.uint64] | None) -> None:
    """Adds to the record of known images which of them the calibration was made from, where there is such a record."""
    known = KnownImages.read(folder)
    if known is None or contents is None:
        return
    former = known.roles & np.uint8(255 - CALIBRATED)
    kept = former != 0
    KnownImages.merge([(known.hashes[kept], former[kept]), (contents, CALIBRATED)]).write(folder)
