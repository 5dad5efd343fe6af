"""Finds the images that a model is calibrated on, and asks it about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deit.core.images.known_images import LEARNT
from deit.core.printable import counted
from deit.core.scores.calibration_file import MOST_CALIBRATION_IMAGES
from deit.core.scores.metrics import Array, Integers, answered_rows
from deit.data.open_data import open_labelled, open_training
from deit.data.sources import Source, Subset, contents_of, place_of
from deit.inference.contract import FEATURES
from deit.inference.predictor import Predictor

OnBatch = Callable[[int, int], None]


def opened_images(data: Any, predictor: Predictor, part: str = "val") -> Source:
    """Returns labeled images, or opens a part of those at a path with the classes of a model."""
    if hasattr(data, "labels"):
        source: Source = data
        return source
    return open_labelled(data, part=part, **_options(predictor))


def _options(predictor: Predictor) -> dict[str, Any]:
    contract = predictor.engine.contract
    options = {"classes": contract.label_names, "problem_type": contract.problem_type}
    return {**options, "value_range": predictor.processor.value_range}


def divided_images(predictor: Predictor, source: Source, notes: list[str]) -> tuple[Source, Source | None]:
    """Returns the images that the model did not learn from, and those that it did."""
    known, contents = predictor.engine.contract.known_images, contents_of(source)
    if known is None or contents is None or not len(known.hashes):
        notes.append(
            "Which images the model learned from is not recorded. The calibration is right only if none of these was "
            "among them."
        )
        return _thinned(source, notes), None
    roles = known.roles_of(contents)
    learnt = np.flatnonzero(roles & LEARNT)
    if not len(learnt):
        return _thinned(source, notes), None
    kept = np.flatnonzero((roles & LEARNT) == 0)
    notes.append(f"Left out, because the model learned from them: {len(learnt)} of {counted(len(roles), 'image')}.")
    return _thinned(Subset(source, kept), notes), Subset(source, learnt)


def _thinned(source: Source, notes: list[str]) -> Source:
    count = len(source.labels)
    if count <= MOST_CALIBRATION_IMAGES:
        return source
    notes.append(f"Of {count} images, {MOST_CALIBRATION_IMAGES} are used, evenly spaced.")
    return Subset(source, np.linspace(0, count - 1, MOST_CALIBRATION_IMAGES).astype(np.int64))


def training_images_of(predictor: Predictor, data: Any, given: Any, part: Source) -> Source | None:
    """Returns the training images that were given, or those of divided data; without those that are held out."""
    if given is not None:
        source = opened_images(given, predictor, part="train")
    elif hasattr(data, "labels") or (found := open_training(data, **_options(predictor))) is None:
        return None
    else:
        source = found
    contents, held_out = contents_of(source), contents_of(part)
    if contents is None or held_out is None:
        return source
    known = predictor.engine.contract.known_images
    is_learnt = ~np.isin(contents, held_out)
    if known is not None and len(known.hashes):
        is_learnt = (known.roles_of(contents) & LEARNT) != 0
    return Subset(source, np.flatnonzero(is_learnt)) if is_learnt.any() else None


@dataclass(kw_only=True, eq=False)
class Answered:
    """The answers to the images that have one.

    Attributes:
        indices: (n,) numbers of the images.
        logits: Head -> (n, K).
        features: (n, D), what the class head was given; None where that is unknown.
        unreadable: Why images could not be read.
        unanswered: Images whose answer is NaN or infinite.
    """

    indices: Integers
    logits: dict[str, Array]
    features: Array | None
    unreadable: list[str] = field(default_factory=list)
    unanswered: int = 0

    @property
    def count(self) -> int:
        """Images with an answer."""
        return len(self.indices)

    def notes(self) -> list[str]:
        """Returns sentences about the images without an answer."""
        notes = []
        if self.unreadable:
            notes.append(f"Left out, unreadable: {counted(len(self.unreadable), 'image')}; first: {self.unreadable[0]}")
        if self.unanswered:
            notes.append(f"Left out, as the answer is NaN or infinite: {counted(self.unanswered, 'image')}.")
        return notes


def answers_to(predictor: Predictor, source: Source, batch_size: int, on_batch: OnBatch | None) -> Answered:
    """Asks a model about all images of a source, for the logits of every head and for features."""
    total = -(-len(source.labels) // batch_size)
    indices: list[int] = []
    unreadable: list[str] = []
    parts: dict[str, list[Array]] = {}
    batches = predictor.answers(
        range(len(source.labels)),
        batch_size,
        read=source.image,
        name=lambda number: place_of(source, number),
        with_features=True,
    )
    for done, told in enumerate(batches, start=1):
        indices += told.batch.readable
        unreadable += [error for error in told.batch.errors if error]
        for name, values in told.outputs.items():
            parts.setdefault(name, []).append(values)
        if on_batch is not None:
            on_batch(done, total)
    outputs = {name: np.concatenate(values) for name, values in parts.items()}
    features = outputs.pop(FEATURES, None)
    answered = np.ones(len(indices), bool)
    for logits in outputs.values():
        answered &= answered_rows(logits, predictor.problem_type)
    return Answered(
        indices=np.array(indices, np.int64)[answered],
        logits={name: logits[answered] for name, logits in outputs.items()},
        features=None if features is None else features[answered],
        unreadable=unreadable,
        unanswered=int((~answered).sum()),
    )
