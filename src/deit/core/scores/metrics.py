"""Scores the logits of any function. Counts add up over batches and processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from deit.core.errors import UserError
from deit.core.labels import (
    MULTI_LABEL as MULTI_LABEL,
    PROBLEM_TYPES as PROBLEM_TYPES,
    REGRESSION as REGRESSION,
    SINGLE_LABEL as SINGLE_LABEL,
)

Array = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Batches: TypeAlias = Iterable[tuple[Array, npt.NDArray[Any]]]
Combine: TypeAlias = Callable[[Floats], Floats]


_PERCENT = {
    "top1": "top-1",
    "top5": "top-5",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "exact_match": "exact match",
}
_WORDS = {"r2": "R²"}


@dataclass(frozen=True, kw_only=True)
class _Scores:
    """What the scores of every problem type have in common."""

    def as_dict(self) -> dict[str, float]:
        """Returns the scores by name, the most important first, without counts."""
        return {name: value for name, value in asdict(self).items() if name not in ("images", "unanswered")}


@dataclass(frozen=True, kw_only=True)
class Scores(_Scores):
    """Scores of one set of logits over a data set.

    Attributes:
        top1: Top-1 accuracy in percent.
        top5: Top-5 accuracy in percent; every answer is right when there are at most five classes.
        loss: Mean cross-entropy against the true class, in nats; NaN if an image has no answer.
        images: Number of images counted.
        unanswered: Images whose logits are NaN or infinite. They count as wrong.
    """

    top1: float
    top5: float
    loss: float
    images: int
    unanswered: int = 0


@dataclass(frozen=True, kw_only=True)
class MultiLabelScores(_Scores):
    """Scores of multi-label classification. A class is predicted if its probability is above one half.

    Attributes:
        micro_f1: F1 of all answers taken together, in percent.
        macro_f1: Mean over the classes of their F1, in percent; a class that nobody names counts 0, as in scikit-learn.
        exact_match: Images of which every class is right, in percent.
        loss: Mean binary cross-entropy over images and classes, in nats; NaN if an image has no answer.
        images: Number of images counted.
        unanswered: Images whose logits are NaN or infinite. They count as no to every class, and as no exact match.
    """

    micro_f1: float
    macro_f1: float
    exact_match: float
    loss: float
    images: int
    unanswered: int = 0


@dataclass(frozen=True, kw_only=True)
class RegressionScores(_Scores):
    """Scores of a regression with one number per image.

    Attributes:
        mean_absolute_error: In the unit of the labels.
        root_mean_squared_error: In the unit of the labels.
        r2: Share of the labels' variance that is explained: 1 is perfect, 0 as good as their mean, less is worse; NaN
            when all labels are equal.
        loss: Mean squared error.
        images: Number of images counted.
        unanswered: Images whose answer is NaN or infinite. They make every score NaN.
    """

    mean_absolute_error: float
    root_mean_squared_error: float
    r2: float
    loss: float
    images: int
    unanswered: int = 0


def score_title(name: str) -> str:
    """Returns the name of a score for readers, with its unit: "top-1 %"."""
    return f"{_PERCENT[name]} %" if name in _PERCENT else _WORDS.get(name, name.replace("_", " "))


def score_text(name: str, value: float) -> str:
    """Returns a score for readers, without its unit; "-" for NaN."""
    if np.isnan(value):
        return "-"
    return f"{value:.2f}" if name in _PERCENT else f"{value:.3f}"


AnyScores: TypeAlias = Scores | MultiLabelScores | RegressionScores


class Counter(Protocol):
    """Adds up batches of logits.

    Attributes:
        totals: One-dimensional sums; those of two counters add up to the sums over the images of both.
    """

    totals: Floats

    def add(self, logits: Array, labels: npt.NDArray[Any]) -> None:
        """Counts one batch."""
        ...

    def scores(self) -> AnyScores:
        """Returns the scores of all batches so far."""
        ...


class ScoreCounter:
    """Adds up batches of logits against true classes.

    Attributes:
        totals: (5,): images, right at first, right among five, unanswered, sum of the losses.

    Examples:
        >>> counter = ScoreCounter()
        >>> counter.add(np.array([[2.0, 1.0], [0.0, 3.0]], np.float32), np.array([0, 0]))
        >>> counter.scores().top1
        50.0
    """

    def __init__(self) -> None:
        self.totals: Floats = np.zeros(5)

    def add(self, logits: Array, labels: npt.NDArray[np.integer]) -> None:
        """Counts one batch.

        Args:
            logits: (B, K).
            labels: (B,), true classes in [0, K).

        Raises:
            ValueError: Shapes disagree, or a label is out of range.
        """
        ranks, losses = ranks_and_losses(logits, labels)
        answered = has_answer(logits)
        top5 = ((ranks < 5) & answered).sum()
        self.totals += [len(labels), (ranks < 1).sum(), top5, (~answered).sum(), losses.sum()]

    def scores(self) -> Scores:
        """Returns the scores of all batches so far.

        Raises:
            ValueError: No image was counted.
        """
        images, top1, top5, unanswered, loss = _some_images(self.totals)
        return Scores(
            top1=100.0 * top1 / images,
            top5=100.0 * top5 / images,
            loss=loss / images,
            images=int(images),
            unanswered=int(unanswered),
        )


class MultiLabelCounter:
    """Adds up batches of logits against zeros and ones.

    Attributes:
        totals: (4 + 3 K,): images, exact matches, unanswered, sum of each image's mean loss; then for each class how
            often yes was right, how often yes was wrong, and how often no was wrong. Empty before the first batch.
    """

    def __init__(self) -> None:
        self.totals: Floats = np.zeros(0)

    def add(self, logits: Array, labels: npt.NDArray[Any]) -> None:
        """Counts one batch.

        Args:
            logits: (B, K).
            labels: (B, K), zeros and ones.

        Raises:
            ValueError: Shapes disagree, or a label is neither 0 nor 1.
        """
        if logits.ndim != 2 or labels.shape != logits.shape:
            raise UserError(f"Logits and labels (B, K) are needed. Received: {logits.shape} and {labels.shape}.")
        true = labels == 1
        strange = ~true & (labels != 0)
        if strange.any():
            raise UserError(f"Labels of several classes must be 0 or 1. Received: {labels[strange][0]}.")
        answered = np.asarray(np.isfinite(logits).all(axis=1))
        said = (logits > 0) & answered[:, None]
        wide = logits.astype(np.float64)
        with np.errstate(invalid="ignore"):
            losses = (np.maximum(wide, 0) - wide * true + np.log1p(np.exp(-np.abs(wide)))).mean(axis=1)
        losses[~answered] = np.nan
        exact = (said == true).all(axis=1) & answered
        per_class = [(said & true).sum(0), (said & ~true).sum(0), (~said & true).sum(0)]
        batch = np.concatenate([[len(labels), exact.sum(), (~answered).sum(), losses.sum()], *per_class])
        self.totals = batch + self.totals if self.totals.size else batch

    def scores(self) -> MultiLabelScores:
        """Returns the scores of all batches so far.

        Raises:
            ValueError: No image was counted.
        """
        images, exact, unanswered, loss = _some_images(self.totals)[:4]
        right, wrong_yes, wrong_no = self.totals[4:].reshape(3, -1)
        f1 = f1_scores(right, wrong_yes, wrong_no)
        return MultiLabelScores(
            micro_f1=100 * float(f1_scores(right.sum(), wrong_yes.sum(), wrong_no.sum())),
            macro_f1=100 * float(f1.mean()),
            exact_match=100.0 * exact / images,
            loss=loss / images,
            images=int(images),
            unanswered=int(unanswered),
        )


class RegressionCounter:
    """Adds up batches of answers against true numbers.

    Attributes:
        totals: (6,): images, unanswered, sums of absolute errors, squared errors, labels and squared labels.
    """

    def __init__(self) -> None:
        self.totals: Floats = np.zeros(6)

    def add(self, logits: Array, labels: npt.NDArray[Any]) -> None:
        """Counts one batch.

        Args:
            logits: (B, 1).
            labels: (B,).

        Raises:
            ValueError: Shapes disagree.
        """
        if logits.ndim != 2 or logits.shape[1] != 1 or labels.shape != logits.shape[:1]:
            raise UserError(f"Answers (B, 1) and labels (B,) are needed. Received: {logits.shape} and {labels.shape}.")
        true = labels.astype(np.float64)
        error = logits[:, 0].astype(np.float64) - true
        unanswered = (~has_answer(logits)).sum()
        error[~np.isfinite(error)] = np.nan
        self.totals += [len(true), unanswered, np.abs(error).sum(), (error**2).sum(), true.sum(), (true**2).sum()]

    def scores(self) -> RegressionScores:
        """Returns the scores of all batches so far.

        Raises:
            ValueError: No image was counted.
        """
        images, unanswered, absolute, squared, total, total_squared = _some_images(self.totals)
        spread = total_squared - total**2 / images
        # What is left when equal numbers are subtracted is rounding.
        all_equal = spread <= 1e-12 * total_squared
        return RegressionScores(
            mean_absolute_error=absolute / images,
            root_mean_squared_error=float(np.sqrt(squared / images)),
            r2=float("nan") if all_equal else 1 - squared / spread,
            loss=squared / images,
            images=int(images),
            unanswered=int(unanswered),
        )


def _some_images(totals: Floats) -> list[float]:
    if not totals.size or not totals[0]:
        raise UserError("No images were evaluated.")
    values: list[float] = totals.tolist()
    return values


_COUNTERS: dict[str, Callable[[], Counter]] = {
    SINGLE_LABEL: ScoreCounter,
    MULTI_LABEL: MultiLabelCounter,
    REGRESSION: RegressionCounter,
}


def evaluate(
    predict: Callable[[Array], Mapping[str, Array]],
    batches: Batches,
    *,
    problem_type: str = SINGLE_LABEL,
    combine: Combine | None = None,
) -> dict[str, Any]:
    """Scores every output of a predictor over batches of images.

    Args:
        predict: pixels (B, C, H, W) -> named logits (B, K), such as `{"both": ..., "class": ...}`.
        batches: Pairs of pixels and labels: (B,) true classes, (B, K) zeros and ones, or (B,) numbers.
        problem_type: "single_label_classification", "multi_label_classification" or "regression".
        combine: Maps a float64 array to its sum over all processes that share the images (`Processes.sum`), of which
            some may have none; None when this process has all of them.

    Returns:
        Scores by the names that `predict` gives, the same in every process: `Scores`, `MultiLabelScores` or
        `RegressionScores`.

    Raises:
        ValueError: There are no images, labels and logits do not go together, or the problem type is unknown.
    """
    if problem_type not in _COUNTERS:
        raise UserError(f"The problem type must be one of {', '.join(PROBLEM_TYPES)}. Received: {problem_type!r}.")
    new_counter = _COUNTERS[problem_type]
    counters: dict[str, Counter] = {}
    for pixels, labels in batches:
        for name, logits in predict(pixels).items():
            counters.setdefault(name, new_counter()).add(logits, labels)
    if combine is not None:
        counters = _combined(counters, new_counter, combine)
    if not counters:
        raise UserError("No images were evaluated.")
    return {name: counter.scores() for name, counter in counters.items()}


def _combined(counters: dict[str, Counter], new_counter: Callable[[], Counter], combine: Combine) -> dict[str, Counter]:
    """Sums counters over processes. A process without images takes the names of the heads from the others."""
    layout = json.dumps({name: counter.totals.size for name, counter in counters.items()}).encode() if counters else b""
    with_images, length = combine(np.array([bool(layout), len(layout)], np.float64))
    if not with_images:
        return {}
    letters = np.frombuffer(layout, np.uint8) if layout else np.zeros(round(length / with_images))
    agreed = combine(letters.astype(np.float64)) / with_images
    sizes: dict[str, int] = json.loads(np.round(agreed).astype(np.uint8).tobytes())
    mine = [counters[name].totals if counters else np.zeros(size) for name, size in sizes.items()]
    totals = combine(np.concatenate(mine))
    result: dict[str, Counter] = {}
    for name, part in zip(sizes, np.split(totals, np.cumsum(list(sizes.values()))[:-1]), strict=True):
        result[name] = new_counter()
        result[name].totals = part
    return result


def ranks_and_losses(logits: Array, labels: npt.NDArray[np.integer]) -> tuple[Integers, Floats]:
    """Returns for each image how many classes come before the true one, and its cross-entropy.

    Args:
        logits: (B, K).
        labels: (B,), true classes in [0, K).

    Returns:
        (B,) ranks, K where a logit is not a number; (B,) losses in nats, NaN there.

    Raises:
        ValueError: Shapes disagree, or a label is out of range.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise UserError(f"Logits (B, K) and labels (B,) are needed. Received: {logits.shape} and {labels.shape}.")
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise UserError(
            f"Labels must lie in [0, {logits.shape[1]}). Received: {int(labels.min())} to {int(labels.max())}."
        )
    wide = logits.astype(np.float64)
    true = np.take_along_axis(wide, labels[:, None].astype(np.int64), axis=1)
    # A class ranks before the true one when its logit is larger, or equal with a smaller number:
    # constant logits then count as right only for class 0, never for every class.
    before = (wide > true) | ((wide == true) & (np.arange(wide.shape[1]) < labels[:, None]))
    answered = has_answer(logits)
    ranks: Integers = np.where(answered, before.sum(axis=1), wide.shape[1])
    highest = wide.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        losses = np.log(np.exp(wide - highest).sum(axis=1)) + highest[:, 0] - true[:, 0]
    losses[~answered] = np.nan
    return ranks, losses


def has_answer(logits: Array) -> npt.NDArray[np.bool_]:
    """Returns for each row of logits (B, K) whether it ranks the classes: no NaN, and a largest that is finite."""
    answered: npt.NDArray[np.bool_] = np.isfinite(logits.max(axis=1))
    return answered


def answered_rows(logits: Array, problem_type: str) -> npt.NDArray[np.bool_]:
    """Returns for each row of logits (B, K) whether it answers: ranks the classes, or else has finite numbers alone."""
    if problem_type == SINGLE_LABEL:
        return has_answer(logits)
    return np.asarray(np.isfinite(logits).all(axis=1))


def f1_scores(right: Any, wrong_yes: Any, wrong_no: Any) -> Floats:
    """Returns F1; 0 for a class that is neither present nor predicted.

    Args:
        right: How often yes was right, a number or one for each class.
        wrong_yes: How often yes was wrong.
        wrong_no: How often no was wrong.
    """
    found = 2.0 * np.asarray(right, np.float64)
    result: Floats = found / np.maximum(found + wrong_yes + wrong_no, 1)
    return result


def average_precision(scores: Array, labels: npt.NDArray[Any]) -> float:
    """Returns the average precision of one class: precision at each level of recall, weighted by the step in recall.

    No interpolation, and images of equal score are taken together, as scikit-learn does.

    Args:
        scores: (N,), the larger, the more likely.
        labels: (N,), zeros and ones.

    Returns:
        Between 0 and 1; NaN when no image has the class or a score is NaN.
    """
    total = int((labels == 1).sum())
    if not total or np.isnan(scores).any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    right = np.cumsum(labels[order] == 1)[ends]
    steps = np.diff(right, prepend=0) / total
    return float((steps * right / (ends + 1)).sum())


def softmax(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns class probabilities (B, K) of logits (B, K), in their precision and without overflow."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: npt.NDArray[Any] = shifted / shifted.sum(axis=-1, keepdims=True)
    return result
