"""Scores features with k nearest neighbors and a linear classifier, in numpy.

Apart from features and scores, the memory does not depend on the number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from deit.core.errors import UserError
from deit.core.images.known_images import Overlap
from deit.core.images.reading import ImageError
from deit.data.sources import Source, Subset, contents_of, place_of
from deit.evaluate.recorded_scores import overlap_of
from deit.inference.contract import Array
from deit.inference.embedder import Embedder
from deit.runtime.processes import Processes

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.integer]

NEIGHBOURS, TEMPERATURE = 20, 0.07
_STRENGTHS = tuple(10.0**power for power in range(-2, 6))
_BYTES = 64 * 2**20  # of an array that is needed for a moment
_KNOWN_TOGETHER = 16384  # known images that some queries are compared with at once


def _chunks(count: int, width: int) -> Iterator[slice]:
    """Divides rows so that `width` numbers of 8 bytes for each fit into `_BYTES`."""
    together = max(_BYTES // (8 * width), 1)
    for start in range(0, count, together):
        yield slice(start, min(start + together, count))


# --- neighbors ---------------------------------------------------------------------------------------


def nearest_neighbours(
    known: Array, labels: Integers, queries: Array, num_classes: int, *, k: int = NEIGHBOURS
) -> Floats:
    """Returns the votes (N, K) of the k nearest images by cosine similarity, each with exp(similarity / 0.07).

    Args:
        known: (M, D) features of images whose class is known.
        labels: (M,) their classes.
        queries: (N, D).
        num_classes: K.
        k: Neighbors that vote; all when there are fewer.
    """
    votes = np.zeros((len(queries), num_classes))
    for rows in _chunks(len(queries), 2 * min(len(known), _KNOWN_TOGETHER)):
        opposite, nearest = _nearest(known, -_unit(queries[rows]), k)
        weights = np.exp(-(opposite.astype(np.float64) + 1) / TEMPERATURE)
        np.add.at(votes, (np.arange(rows.start, rows.stop)[:, None], labels[nearest]), weights)
    return votes


def _nearest(known: Array, opposites: Array, k: int) -> tuple[Array, Integers]:
    """Returns the k smallest cosines (n, k) of known images with `opposites`, and their row numbers, unsorted."""
    best = np.zeros((len(opposites), 0), np.float32)
    numbers = np.zeros((len(opposites), 0), np.int64)
    for start in range(0, len(known), _KNOWN_TOGETHER):
        cosines = opposites @ _unit(known[start : start + _KNOWN_TOGETHER]).T
        columns = np.arange(cosines.shape[1])
        if best.shape[1] == k:  # few images are still nearer to some query than those found before
            columns = np.flatnonzero(~(cosines >= best.max(axis=1, keepdims=True)).all(axis=0))
            cosines = cosines[:, columns]
        found = _smallest(cosines, k)
        best = np.concatenate([best, np.take_along_axis(cosines, found, axis=1)], axis=1)
        numbers = np.concatenate([numbers, columns[found] + start], axis=1)
        kept = _smallest(best, k)
        best, numbers = np.take_along_axis(best, kept, axis=1), np.take_along_axis(numbers, kept, axis=1)
    return best, numbers


def _smallest(values: Array, k: int) -> Integers:
    """Returns the columns of the k smallest values of each row, NaN last; all where there are no more."""
    if values.shape[1] <= k:
        return np.broadcast_to(np.arange(values.shape[1]), values.shape)
    return np.argpartition(values, k - 1, axis=1)[:, :k]


def _unit(features: Array) -> Array:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit: Array = (features / np.maximum(norms, 1e-12)).astype(np.float32)
    return unit


# --- linear classifier --------------------------------------------------------------------------------


def linear_classifier(known: Array, labels: Integers, queries: Array, num_classes: int) -> Floats:
    """Returns the scores (N, K) of a ridge regression on the classes, which has a closed form.

    Features are standardized. Of the strengths 0.01 to 100,000 of the penalty the one is taken whose error is smallest
    when each known image is predicted from all others. Of the known images only sums are kept: D x D and K x D.

    Args:
        known: (M, D) features of images whose class is known.
        labels: (M,) their classes.
        queries: (N, D).
        num_classes: K.
    """
    width = known.shape[1]
    scale = _Scale(known)
    gram, sums = np.zeros((width, width)), np.zeros((num_classes, width))
    for rows in _chunks(len(known), width):
        x = scale(known[rows])
        gram += x.T @ x
        np.add.at(sums, labels[rows], x)
    shares = np.bincount(labels, minlength=num_classes) / len(labels)
    squares, axes = np.linalg.eigh(gram)
    squares = np.maximum(squares, 0)  # rounding; none is divided by without a strength added to it
    projected = axes.T @ (sums - shares[:, None] * sums.sum(axis=0)).T
    errors = np.zeros(len(_STRENGTHS))
    for rows in _chunks(len(known), max(width, num_classes)):
        turned = scale(known[rows]) @ axes
        for i, strength in enumerate(_STRENGTHS):
            inverse = 1 / (squares + strength)
            missed = turned @ (inverse[:, None] * projected)  # the prediction, which becomes prediction - truth
            missed += shares
            missed[np.arange(len(missed)), labels[rows]] -= 1
            leverage = 1 / len(known) + turned**2 @ inverse
            left_out = np.einsum("nk,nk->n", missed, missed) / np.maximum(1 - leverage, 1e-12) ** 2
            errors[i] += left_out.sum()
    chosen = _STRENGTHS[int(np.argmin(errors))]
    weights = axes @ (projected / (squares + chosen)[:, None])
    scores = np.empty((len(queries), num_classes))
    for rows in _chunks(len(queries), width):
        np.matmul(scale(queries[rows]), weights, out=scores[rows])
    scores += shares
    return scores


class _Scale:
    """Standardizes features, in float64, as those of known images are."""

    def __init__(self, known: Array) -> None:
        self._mean = known.mean(axis=0, dtype=np.float64)
        variance = np.zeros(known.shape[1])
        for rows in _chunks(len(known), known.shape[1]):
            variance += ((known[rows] - self._mean) ** 2).sum(axis=0)
        self._spread = np.sqrt(variance / len(known))
        self._spread[self._spread == 0] = 1.0

    def __call__(self, features: Array) -> Floats:
        scaled = features - self._mean
        scaled /= self._spread
        return scaled


# --- scores -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FeatureScores:
    """Accuracy of a classifier on features.

    Attributes:
        token: Token of the features.
        method: "nearest neighbours" or "linear".
        top1: In percent.
        top5: In percent.
        images: Number of images counted.
        left_out: Number of queries not counted because they are among the known images.
    """

    token: str
    method: str
    top1: float
    top5: float
    images: int
    left_out: int = 0


@dataclass(frozen=True, kw_only=True)
class FeatureEvaluation:
    """The scores of features and the images behind them.

    Attributes:
        scores: Two for each token.
        known: Number of known images that could be read.
        unreadable_known: Reasons why other known images cannot be read.
        unreadable: Reasons why other queries cannot be read.
        overlap: Counts of the queries that the model has met before; None if that is not recorded.
    """

    scores: list[FeatureScores]
    known: int
    unreadable_known: list[str]
    unreadable: list[str]
    overlap: Overlap | None


def evaluate_features(
    embedder: Embedder,
    known: Source,
    queries: Source,
    *,
    block: int | None = None,
    batch_size: int = 64,
    processes: Processes | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> FeatureEvaluation | None:
    """Scores the features of every token: fits neighbors and a linear classifier on `known`, and tests on `queries`.

    Leaves out queries whose bytes are among the known images (they would be their own neighbors), and unreadable
    images on both sides.

    Args:
        embedder: The model.
        known: Labeled images.
        queries: Other images, with the same classes in the same order.
        block: See `Embedder`.
        batch_size: Images that go through the model together, in each process.
        processes: Those that share the images; this one alone when None.
        on_batch: Called with (batches done, batches of this process in all).

    Returns:
        The scores; None in every process but the first.

    Raises:
        ValueError: The classes differ, images have several, or all queries are among the known images.
        ImageError: Of the known images or of the queries none can be read any more.
    """
    if known.classes != queries.classes or known.problem_type != queries.problem_type:
        raise UserError("Known images and queries must have the same classes. Open both with one list of classes.")
    if known.problem_type != "single_label_classification":
        raise UserError(f"Features are scored where an image has one class. Received: {known.problem_type}.")
    asked, left_out = without_known(queries, known)
    processes = processes or Processes()
    embedded = _embedded(embedder, (known, asked), block, batch_size, processes, on_batch)
    collected = [_of_all(part, processes) for part in embedded]
    if not processes.is_first:
        return None
    first, second = (part.of(source) for part, source in zip(collected, (known, asked), strict=True))
    scores = _scores(collected[0].features, first, collected[1].features, second)
    return FeatureEvaluation(
        scores=[replace(score, left_out=left_out) for score in scores],
        known=len(first.labels),
        unreadable_known=list(collected[0].left_out.values()),
        unreadable=list(collected[1].left_out.values()),
        overlap=overlap_of(embedder.known_images, second),
    )


def _embedded(
    embedder: Embedder,
    sources: Sequence[Source],
    block: int | None,
    batch_size: int,
    processes: Processes,
    on_batch: Callable[[int, int], None] | None,
) -> Iterator[_Embedded]:
    """Yields the features of the images of this process, one source after the other."""
    shares = [range(processes.rank, len(source.labels), processes.world_size) for source in sources]
    total, done = sum(-(-len(share) // batch_size) for share in shares), 0
    for source, share in zip(sources, shares, strict=True):
        numbers: list[int] = []
        left_out: dict[int, str] = {}
        parts: dict[str, list[Array]] = {token: [] for token in embedder.tokens}
        place = partial(place_of, source)
        for told in embedder.answers(share, batch_size, block=block, read=source.image, name=place):
            for token, features in told.outputs.items():
                parts[token].append(features)
            numbers += told.batch.readable
            left_out |= {i: error for i, error in zip(told.batch.items, told.batch.errors, strict=True) if error}
            done += 1
            if on_batch is not None:
                on_batch(done, total)
        none = np.zeros((0, int(embedder.model.config.hidden_size)), np.float32)
        made = {token: np.concatenate([none, *parts.pop(token)]) for token in embedder.tokens}
        yield _Embedded(made, numbers, left_out)


def without_known(queries: Source, known: Source) -> tuple[Source, int]:
    """Returns the queries that are not among the known images, and the number of those that are.

    Raises:
        UserError: All are.
    """
    asked, others = contents_of(queries), contents_of(known)
    if asked is None or others is None:
        return queries, 0
    is_new = ~np.isin(asked, others)
    if not is_new.any():
        raise UserError(
            f"All {len(is_new)} images to be asked about are among the known ones, and would be compared with "
            "themselves. Pass other images, or the same path twice to have it divided."
        )
    return (queries, 0) if is_new.all() else (Subset(queries, np.flatnonzero(is_new)), int((~is_new).sum()))


@dataclass(frozen=True)
class _Embedded:
    """Features by token, the numbers of their images, and the reasons why others cannot be read."""

    features: dict[str, Array]
    numbers: list[int]
    left_out: dict[int, str]

    def of(self, source: Source) -> Source:
        """Returns the images that could be read.

        Raises:
            ImageError: There is none.
        """
        if not self.left_out:
            return source
        if not self.numbers:
            raise ImageError(f"No image can be read any more; the first: {next(iter(self.left_out.values()))}")
        return Subset(source, np.array(self.numbers, np.int64))


def _of_all(mine: _Embedded, processes: Processes) -> _Embedded:
    """Returns in the first process what all have, in the order of the images, and in the others nothing."""
    if processes.world_size == 1:
        return mine
    found = processes.gathered((mine.numbers, mine.left_out))
    numbers = [number for part, _ in found or () for number in part]
    order = np.argsort(np.array(numbers, np.int64), kind="stable")
    features = {token: _gathered(mine.features.pop(token), order, processes) for token in list(mine.features)}
    left_out = {number: reason for _, part in found or () for number, reason in part.items()}
    return _Embedded(features, sorted(numbers), dict(sorted(left_out.items())))


def _gathered(mine: Array, order: Integers, processes: Processes) -> Array:
    """Returns in the first process the rows (N, D) of all processes in an order, and in the others none."""
    parts = processes.gathered(mine)
    places = np.argsort(order, kind="stable")  # of each row, process after process
    whole = np.empty((len(order), mine.shape[1]), np.float32)
    start = 0
    for part in parts or ():
        whole[places[start : start + len(part)]] = part
        start += len(part)
    return whole


def _scores(known: dict[str, Array], first: Source, asked: dict[str, Array], second: Source) -> list[FeatureScores]:
    scores = []
    for token, features in known.items():
        for method, function in (("nearest neighbours", nearest_neighbours), ("linear", linear_classifier)):
            answers = function(features, first.labels, asked[token], len(first.classes))
            places = _places(answers, second.labels)
            top1, top5 = (100 * float((places < count).mean()) for count in (1, 5))
            scores.append(FeatureScores(token=token, method=method, top1=top1, top5=top5, images=len(answers)))
    return scores


def _places(answers: Floats, labels: Integers) -> Integers:
    """Returns the rank of the true class, from 0; equal scores rank by class number.

    The true class ranks last where a score is NaN.
    """
    places = np.zeros(len(answers), np.int64)
    numbers = np.arange(answers.shape[1])
    for rows in _chunks(*answers.shape):
        true = labels[rows, None]
        own = np.take_along_axis(answers[rows], true, axis=1)
        places[rows] = (~(answers[rows] <= own) | ((answers[rows] == own) & (numbers < true))).sum(axis=1)
    return places
