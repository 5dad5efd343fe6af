"""What an evaluation finds out about a model: scores, classes, calibration, agreement, mistakes, throughput."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.images.known_images import Overlap
from deit.core.scores import metrics
from deit.core.scores.calibration import ReliabilityBin, confidences, expected_calibration_error
from deit.core.scores.intervals import score_intervals, share_interval
from deit.core.scores.metrics import SINGLE_LABEL, AnyScores, Array, Integers
from deit.evaluate.selective import Trust


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadResult:
    """The answers of one head or of the teacher.

    Attributes:
        scores: Of all images.
        picks: (N,) chosen classes, -1 without an answer; empty unless each image has one class.
        bins: Reliability of its probabilities; images without an answer are left out.
    """

    scores: AnyScores
    picks: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    bins: tuple[ReliabilityBin, ...] = ()

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, between 0 and 1."""
        return expected_calibration_error(list(self.bins))


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """The temperature with the smallest cross-entropy for the logits of the head in detail.

    Attributes:
        temperature: Divide the logits by it.
        calibration_error: Calibration error at this temperature, on the images of the fit.
        loss: Cross-entropy at this temperature, on the same images.
        images: Number of images of the fit.
    """

    temperature: float
    calibration_error: float
    loss: float
    images: int


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Speed of the evaluation; the first of several batches is a warm-up.

    Attributes:
        model: Images per second in the model alone, with copies to the device and back.
        end_to_end: Images per second with reading and preprocessing.
        batch_size: Images that went through the model together.
        device: Name of the device.
        processes: Number of processes that shared the images; their speeds are added.
    """

    model: float
    end_to_end: float
    batch_size: int
    device: str
    processes: int


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """One wrong answer.

    Attributes:
        index: Number of the image in the source.
        true: Name of its class, or its number for a regression.
        said: Answer of the model.
        size: Probability of the answer, between 0 and 1; for a regression the error.
    """

    index: int
    true: str
    said: str
    size: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """The results of one evaluation.

    Attributes:
        problem_type: By the names of transformers.
        classes: Class names, in the order of the logits.
        labels: (N,) true classes, (N, K) zeros and ones, or (N,) numbers.
        head: The head that is reported in detail.
        heads: Results by name; the first one is the answer of the model.
        teacher: Results of the teacher, if there is one.
        temperature: None unless each image has one class.
        throughput: Speed.
        kept: Numbers of the images whose logits of the shown head were kept; all where they fit in a gibibyte.
        logits: (images kept, K), of the shown head.
        overlap: Counts of the images that the model has met before; None if that is not recorded.
        teacher_overlap: The same for the teacher.
        trust: How far the answers can be trusted; None for several labels.
        left_out: Number of an image of the source -> why it could not be read; N and the numbers above are of the
            others.
    """

    problem_type: str
    classes: list[str]
    labels: npt.NDArray[Any]
    head: str
    heads: dict[str, HeadResult]
    teacher: HeadResult | None
    temperature: Temperature | None
    throughput: Throughput
    kept: Integers
    logits: Array
    overlap: Overlap | None = None
    teacher_overlap: Overlap | None = None
    trust: Trust | None = None
    left_out: dict[int, str] = field(default_factory=dict)

    @cached_property
    def agreement(self) -> dict[str, float]:
        """Share of images, in percent, where two heads, or a head and the teacher, choose the same class."""
        results = dict(self.heads) if self.problem_type == SINGLE_LABEL else {}
        if self.teacher is not None:
            results["teacher"] = self.teacher
        names = list(results)
        shares = {}
        for i, first in enumerate(names):
            for second in names[i + 1 :]:
                a, b = results[first].picks, results[second].picks
                shares[f"{first}, {second}"] = 100 * float(((a == b) & (a >= 0)).mean())
        return shares

    def confusion(self, head: str | None = None) -> Integers:
        """Returns the counts (K, K) of each true class (row) and chosen class (column).

        Leaves out images without an answer.
        """
        picks, count = self.heads[head or self.head].picks, len(self.classes)
        answered = picks >= 0
        pairs = self.labels[answered] * count + picks[answered]
        return np.bincount(pairs, minlength=count * count).reshape(count, count)

    def per_class(self, head: str | None = None) -> list[dict[str, Any]]:
        """Returns for each class its name, its number of images, and how many are right or how well it is found.

        One class for each image: "right", and in percent "accuracy" (which is its recall), its 95 % "interval",
        "precision" (of what was taken for the class) and "f1". Many labels: "precision", "recall" and "f1" in percent,
        and "average_precision", of the images whose logits were kept. A regression has none. NaN where nothing was
        counted.
        """
        if self.problem_type == metrics.REGRESSION:
            return []
        if self.problem_type == metrics.MULTI_LABEL:
            return self._per_label()
        images = np.bincount(self.labels, minlength=len(self.classes))
        picks = self.heads[head or self.head].picks
        right = np.bincount(self.labels[picks == self.labels], minlength=len(self.classes))
        said = np.bincount(picks[picks >= 0], minlength=len(self.classes))
        rows = []
        for name, n, r, s in zip(self.classes, images.tolist(), right.tolist(), said.tolist(), strict=True):
            row = {"class": name, "images": n, "right": r, "accuracy": _percent(r, n)}
            row |= {"interval": share_interval(row["accuracy"], n), "precision": _percent(r, s)}
            rows.append({**row, "f1": 100 * float(metrics.f1_scores(r, s - r, n - r)) if n or s else float("nan")})
        return rows

    def _per_label(self) -> list[dict[str, Any]]:
        rows = []
        for k, name in enumerate(self.classes):
            true, said = self.labels[self.kept, k] == 1, self.logits[:, k] > 0
            f1 = metrics.f1_scores((true & said).sum(), (~true & said).sum(), (true & ~said).sum())
            row = {"class": name, "images": int(true.sum()), "f1": 100 * float(f1)}
            both = (true & said).sum()
            row |= {"precision": _percent(both, said.sum()), "recall": _percent(both, true.sum())}
            row["average_precision"] = metrics.average_precision(self.logits[:, k], self.labels[self.kept, k])
            rows.append(row)
        return rows

    @cached_property
    def mean_average_precision(self) -> float:
        """Mean of the classes' average precision, of those that occur; NaN unless images have many labels."""
        values = [r["average_precision"] for r in self.per_class() if r["images"] and "average_precision" in r]
        return float(np.mean(values)) if values else float("nan")

    def worst_classes(self, count: int = 5) -> list[dict[str, Any]]:
        """Returns the classes with the lowest accuracy or average precision, of those with images."""
        key = "average_precision" if self.problem_type == metrics.MULTI_LABEL else "accuracy"
        present = [row for row in self.per_class() if row["images"]]
        return sorted(present, key=lambda row: (row[key], -row["images"]))[:count]

    def confused_pairs(self, count: int = 20) -> list[tuple[str, str, int]]:
        """Returns the most frequent confusions: true class, chosen class, count."""
        picks = self.heads[self.head].picks
        wrong = (picks >= 0) & (picks != self.labels)
        pairs, times = np.unique(self.labels[wrong] * len(self.classes) + picks[wrong], return_counts=True)
        order = np.argsort(-times, kind="stable")[:count]
        found = [(*divmod(int(pairs[i]), len(self.classes)), int(times[i])) for i in order]
        return [(self.classes[true], self.classes[said], n) for true, said, n in found]

    def mistakes(self, count: int = 24) -> list[Mistake]:
        """Returns the wrong answers with the highest probability; for a regression those with the largest error.

        Considers the images whose logits were kept. There are none for several labels.
        """
        answered = metrics.has_answer(self.logits)
        if self.problem_type == metrics.MULTI_LABEL:
            return []
        if self.problem_type == metrics.REGRESSION:
            errors = np.abs(self.logits[:, 0] - self.labels[self.kept])
            order = [int(i) for i in np.argsort(-errors, kind="stable") if answered[i]][:count]
            labels, said = self.labels[self.kept], self.logits[:, 0]
            return [
                Mistake(index=int(self.kept[i]), true=f"{labels[i]:.4g}", said=f"{said[i]:.4g}", size=float(errors[i]))
                for i in order
            ]
        wrong = np.flatnonzero(answered & (self.heads[self.head].picks[self.kept] != self.labels[self.kept]))
        sure = confidences(self.logits[wrong])
        chosen = [(int(self.kept[wrong[i]]), float(sure[i])) for i in np.argsort(-sure, kind="stable")[:count]]
        picks = self.heads[self.head].picks
        return [
            Mistake(index=i, true=self.classes[int(self.labels[i])], said=self.classes[int(picks[i])], size=s)
            for i, s in chosen
        ]

    def as_dict(self) -> dict[str, Any]:
        """Returns everything as plain values; confusion matrices up to 100 classes, above that the confused pairs."""
        result: dict[str, Any] = {
            "problem_type": self.problem_type,
            "images": len(self.labels),
            "left_out": list(self.left_out.values()),
            "classes": self.classes,
            "head": self.head,
            "heads": {name: self._head_dict(name) for name in self.heads},
            "throughput": asdict(self.throughput),
            "overlap": asdict(self.overlap) if self.overlap else None,
            "teacher_overlap": asdict(self.teacher_overlap) if self.teacher_overlap else None,
        }
        if self.problem_type == metrics.MULTI_LABEL:
            result |= {"mean_average_precision": self.mean_average_precision, "per_class": self.per_class()}
        if self.problem_type == SINGLE_LABEL:
            result["agreement"] = self.agreement
            result["temperature"] = asdict(self.temperature) if self.temperature else None
            result["confused_pairs"] = [list(pair) for pair in self.confused_pairs()]
        if self.teacher is not None:
            result["teacher"] = _scores_dict(self.teacher.scores)
        if self.trust is not None:
            result["trust"] = self.trust.as_dict()
        result["mistakes"] = [asdict(mistake) for mistake in self.mistakes()]
        return result

    def _head_dict(self, name: str) -> dict[str, Any]:
        head = self.heads[name]
        values: dict[str, Any] = _scores_dict(head.scores)
        if self.problem_type != SINGLE_LABEL:
            return values
        values["calibration_error"] = head.calibration_error
        values["reliability"] = [asdict(b) for b in head.bins]
        values["per_class"] = self.per_class(name)
        if len(self.classes) <= 100:
            values["confusion"] = self.confusion(name).tolist()
        return values


def _percent(part: Any, whole: Any) -> float:
    return 100 * float(part) / float(whole) if whole else float("nan")


def _scores_dict(scores: AnyScores) -> dict[str, Any]:
    named = {f"{name}_interval": list(ends) for name, ends in score_intervals(scores).items()}
    return {"images": scores.images, "unanswered": scores.unanswered, **scores.as_dict(), **named}
