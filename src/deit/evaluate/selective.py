"""Measures how far answers can be trusted: mistakes by the share answered, and what a calibration promises."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.scores.calibration import confidences, expected_calibration_error, reliability
from deit.core.scores.calibration_file import Calibration
from deit.core.scores.conformal import (
    RESIDUAL,
    SETS,
    Coverage,
    class_scores,
    class_thresholds,
    images_needed,
    threshold,
)
from deit.core.scores.intervals import Z_95, share_interval
from deit.core.scores.metrics import REGRESSION, SINGLE_LABEL, Array, Floats, Integers

PERCENTS = (90.0, 95.0, 99.0)
_SHARES = (100, 95, 90, 80, 70, 50, 30, 20, 10)  # of the images that are answered, the surest first
_RESAMPLES = 200


@dataclass(frozen=True, kw_only=True)
class RiskPoint:
    """The mistakes among the images whose answers are the surest.

    Attributes:
        answered: Share of the images that are answered, in percent.
        images: How many.
        risk: Wrong answers among them, in percent.
        interval: Its 95 % interval (Wilson).
        confidence: Lowest probability among them.
    """

    answered: float
    images: int
    risk: float
    interval: tuple[float, float]
    confidence: float


@dataclass(frozen=True, kw_only=True)
class CoverageResult:
    """What one promise of a calibration gave.

    Attributes:
        sets: One of `SETS`; "residual" for the intervals of a regression.
        asked: Percentage that was promised.
        covered: Percentage of images whose set holds the truth.
        interval: Its 95 % interval (Wilson).
        size: Mean number of classes in a set; for a regression the width of the intervals.
        size_interval: Its 95 % interval.
        single: Percentage of images with exactly one class in the set, which `abstain` names; NaN for a regression.
        single_risk: Wrong answers among those, in percent; NaN without any.
        single_risk_interval: Its 95 % interval (Wilson).
    """

    sets: str
    asked: float
    covered: float
    interval: tuple[float, float]
    size: float
    size_interval: tuple[float, float]
    single: float = float("nan")
    single_risk: float = float("nan")
    single_risk_interval: tuple[float, float] = (float("nan"), float("nan"))


@dataclass(frozen=True, kw_only=True)
class Trust:
    """How far the answers of a model can be trusted.

    Attributes:
        risk: Mistakes by the share of images that are answered, surest first; empty unless images have one class.
        mean_risk: Mean of the mistakes over all shares (area under that curve), in percent.
        mean_risk_interval: Its 95 % interval, from resampled images.
        temperature: Of the calibration; None without one.
        calibration_error: Expected calibration error with it, between 0 and 1.
        coverage: What the sets of the calibration gave.
    """

    risk: tuple[RiskPoint, ...] = ()
    mean_risk: float = float("nan")
    mean_risk_interval: tuple[float, float] = (float("nan"), float("nan"))
    temperature: float | None = None
    calibration_error: float = float("nan")
    coverage: tuple[CoverageResult, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Returns sentences for the terminal."""
        lines = []
        if self.temperature is not None:
            lines.append(
                f"Calibrated (temperature {self.temperature:.3f} of calibration.json): ECE "
                f"{100 * self.calibration_error:.2f} %"
            )
        for one in self.coverage:
            if one.sets in ("lac", RESIDUAL):
                lines.append(_coverage_line(one))
        chosen = [point for point in self.risk if point.answered in (100, 80, 50)]
        if chosen:
            parts = (f"{p.risk:.1f} % ({_ends(p.interval)}) of {p.answered:g} %" for p in chosen)
            lines.append(
                f"Wrong among the surest: {', '.join(parts)}; mean over all shares {self.mean_risk:.1f} % "
                f"({_ends(self.mean_risk_interval)})"
            )
        return lines


def measure_trust(
    logits: Array, labels: npt.NDArray[Any], problem_type: str, head: str, calibration: Calibration | None
) -> Trust | None:
    """Measures how far answers can be trusted.

    Args:
        logits: (N, K) raw logits of a head; all rows have an answer.
        labels: (N,) true classes or numbers.
        problem_type: One of `PROBLEM_TYPES`; there is nothing to measure for several labels.
        head: Name of the head.
        calibration: Of the model; its sets are those of the answer, so they are measured for that head alone.

    Returns:
        None without images, or for several labels.
    """
    if not len(logits) or problem_type not in (SINGLE_LABEL, REGRESSION):
        return None
    if calibration is not None and calibration.heads and next(iter(calibration.heads)) != head:
        calibration = None
    coverage = () if calibration is None else tuple(_coverages(logits, labels, calibration))
    if problem_type == REGRESSION:
        return Trust(coverage=coverage) if coverage else None
    temperature = None if calibration is None else calibration.temperature(head)
    sure, right = confidences(logits, temperature or 1.0), logits.argmax(axis=1) == labels
    points, mean, interval = risk_curve(sure, right)
    error = expected_calibration_error(reliability(sure, right)) if temperature is not None else float("nan")
    return Trust(
        risk=points,
        mean_risk=mean,
        mean_risk_interval=interval,
        temperature=temperature,
        calibration_error=error,
        coverage=coverage,
    )


def risk_curve(
    sure: npt.NDArray[Any], right: npt.NDArray[np.bool_]
) -> tuple[tuple[RiskPoint, ...], float, tuple[float, float]]:
    """Returns the mistakes by the share that is answered, their mean over all shares, and its 95 % interval.

    Args:
        sure: (N,), highest probability of each image.
        right: (N,), whether its class is the true one.
    """
    order = np.argsort(-sure, kind="stable")
    wrong = (~right[order]).astype(np.float64)
    count = len(wrong)
    points = []
    for share in _SHARES:
        n = max(round(count * share / 100), 1)
        risk = 100 * float(wrong[:n].mean())
        points.append(
            RiskPoint(
                answered=float(share),
                images=n,
                risk=risk,
                interval=share_interval(risk, n),
                confidence=float(sure[order[n - 1]]),
            )
        )
    random = np.random.default_rng(0)
    areas = []
    for _ in range(_RESAMPLES):  # the order stays, so each resample takes time in proportion to the images
        weights = random.multinomial(count, np.full(count, 1 / count)).astype(np.float64)
        areas.append(_area(wrong, weights))
    low, high = np.quantile(areas, [0.025, 0.975])
    return tuple(points), _area(wrong, np.ones(count)), (float(low), float(high))


def _area(wrong: Floats, weights: Floats) -> float:
    total = np.cumsum(weights)
    risks = np.cumsum(weights * wrong) / np.maximum(total, 1)
    return 100 * float((risks * weights).sum() / total[-1])


def _coverages(logits: Array, labels: npt.NDArray[Any], calibration: Calibration) -> list[CoverageResult]:
    percents = [percent for percent in PERCENTS if calibration.images >= images_needed(percent)]
    if calibration.problem_type == REGRESSION:
        errors = np.abs(logits[:, 0].astype(np.float64) - labels)
        return [_interval_result(percent, errors, calibration) for percent in percents]
    picks = logits.argmax(axis=1)
    found: dict[tuple[float, str], CoverageResult] = {}
    for sets in SETS:
        scores = class_scores(sets, logits)  # one kind at a time: they are as large as all logits
        for percent in percents:
            found[percent, sets] = _set_result(sets, percent, scores, picks, labels, calibration)
    return [found[percent, sets] for percent in percents for sets in SETS]


def _interval_result(percent: float, errors: Floats, calibration: Calibration) -> CoverageResult:
    half = threshold(calibration.scores[RESIDUAL], percent)
    share = 100 * float((errors <= half).mean())
    ends, width = share_interval(share, len(errors)), (2 * half, 2 * half)
    return CoverageResult(
        sets=RESIDUAL, asked=percent, covered=share, interval=ends, size=2 * half, size_interval=width
    )


def _set_result(
    sets: str, percent: float, scores: Floats, picks: Integers, labels: npt.NDArray[Any], calibration: Calibration
) -> CoverageResult:
    limits = class_thresholds(
        calibration.scores[sets], calibration.labels, calibration.classes, Coverage(percent=percent, sets=sets)
    )
    inside = scores <= limits
    single = inside.sum(axis=1) == 1
    inside[np.arange(len(labels)), picks] = True  # no set is shown empty
    covered, sizes = inside[np.arange(len(labels)), labels], inside.sum(axis=1)
    share, size = 100 * float(covered.mean()), float(sizes.mean())
    half = Z_95 * float(sizes.std()) / np.sqrt(len(sizes))
    risk = 100 * float((~covered[single]).mean()) if single.any() else float("nan")
    return CoverageResult(
        sets=sets,
        asked=percent,
        covered=share,
        interval=share_interval(share, len(labels)),
        size=size,
        size_interval=(float(size - half), float(size + half)),
        single=100 * float(single.mean()),
        single_risk=risk,
        single_risk_interval=share_interval(risk, int(single.sum())),
    )


def _coverage_line(one: CoverageResult) -> str:
    if one.sets == RESIDUAL:
        return f"Intervals for {one.asked:g} %: hold {one.covered:.1f} % ({_ends(one.interval)}), width {one.size:.4g}"
    alone = ""
    if one.single_risk == one.single_risk:
        alone = f" of which {one.single_risk:.1f} % ({_ends(one.single_risk_interval)}) wrong"
    return (
        f"Sets for {one.asked:g} %: hold {one.covered:.1f} % ({_ends(one.interval)}), {one.size:.2f} classes "
        f"({one.size_interval[0]:.2f} to {one.size_interval[1]:.2f}); one class for {one.single:.1f} %{alone}"
    )


def _ends(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.1f} to {interval[1]:.1f}"
