"""How good features are without training a network on them: k nearest neighbours and a linear classifier, in numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deit.data.loader import EvaluationBatches
from deit.data.sources import Source
from deit.deploy.embedding import Array, Embedder

Floats = npt.NDArray[np.float64]

NEIGHBOURS, TEMPERATURE = 20, 0.07
_STRENGTHS = tuple(10.0**power for power in range(-2, 6))
_CHUNK = 1024  # queries that are compared with all neighbours at once


def nearest_neighbours(
    known: Array, labels: npt.NDArray[np.integer], queries: Array, num_classes: int, *, k: int = NEIGHBOURS
) -> Floats:
    """Returns the votes (N, K) of the k nearest images by cosine similarity, each with exp(similarity / 0.07).

    Args:
        known: (M, D) features of images whose class is known.
        labels: (M,) their classes.
        queries: (N, D).
        num_classes: K.
        k: Neighbours that vote; all when there are fewer.
    """
    known, queries = _unit(known), _unit(queries)
    k = min(k, len(known))
    votes = np.zeros((len(queries), num_classes))
    for start in range(0, len(queries), _CHUNK):
        similarity = queries[start : start + _CHUNK] @ known.T
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        weights = np.exp((np.take_along_axis(similarity, nearest, axis=1).astype(np.float64) - 1) / TEMPERATURE)
        rows = np.arange(start, start + len(similarity))[:, None]
        np.add.at(votes, (rows, labels[nearest]), weights)
    return votes


def _unit(features: Array) -> Array:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit: Array = (features / np.maximum(norms, 1e-12)).astype(np.float32)
    return unit


def linear_classifier(known: Array, labels: npt.NDArray[np.integer], queries: Array, num_classes: int) -> Floats:
    """Returns the scores (N, K) of a ridge regression on the classes, which has a closed form.

    Features are standardized. Of the strengths 0.01 to 100,000 of the penalty the one is taken whose error is smallest
    when each known image is predicted from all others.

    Args:
        known: (M, D) features of images whose class is known.
        labels: (M,) their classes.
        queries: (N, D).
        num_classes: K.
    """
    mean, spread = known.mean(axis=0, dtype=np.float64), known.std(axis=0, dtype=np.float64)
    spread[spread == 0] = 1.0
    x = (known - mean) / spread
    wanted = np.eye(num_classes)[labels]
    y = wanted - wanted.mean(axis=0)
    u, singular, vt = np.linalg.svd(x, full_matrices=False)
    projected = u.T @ y
    best, chosen = np.inf, _STRENGTHS[0]
    for strength in _STRENGTHS:
        shrunk = singular**2 / (singular**2 + strength)
        leverage = 1 / len(x) + (u**2 @ shrunk)
        left_out = (y - u @ (shrunk[:, None] * projected)) / np.maximum(1 - leverage, 1e-12)[:, None]
        error = float((left_out**2).mean())
        if error < best:
            best, chosen = error, strength
    weights = vt.T @ ((singular / (singular**2 + chosen))[:, None] * projected)
    scores: Floats = ((queries - mean) / spread) @ weights + wanted.mean(axis=0)
    return scores


@dataclass(frozen=True, kw_only=True)
class FeatureScores:
    """How often features tell the class.

    Attributes:
        token: Which features.
        method: "nearest neighbours" or "linear".
        top1: In percent.
        top5: In percent.
        images: Number of images counted.
    """

    token: str
    method: str
    top1: float
    top5: float
    images: int


def evaluate_features(
    embedder: Embedder,
    known: Source,
    queries: Source,
    *,
    block: int | None = None,
    batch_size: int = 64,
    on_batch: Callable[[int, int], None] | None = None,
) -> list[FeatureScores]:
    """Scores the features of every token: neighbours and linear classifier know `known` and are asked about `queries`.

    Args:
        embedder: The model.
        known: Labelled images.
        queries: Others, of the same classes in the same order.
        block: See `Embedder`.
        batch_size: Images that go through the model together.
        on_batch: Called with (batches done, batches in all).

    Raises:
        ValueError: The classes differ, or images have several.
    """
    if known.classes != queries.classes or known.problem_type != queries.problem_type:
        raise ValueError("Known images and queries must have the same classes. Open both with one list of classes.")
    if known.problem_type != "single_label_classification":
        raise ValueError(f"Features are scored where an image has one class. Received: {known.problem_type}.")
    sources = [EvaluationBatches(source, embedder.processor, batch_size) for source in (known, queries)]
    total, done = sum(map(len, sources)), 0
    collected: list[dict[str, Array]] = []
    for batches in sources:
        parts: dict[str, list[Array]] = {}
        for pixels, _ in batches:
            for token, features in embedder(pixels, block=block).items():
                parts.setdefault(token, []).append(features)
            done += 1
            if on_batch is not None:
                on_batch(done, total)
        collected.append({token: np.concatenate(values) for token, values in parts.items()})
    scores = []
    for token in embedder.tokens:
        for method, function in (("nearest neighbours", nearest_neighbours), ("linear", linear_classifier)):
            answers = function(collected[0][token], known.labels, collected[1][token], len(known.classes))
            right = np.argsort(-answers, axis=1, kind="stable") == queries.labels[:, None]
            top1, top5 = (100 * float(right[:, :count].any(axis=1).mean()) for count in (1, 5))
            scores.append(FeatureScores(token=token, method=method, top1=top1, top5=top5, images=len(answers)))
    return scores
