"""How good a model is on labelled images: every head, every class, how far to believe it, and how fast it is."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from deit.core.errors import UserError
from deit.core.known_images import KnownImages, Overlap
from deit.core.labels import distinct_names, numbers_by_name, repeated_names
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.core.scores import metrics
from deit.core.scores.calibration import (
    confidences,
    expected_calibration_error,
    fit_temperature,
    mean_cross_entropy,
    reliability,
)
from deit.core.scores.metrics import SINGLE_LABEL, Array, Integers
from deit.data.loader import EvaluationBatches
from deit.data.sources import Source, Subset, contents_of
from deit.evaluate.results import Evaluation, HeadResult, Temperature, Throughput
from deit.runtime.processes import Processes

# Logits of the answer that are kept, in bytes: all 50,000 x 1,000 of ImageNet's validation images need a fifth of it.
_KEPT_BYTES = 1 << 30

OnBatch = Callable[[int, int], None]


class HeadRunner(Protocol):
    """What is evaluated; see `TorchRunner`. It may have its `known_images`."""

    label_names: list[str]
    problem_type: str
    device: str

    def heads(self, pixels: Array, /) -> dict[str, Array]:
        """Returns the logits (B, K) of each head; the first is the model's answer."""
        ...


@dataclass(frozen=True, kw_only=True)
class TeacherModel:
    """A model whose answers the evaluated one is compared with.

    Args:
        runner: Of the teacher.
        processor: Its own preprocessing.
    """

    runner: HeadRunner
    processor: DeiTImageProcessor

    def columns(self, classes: list[str]) -> Integers:
        """Returns where the teacher has these classes.

        Raises:
            ValueError: It lacks one, or does not choose one class for each image.
        """
        if self.runner.problem_type != SINGLE_LABEL:
            raise UserError(f"The teacher must choose one class. Received: a model for {self.runner.problem_type}.")
        names = self.runner.label_names
        if names == classes:  # names that come twice are then no matter
            return np.arange(len(classes))
        known, repeated = numbers_by_name(names), repeated_names(classes)
        missing = [name for name in classes if name not in known or name in repeated]
        if missing:
            several = set(missing) & {*repeated, *repeated_names(names)}
            why = " Several classes have one name, and the lists are not the same." if several else ""
            raise UserError(
                f"The teacher lacks {len(missing)} of the model's {len(classes)} classes: {_some(missing)}. "
                f"It knows: {_some(names)}.{why}"
            )
        return np.array([known[name] for name in classes], np.int64)


def evaluate_model(
    runner: HeadRunner,
    source: Source,
    processor: DeiTImageProcessor,
    *,
    batch_size: int = 64,
    head: str = "",
    teacher: TeacherModel | None = None,
    processes: Processes | None = None,
    on_batch: OnBatch | None = None,
) -> Evaluation | None:
    """Evaluates a model on labelled images, on one process or on several that share them.

    An image that cannot be read any more is left out of everything, and told in `left_out`.

    Args:
        runner: The model; its `problem_type` says what the labels must be.
        source: Labelled images, with the model's classes in the model's order.
        processor: The preprocessing that the weights were scored with.
        batch_size: Images that go through the model together, in each process.
        head: Whose details to keep; the model's answer when empty.
        teacher: Compare with it.
        processes: Those that share the images; this one alone when None.
        on_batch: Called with (batches done, batches of this process in all), the teacher's counted as well.

    Returns:
        What was found; None in every process but the first.

    Raises:
        ValueError: Classes, labels or problem type do not suit the model, the teacher lacks a class, the head is
            unknown, or there are no images.
    """
    processes = processes or Processes()
    left_out: dict[int, str] = {}
    while True:
        numbers = np.array([i for i in range(len(source.labels)) if i not in left_out], np.int64)
        part = Subset(source, numbers) if left_out else source
        try:
            result = _evaluate(runner, part, processor, batch_size, head, teacher, processes, on_batch)
        except _UnreadableImagesError as found:  # rare, as they were checked: the others are looked at once more
            left_out |= {int(numbers[i]): reason for i, reason in found.reasons.items()}
            continue
        return None if result is None else replace(result, left_out=dict(sorted(left_out.items())))


class _UnreadableImagesError(Exception):
    def __init__(self, reasons: dict[int, str]) -> None:
        super().__init__(f"{len(reasons)} images cannot be read.")
        self.reasons = reasons


def _evaluate(
    runner: HeadRunner,
    source: Source,
    processor: DeiTImageProcessor,
    batch_size: int,
    head: str,
    teacher: TeacherModel | None,
    processes: Processes,
    on_batch: OnBatch | None,
) -> Evaluation | None:
    _check(runner, source, teacher)
    every = max(-(-len(source.labels) * len(runner.label_names) * 4 // _KEPT_BYTES), 1)
    steps = _Steps(on_batch, passes=1 if teacher is None else 2)
    student = _Pass(runner.heads, source, runner.problem_type, head=head, keep_every=every)
    scores = student.run(processor, batch_size, processes, steps)
    seen = student.gathered(processes)
    opinion = None if teacher is None else _ask(teacher, source, runner.label_names, batch_size, processes, steps)
    if seen is None:
        return None
    heads = _head_results(scores, seen, source.labels)
    kept, logits = _kept(seen)
    return Evaluation(
        problem_type=runner.problem_type,
        classes=distinct_names(runner.label_names),
        labels=source.labels,
        head=head or next(iter(heads)),
        heads=heads,
        teacher=opinion,
        temperature=_temperature(logits, source.labels[kept]) if runner.problem_type == SINGLE_LABEL else None,
        throughput=_throughput(seen, batch_size, runner.device),
        kept=kept,
        logits=logits,
        overlap=_overlap(runner, source),
        teacher_overlap=None if teacher is None else _overlap(teacher.runner, source),
    )


def _overlap(runner: HeadRunner, source: Source) -> Overlap | None:
    known: KnownImages | None = getattr(runner, "known_images", None)
    contents = contents_of(source)
    return None if known is None or contents is None else known.overlap(contents)


def _ask(
    teacher: TeacherModel, source: Source, classes: list[str], batch_size: int, processes: Processes, steps: _Steps
) -> HeadResult | None:
    columns = teacher.columns(classes)

    def predict(pixels: Array) -> dict[str, Array]:
        return {"teacher": next(iter(teacher.runner.heads(pixels).values()))[:, columns]}

    teaching = _Pass(predict, source, SINGLE_LABEL)
    scores = teaching.run(teacher.processor, batch_size, processes, steps)
    seen = teaching.gathered(processes)
    return None if seen is None else _head_results(scores, seen, source.labels)["teacher"]


def _check(runner: HeadRunner, source: Source, teacher: TeacherModel | None) -> None:
    kind = getattr(source, "problem_type", SINGLE_LABEL)
    if kind != runner.problem_type:
        raise UserError(f"The model is for {runner.problem_type}. Received: labels for {kind}.")
    if not len(source.labels):
        raise UserError("There are no images to evaluate the model on.")
    if kind != metrics.REGRESSION and list(source.classes) != list(runner.label_names):
        raise UserError(
            f"The images must have the model's classes, in its order: {_some(runner.label_names)}. "
            f"Received: {_some(source.classes)}."
        )
    labels, count = source.labels, len(runner.label_names)
    if kind == SINGLE_LABEL and not 0 <= int(labels.min()) <= int(labels.max()) < count:
        raise UserError(f"Labels must lie in [0, {count}). Received: {int(labels.min())} to {int(labels.max())}.")
    if teacher is not None:
        if kind != SINGLE_LABEL:
            raise UserError(f"Agreement with a teacher needs one class for each image. Received: a model for {kind}.")
        teacher.columns(runner.label_names)


class _Steps:
    """Counts the batches of all passes together."""

    def __init__(self, on_batch: OnBatch | None, passes: int) -> None:
        self._on_batch = on_batch
        self._passes = passes
        self._done = 0

    def one_more(self, batches: int) -> None:
        self._done += 1
        if self._on_batch is not None:
            self._on_batch(self._done, self._passes * batches)


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


class _Numbered:
    """Another source whose labels are the numbers of its images, so that a batch tells which images it holds."""

    problem_type = SINGLE_LABEL

    def __init__(self, source: Source) -> None:
        self._source = source
        self.classes = source.classes
        self.labels: Integers = np.arange(len(source.labels))

    def image(self, index: int) -> Image.Image:
        return self._source.image(index)

    def fingerprint(self) -> str:
        return self._source.fingerprint()


@dataclass(kw_only=True, eq=False)
class _Seen:
    """What one process found out about its images."""

    indices: list[Integers] = field(default_factory=list)
    picks: dict[str, list[npt.NDArray[np.int32]]] = field(default_factory=dict)
    sure: dict[str, list[Array]] = field(default_factory=dict)
    kept: list[Integers] = field(default_factory=list)
    logits: list[Array] = field(default_factory=list)
    # Seconds of each batch: in the model, and with all that came before it.
    model_seconds: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class _Pass:
    """Takes one model once over the images of this process."""

    def __init__(
        self,
        predict: Callable[[Array], dict[str, Array]],
        source: Source,
        problem_type: str,
        *,
        head: str = "",
        keep_every: int = 0,
    ) -> None:
        self._predict = predict
        self._source = source
        self._problem_type = problem_type
        self._head = head
        self._keep_every = keep_every
        self._seen = _Seen()

    def run(
        self, processor: DeiTImageProcessor, batch_size: int, processes: Processes, steps: _Steps
    ) -> dict[str, Any]:
        numbered = _Numbered(self._source)
        batches = EvaluationBatches(
            numbered, processor, batch_size, rank=processes.rank, world_size=processes.world_size
        )

        def labelled() -> Iterator[tuple[Array, npt.NDArray[Any]]]:
            started = time.perf_counter()
            for pixels, indices in batches:
                self._seen.indices.append(indices)
                yield pixels, self._source.labels[indices]
                now = time.perf_counter()
                self._seen.seconds.append(now - started)
                started = now
                steps.one_more(len(batches))

        scores: dict[str, Any] = {}
        try:
            scores = metrics.evaluate(self._watch, labelled(), problem_type=self._problem_type, combine=processes.sum)
        except UserError:  # no image was left to count, perhaps
            if not batches.left_out:
                raise
        marks = np.zeros(len(self._source.labels))
        marks[list(batches.left_out)] = 1
        unreadable = np.flatnonzero(processes.sum(marks)).tolist()
        if unreadable:
            elsewhere = "Another process could not read it."
            raise _UnreadableImagesError({i: batches.left_out.get(i, elsewhere) for i in unreadable})
        return scores

    def _watch(self, pixels: Array) -> dict[str, Array]:
        started = time.perf_counter()
        heads = self._predict(pixels)
        self._seen.model_seconds.append(time.perf_counter() - started)
        if self._head and self._head not in heads:
            raise UserError(f"The model has no head {self._head!r}. Known: {', '.join(heads)}.")
        if self._problem_type == SINGLE_LABEL:
            for name, logits in heads.items():
                answered = metrics.has_answer(logits)
                picks = np.where(answered, logits.argmax(axis=1), -1).astype(np.int32)
                sure = np.full(len(logits), np.nan, np.float32)
                sure[answered] = confidences(logits[answered])
                self._seen.picks.setdefault(name, []).append(picks)
                self._seen.sure.setdefault(name, []).append(sure)
        if self._keep_every:
            indices = self._seen.indices[-1]
            mine = indices % self._keep_every == 0
            self._seen.kept.append(indices[mine])
            self._seen.logits.append(heads[self._head or next(iter(heads))][mine])
        return heads

    def gathered(self, processes: Processes) -> list[_Seen] | None:
        """Returns in the first process what all processes saw, in the others None."""
        return processes.gathered(self._seen)


def _head_results(scores: dict[str, Any], seen: list[_Seen], labels: npt.NDArray[Any]) -> dict[str, HeadResult]:
    """Puts what all processes saw in the order of the images."""
    indices = np.concatenate([part for one in seen for part in one.indices])
    order = np.argsort(indices, kind="stable")
    assert np.array_equal(indices[order], np.arange(len(labels))), "Each image must be seen exactly once."
    results = {}
    for name, score in scores.items():
        if not any(name in one.picks for one in seen):
            results[name] = HeadResult(scores=score)
            continue
        picks = np.concatenate([part for one in seen for part in one.picks.get(name, ())])[order]
        sure = np.concatenate([part for one in seen for part in one.sure.get(name, ())])[order]
        answered = picks >= 0
        bins = reliability(sure[answered], picks[answered] == labels[answered])
        results[name] = HeadResult(scores=score, picks=picks, bins=tuple(bins))
    return results


def _kept(seen: list[_Seen]) -> tuple[Integers, Array]:
    kept = np.concatenate([part for one in seen for part in one.kept])
    logits = np.concatenate([part for one in seen for part in one.logits])
    order = np.argsort(kept, kind="stable")
    return kept[order], logits[order]


def _temperature(logits: Array, labels: Integers) -> Temperature | None:
    answered = metrics.has_answer(logits)
    logits, labels = logits[answered], labels[answered]
    if not len(logits):
        return None
    best = fit_temperature(logits, labels)
    bins = reliability(confidences(logits, best), logits.argmax(axis=1) == labels)
    return Temperature(
        temperature=best,
        calibration_error=expected_calibration_error(bins),
        loss=mean_cross_entropy(logits, labels, best),
        images=len(logits),
    )


def _throughput(seen: list[_Seen], batch_size: int, device: str) -> Throughput:
    model = end_to_end = 0.0
    for one in seen:
        first = 1 if len(one.indices) > 1 else 0
        images = sum(len(part) for part in one.indices[first:])
        if images:
            model += images / sum(one.model_seconds[first:])
            end_to_end += images / sum(one.seconds[first:])
    return Throughput(
        model=model,
        end_to_end=end_to_end,
        batch_size=batch_size,
        device=_device_name(device),
        processes=len(seen),
    )


def _device_name(device: str) -> str:
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name()
    if torch.device(device).type != "cpu":
        return device
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} {'thread' if threads == 1 else 'threads'}"
