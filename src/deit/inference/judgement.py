"""Says how far an answer can be trusted, by the calibration of its model: sets, intervals, outliers, abstention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from deit.core.errors import DamagedFileError, UserError
from deit.core.file_names import CALIBRATION_NAME
from deit.core.labels import distinct_names
from deit.core.printable import some_of
from deit.core.processing.settings import ImageProcessor
from deit.core.scores.calibration_file import Calibration, identity_of, read_calibration
from deit.core.scores.conformal import RESIDUAL, Coverage, class_scores, class_thresholds, threshold
from deit.core.scores.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from deit.core.scores.predictions import Judgement as Judgement
from deit.inference.contract import Array, Contract

_MOST_NAMED = 5  # classes in a reason


class Judge:
    """Judges answers by a calibration.

    Args:
        calibration: Of the model.
        coverage: For sets and intervals; None makes none.
        abstain: Name no class for an image whose set does not hold exactly one, or that is unlike the training images.

    Raises:
        UserError: The calibration has too few images for the coverage, or the problem type has no sets.
    """

    def __init__(self, calibration: Calibration, coverage: Coverage | None = None, *, abstain: bool = False) -> None:
        self._calibration = calibration
        self._coverage = Coverage() if abstain and coverage is None else coverage
        self._abstain = abstain
        self._limits: Any = None
        self._points = [(point, calibration.classes.index(point.label)) for point in calibration.points]
        kind = calibration.problem_type
        if self._coverage is not None and kind == MULTI_LABEL:
            raise UserError(
                "Prediction sets are for models that choose one class, or a number. This one names several: ask "
                "`deit calibrate` for a precision or a recall instead."
            )
        if kind == REGRESSION and abstain:
            raise UserError("A regression names no class, so it cannot abstain. Pass a coverage to get intervals.")
        if self._coverage is None:
            return
        if kind == REGRESSION:
            self._limits = threshold(calibration.scores[RESIDUAL], self._coverage.percent)
        else:
            scores = calibration.scores[self._coverage.sets]
            self._limits = class_thresholds(scores, calibration.labels, calibration.classes, self._coverage)

    @property
    def needs_features(self) -> bool:
        """Whether answers must come with features, to find outliers."""
        return self._calibration.outliers is not None

    def judge(self, logits: Array, scores: Array, features: Array | None = None) -> Judgement:
        """Judges the answer to one image.

        Args:
            logits: (1, K), raw.
            scores: (K,), calibrated.
            features: (1, D), what the class head was given; None without.
        """
        outliers, outlier_score = self._calibration.outliers, None
        if outliers is not None and features is not None:
            outlier_score = float(outliers.clouds.distances(features)[0]) / outliers.threshold
        named = self._named(scores)
        if self._coverage is None:
            return Judgement(named=named, outlier_score=outlier_score)
        if self._calibration.problem_type == REGRESSION:
            value = float(scores[0])
            return Judgement(interval=(value - self._limits, value + self._limits), outlier_score=outlier_score)
        return self._with_set(logits, named, outlier_score)

    def _named(self, scores: Array) -> tuple[str, ...] | None:
        if not self._points:
            return None
        classes = self._calibration.classes
        said = {point.label for point, number in self._points if scores[number] >= point.threshold}
        if self._calibration.problem_type == SINGLE_LABEL and not said:  # of two classes, the other one
            (positive,) = {point.label for point, _ in self._points}
            return tuple(name for name in classes if name != positive)
        return tuple(name for name in classes if name in said)

    def _with_set(self, logits: Array, named: tuple[str, ...] | None, outlier_score: float | None) -> Judgement:
        assert self._coverage is not None
        classes = self._calibration.classes
        order = np.argsort(-logits[0], kind="stable")
        inside = class_scores(self._coverage.sets, logits)[0] <= self._limits
        found = tuple(classes[k] for k in order if inside[k])
        judged = Judgement(
            prediction_set=found or (classes[order[0]],), named=named, outlier_score=outlier_score
        )  # an empty set says nothing, so it gets the likeliest class
        reason = self._reason(found, judged) if self._abstain else ""
        return replace(judged, abstained=reason)

    def _reason(self, found: tuple[str, ...], judged: Judgement) -> str:
        assert self._coverage is not None
        if judged.is_outlier:
            return f"unlike the training images (outlier score {judged.outlier_score:.2f})"
        if not found:
            return f"no class is likely enough at a coverage of {self._coverage.percent:g} %"
        if len(found) > 1:
            return (
                f"{len(found)} classes are possible at a coverage of {self._coverage.percent:g} %: "
                f"{some_of(found, _MOST_NAMED)}"
            )
        return ""


def has_calibration(contract: Contract) -> bool:
    """Whether the directory of an opened model holds a calibration, of whatever weights."""
    return contract.folder is not None and (contract.folder / CALIBRATION_NAME).exists()


def open_calibration(contract: Contract, processor: ImageProcessor) -> tuple[Calibration | None, str]:
    """Reads the calibration of an opened model.

    Args:
        contract: Of the model.
        processor: The preprocessing in use.

    Returns:
        The calibration, or None with the reason: there is none, or it was made for other weights.

    Raises:
        DamagedFileError: `calibration.json` is damaged.
    """
    folder = contract.folder
    if folder is None or not folder.is_dir() or (found := read_calibration(folder)) is None:
        where = "The model" if folder is None else str(folder)
        return None, f"{where} has no {CALIBRATION_NAME}. Make it from held-out images with deit calibrate."
    mine = identity_of(folder, processor, contract.label_names, contract.problem_type, contract.head_average)
    if difference := found.identity.difference(mine):
        return None, (
            f"{folder / CALIBRATION_NAME} was made for {difference}, so scores are not calibrated. "
            "Run deit calibrate again."
        )
    if found.classes != distinct_names(contract.label_names) or found.problem_type != contract.problem_type:
        raise DamagedFileError(f"{folder / CALIBRATION_NAME} is damaged: its classes are not those of the model.")
    if found.heads and next(iter(found.heads)) != contract.head_names[0]:
        raise DamagedFileError(f"{folder / CALIBRATION_NAME} is damaged: its heads are not those of the model.")
    return found, ""
