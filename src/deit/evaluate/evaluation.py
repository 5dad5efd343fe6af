"""Evaluates a model on labeled images: accuracy of every head and class, calibration and speed."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.errors import UserError
from deit.core.labels import numbers_by_name, repeated_names
from deit.core.printable import some_of
from deit.core.scores import metrics
from deit.core.scores.calibration import (
    confidences,
    expected_calibration_error,
    fit_temperature,
    mean_cross_entropy,
    reliability,
)
from deit.core.scores.metrics import SINGLE_LABEL, Array, Integers
from deit.data.sources import Source, Subset, place_of
from deit.evaluate.recorded_scores import overlap_of
from deit.evaluate.results import Evaluation, HeadResult, Temperature, Throughput
from deit.evaluate.selective import Trust, measure_trust
from deit.inference.contract import Contract
from deit.inference.predictor import Predictor
from deit.runtime.devices import gpu_name
from deit.runtime.processes import Processes

# Logits of the answer that are kept, in bytes: all 50,000 x 1,000 of ImageNet's validation images need a fifth of it.
_KEPT_BYTES = 1 << 30

OnBatch = Callable[[int, int], None]


def teacher_columns(teacher: Predictor, classes: list[str]) -> Integers:
    """Returns the columns of a teacher's logits that stand for these classes.

    Raises:
        UserError: It lacks a class, or does not choose one class for each image.
    """
    if teacher.problem_type != SINGLE_LABEL:
        raise UserError(f"The teacher must choose one class. Received: a model for {teacher.problem_type}.")
    names = teacher.engine.contract.label_names
    if names == classes:  # repeated names then do not matter
        return np.arange(len(classes))
    known, repeated = numbers_by_name(names), repeated_names(classes)
    missing = [name for name in classes if name not in known or name in repeated]
    if missing:
        several = set(missing) & {*repeated, *repeated_names(names)}
        why = " Several classes have one name, and the lists are not the same." if several else ""
        raise UserError(
            f"The teacher lacks {len(missing)} of the model's {len(classes)} classes: {some_of(missing)}. "
            f"It knows: {some_of(names)}.{why}"
        )
    return np.array([known[name] for name in classes], np.int64)


def evaluate_model(
    predictor: Predictor,
    source: Source,
    *,
    batch_size: int = 64,
    head: str = "",
    teacher: Predictor | None = None,
    processes: Processes | None = None,
    on_batch: OnBatch | None = None,
) -> Evaluation | None:
    """Evaluates a model on labeled images, on one process or on several that share them.

    An image that can no longer be read is left out of all results and listed in `left_out`.

    Args:
        predictor: The model; its `problem_type` decides what the labels must be.
        source: Labeled images, with the classes of the model in its order.
        batch_size: Images that go through the model together, in each process.
        head: Head to report in detail; the answer of the model when empty.
        teacher: Model to compare the answers with, through its own preprocessing.
        processes: Those that share the images; this one alone when None.
        on_batch: Called with (batches done, batches of this process in all), the teacher's counted as well.

    Returns:
        The result; None in every process but the first.

    Raises:
        UserError: Classes, labels or problem type do not suit the model, the teacher lacks a class, the head is
            unknown, or there are no images.
    """
    processes = processes or Processes()
    left_out: dict[int, str] = {}
    while True:
        numbers = np.array([i for i in range(len(source.labels)) if i not in left_out], np.int64)
        part = Subset(source, numbers) if left_out else source
        try:
            result = _evaluate(predictor, part, batch_size, head, teacher, processes, on_batch)
        except _UnreadableImagesError as found:  # rare, as they were checked: evaluates the others once more
            left_out |= {int(numbers[i]): reason for i, reason in found.reasons.items()}
            continue
        return None if result is None else replace(result, left_out=dict(sorted(left_out.items())))


class _UnreadableImagesError(Exception):
    def __init__(self, reasons: dict[int, str]) -> None:
        super().__init__(f"{len(reasons)} images cannot be read.")
        self.reasons = reasons


def _evaluate(
    predictor: Predictor,
    source: Source,
    batch_size: int,
    head: str,
    teacher: Predictor | None,
    processes: Processes,
    on_batch: OnBatch | None,
) -> Evaluation | None:
    contract = predictor.engine.contract
    columns = _check(predictor, source, head, teacher)
    every = max(-(-len(source.labels) * len(contract.label_names) * 4 // _KEPT_BYTES), 1)
    steps = _Steps(on_batch, passes=1 if teacher is None else 2)
    student = _Pass(predictor, source, head=head, keep_every=every)
    scores = student.run(batch_size, processes, steps)
    seen = processes.gathered(student.seen)
    opinion = None
    if teacher is not None:
        teaching = _Pass(teacher, source, columns=columns)
        taught = teaching.run(batch_size, processes, steps)
        answers = processes.gathered(teaching.seen)
        opinion = None if answers is None else next(iter(_head_results(taught, answers, source.labels).values()))
    if seen is None:
        return None
    heads = _head_results(scores, seen, source.labels)
    kept, logits = _kept(seen)
    single = contract.problem_type == SINGLE_LABEL
    return Evaluation(
        problem_type=contract.problem_type,
        classes=predictor.label_names,
        labels=source.labels,
        head=head or next(iter(heads)),
        heads=heads,
        teacher=opinion,
        temperature=_temperature(logits, source.labels[kept]) if single else None,
        throughput=_throughput(seen, batch_size, predictor.engine.device),
        kept=kept,
        logits=logits,
        trust=_trust(predictor, head or next(iter(heads)), logits, source.labels[kept]),
        overlap=overlap_of(contract.known_images, source),
        teacher_overlap=None if teacher is None else overlap_of(teacher.engine.contract.known_images, source),
    )


def check_images(contract: Contract, source: Source) -> None:
    """Refuses images that do not suit a model.

    Raises:
        UserError: Classes, labels or problem type are others, or there are no images.
    """
    kind = getattr(source, "problem_type", SINGLE_LABEL)
    if kind != contract.problem_type:
        raise UserError(f"The model is for {contract.problem_type}. Received: labels for {kind}.")
    if not len(source.labels):
        raise UserError("There are no images to evaluate the model on.")
    if kind != metrics.REGRESSION and list(source.classes) != list(contract.label_names):
        raise UserError(
            f"The images must have the model's classes, in its order: {some_of(contract.label_names)}. "
            f"Received: {some_of(source.classes)}."
        )
    labels, count = source.labels, len(contract.label_names)
    if kind == SINGLE_LABEL and not 0 <= int(labels.min()) <= int(labels.max()) < count:
        raise UserError(f"Labels must lie in [0, {count}). Received: {int(labels.min())} to {int(labels.max())}.")


def _check(predictor: Predictor, source: Source, head: str, teacher: Predictor | None) -> Integers | None:
    """Refuses images, a head or a teacher that do not suit the model; returns the columns of the teacher."""
    contract = predictor.engine.contract
    check_images(contract, source)
    kind = contract.problem_type
    if head and head not in contract.head_names:
        raise UserError(f"The model has no head {head!r}. Known: {', '.join(contract.head_names)}.")
    if teacher is None:
        return None
    if kind != SINGLE_LABEL:
        raise UserError(f"Agreement with a teacher needs one class for each image. Received: a model for {kind}.")
    return teacher_columns(teacher, contract.label_names)


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


@dataclass(kw_only=True, eq=False)
class _Seen:
    """The answers to the images of one process."""

    indices: list[Integers] = field(default_factory=list)
    picks: dict[str, list[npt.NDArray[np.int32]]] = field(default_factory=dict)
    sure: dict[str, list[Array]] = field(default_factory=dict)
    kept: list[Integers] = field(default_factory=list)
    logits: list[Array] = field(default_factory=list)
    # Seconds of each batch: in the model alone, and with reading and preprocessing.
    model_seconds: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class _Pass:
    """Takes one model once over the images of this process.

    Args:
        predictor: The model.
        source: All images.
        columns: Of a teacher: the columns of its answer that stand for the classes of the model. Its other heads are
            left out.
        head: Head whose logits are kept; the answer when empty.
        keep_every: Keeps the logits of the images whose numbers it divides; 0 keeps none.
    """

    def __init__(
        self,
        predictor: Predictor,
        source: Source,
        *,
        columns: Integers | None = None,
        head: str = "",
        keep_every: int = 0,
    ) -> None:
        self._predictor = predictor
        self._source = source
        self._columns = columns
        self._head = head
        self._keep_every = keep_every
        self.seen = _Seen()

    def run(self, batch_size: int, processes: Processes, steps: _Steps) -> dict[str, Any]:
        """Returns the scores of every head; each process has the scores of all images."""
        numbers = range(processes.rank, len(self._source.labels), processes.world_size)
        left_out: dict[int, str] = {}

        def answered() -> Iterator[tuple[Any, npt.NDArray[Any]]]:
            started = time.perf_counter()
            batches = self._predictor.answers(
                numbers,
                batch_size,
                read=self._source.image,
                name=lambda number: place_of(self._source, number),
                # On a CPU the threads would take time from the model, which is measured.
                ahead=self._predictor.engine.device != "cpu",
            )
            for told in batches:
                left_out.update((i, e) for i, e in zip(told.batch.items, told.batch.errors, strict=True) if e)
                indices = np.array(told.batch.readable, np.int64)
                if len(indices):
                    heads = self._heads(told.outputs)
                    self._remember(heads, indices)
                    yield heads, self._source.labels[indices]
                    now = time.perf_counter()
                    self.seen.model_seconds.append(told.seconds)
                    self.seen.seconds.append(now - started)
                    started = now
                steps.one_more(-(-len(numbers) // batch_size))

        kind, scores = self._predictor.problem_type, {}
        try:
            scores = metrics.evaluate(dict, answered(), problem_type=kind, combine=processes.sum)
        except UserError:
            if not left_out:  # else there may be no image left to count
                raise
        marks = np.zeros(len(self._source.labels))
        marks[list(left_out)] = 1
        unreadable = np.flatnonzero(processes.sum(marks)).tolist()
        if unreadable:
            elsewhere = "Another process could not read it."
            raise _UnreadableImagesError({i: left_out.get(i, elsewhere) for i in unreadable})
        return scores

    def _heads(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        if self._columns is None:
            return dict(outputs)
        name, logits = next(iter(outputs.items()))
        return {name: logits[:, self._columns]}

    def _remember(self, heads: dict[str, Array], indices: Integers) -> None:
        self.seen.indices.append(indices)
        if self._predictor.problem_type == SINGLE_LABEL:
            for name, logits in heads.items():
                answered = metrics.has_answer(logits)
                picks = np.where(answered, logits.argmax(axis=1), -1).astype(np.int32)
                sure = np.full(len(logits), np.nan, np.float32)
                sure[answered] = confidences(logits[answered])
                self.seen.picks.setdefault(name, []).append(picks)
                self.seen.sure.setdefault(name, []).append(sure)
        if self._keep_every:
            mine = indices % self._keep_every == 0
            self.seen.kept.append(indices[mine])
            self.seen.logits.append(heads[self._head or next(iter(heads))][mine])


def _head_results(scores: dict[str, Any], seen: list[_Seen], labels: npt.NDArray[Any]) -> dict[str, HeadResult]:
    """Returns the results of every head from the answers of all processes, in the order of the images."""
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


def _trust(predictor: Predictor, head: str, logits: Array, labels: npt.NDArray[Any]) -> Trust | None:
    answered = metrics.has_answer(logits)
    return measure_trust(logits[answered], labels[answered], predictor.problem_type, head, predictor.calibration)


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

    if torch.device(device).type != "cpu":
        return gpu_name(torch.device(device)) or device
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} {'thread' if threads == 1 else 'threads'}"
