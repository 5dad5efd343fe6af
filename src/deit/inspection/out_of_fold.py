"""Gets class probabilities of images from models that did not learn from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.errors import UserError
from deit.core.images.known_images import INITIAL, LEARNT, TAUGHT, KnownImages
from deit.core.printable import counted
from deit.core.scores.calibration import fit_temperature
from deit.core.scores.metrics import softmax
from deit.core.scores.out_of_fold import OutOfFold
from deit.data.exclusions import names_in
from deit.data.readers.reader import DataPath
from deit.data.sources import Progress, place_of
from deit.evaluate.features import linear_classifier, nearest_neighbours
from deit.inference.answers import Answers
from deit.inference.predictor import Predictor
from deit.inspection.facts import Facts
from deit.inspection.parts import Opened

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]

FOLDS = 10
_SEED = 0
_LEAST = 1e-6  # probability that a class keeps
_CELLS = 4  # of the histograms of gradients: 4 x 4 cells of 8 x 8 pixels
_DIRECTIONS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Probabilities:
    """What was said of some images by models that did not learn from them.

    Attributes:
        numbers: (M,) rows of the facts.
        values: (M, K) probabilities.
        classes: Names of the K classes.
        labels: (M,) the given classes.
        origin: Where they come from, a phrase.
        notes: Sentences about how far they can be trusted.
    """

    numbers: Numbers
    values: Floats
    classes: list[str]
    labels: Numbers
    origin: str
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values: where they come from, of how many images, and how many labels agree."""
        return {"origin": self.origin, "images": len(self.labels), "accuracy": round(self.accuracy, 4)}

    @property
    def accuracy(self) -> float:
        """Share of the images whose likeliest class is the label."""
        return float((self.values.argmax(axis=1) == self.labels).mean()) if len(self.labels) else float("nan")


def labelled_rows(opened: Opened, facts: Facts) -> tuple[Numbers, Numbers]:
    """Returns the rows of readable images with a label, and their classes in `Opened.classes`."""
    classes = {name: number for number, name in enumerate(opened.classes)}
    of_label = np.array([classes.get(name, -1) for name in opened.labels], np.int64)
    labels = of_label[facts.rows["label"]]
    rows = np.flatnonzero(facts.rows["readable"] & (labels >= 0))
    return rows, labels[rows]


# --- predictions of others ----------------------------------------------------------------------------


def read_predictions(path: Path, opened: Opened, facts: Facts, data: DataPath) -> Probabilities:
    """Reads the predictions that `deit train --folds` wrote, see `deit.core.scores.out_of_fold.OutOfFold`.

    An image is known by its content, or where none is recorded by its name.

    Args:
        path: `out_of_fold.npz`, or its folder.
        opened: The data set.
        facts: Of it.
        data: What the data set was opened by.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: Its classes are not those of the data set, or none of its images is there.
        DamagedFileError: It is damaged.
    """
    told = OutOfFold.read(path)
    unknown = sorted(set(told.classes) - set(opened.classes))
    if unknown:
        raise UserError(
            f"{path} has the class {unknown[0]!r}, which the data set has not. Pass predictions of these images."
        )
    rows, labels = labelled_rows(opened, facts)
    answered = np.flatnonzero(np.isfinite(told.probabilities).all(axis=1)).tolist()
    if told.contents is not None:
        known: dict[Any, int] = {told.contents[i].item(): i for i in answered}
        keys: list[Any] = facts.rows["hash"][rows].tolist()
    else:
        known = dict(zip(names_in(data, (str(told.names[i]) for i in answered)), answered, strict=True))
        keys = [_file_of(opened, facts, row) for row in rows.tolist()]
    found = np.array([known.get(key, -1) for key in keys], np.int64)
    kept = found >= 0
    if not kept.any():
        raise UserError(
            f"None of the {len(told.names)} images of {path} is in the data set. Pass the data that deit train was "
            "given."
        )
    values = np.zeros((int(kept.sum()), len(opened.classes)))
    values[:, [opened.classes.index(name) for name in told.classes]] = told.probabilities[found[kept]]
    left = len(rows) - len(values)
    return Probabilities(
        numbers=rows[kept],
        values=values,
        classes=opened.classes,
        labels=labels[kept],
        origin=f"the folds of {path}",
        notes=(f"{path} says nothing of {counted(left, 'image')}.",) if left else (),
    )


def _file_of(opened: Opened, facts: Facts, row: int) -> str:
    return opened.parts[int(facts.rows["part"][row])].files[int(facts.rows["number"][row])]


# --- a model ------------------------------------------------------------------------------------------


def ask_model(
    model: str,
    opened: Opened,
    facts: Facts,
    groups: Numbers,
    *,
    device: str = "auto",
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Probabilities:
    """Gets probabilities with the help of a model.

    Its answers (logits) are taken as features, on which a linear classifier and nearest neighbours are fitted to nine
    tenths of the images and asked about the other tenth. If the model has the classes of the data set, and did not
    learn from these images, its own probabilities count as well: the geometric mean of all.

    Args:
        model: Model directory or name of a classifier.
        opened: The data set.
        facts: Of it.
        groups: (N,) equal numbers for images that are copies; they are never on both sides.
        device: "auto", "cpu", "cuda", ...
        batch_size: Images that go through the model together.
        progress: Called with (images done, images in all).
    """
    predictor = Predictor.open(model, device=device, engine="torch", calibrated=False)
    rows, labels = labelled_rows(opened, facts)
    logits = _logits(predictor, rows, opened, facts, batch_size, progress)
    answered = np.isfinite(logits).all(axis=1)
    rows, labels, logits = rows[answered], labels[answered], logits[answered]
    if not len(rows):
        raise UserError(f"{model} has no answer to any image.")
    parts = [cross_validated(logits, labels, groups[rows], len(opened.classes))]
    names = predictor.engine.contract.label_names
    learnt = _learnt(predictor.engine.contract.known_images, facts.rows["hash"][rows])
    notes: list[str] = []
    if learnt:
        notes.append(
            f"{model} learned from {learnt} of these {len(rows)} images and their labels, so it may repeat wrong ones. "
            "Pass --predictions of deit train --folds instead."
        )
    elif set(opened.classes) <= set(names) and len(set(names)) == len(names):
        own = softmax(logits.astype(np.float64)[:, [names.index(each) for each in opened.classes]])
        parts += [own, own]
    return Probabilities(
        numbers=rows, values=_geometric_mean(parts), classes=opened.classes, labels=labels, origin=f"the model {model}",
        notes=tuple(notes),
    )  # fmt: skip


def _logits(
    predictor: Predictor, rows: Numbers, opened: Opened, facts: Facts, batch_size: int, progress: Progress | None
) -> npt.NDArray[np.float32]:
    """Returns (M, C) logits of images; NaN for one that can no longer be read."""
    places = [(opened.parts[int(row["part"])].source, int(row["number"])) for row in facts.rows[rows]]
    logits = np.full((len(rows), len(predictor.label_names)), np.nan, np.float32)
    done = 0
    told: Answers[int]
    for told in predictor.answers(
        list(range(len(rows))), batch_size, read=lambda i: places[i][0].image(places[i][1]),
        name=lambda i: place_of(*places[i]),
    ):  # fmt: skip
        if told.outputs:
            logits[told.batch.readable] = next(iter(told.outputs.values()))
        done += len(told.batch.items)
        if progress is not None:
            progress(done, len(rows))
    return logits


def _learnt(known: KnownImages | None, hashes: npt.NDArray[np.uint64]) -> int:
    if known is None:
        return 0
    return int(((known.roles_of(hashes) & (LEARNT | INITIAL | TAUGHT)) != 0).sum())


# --- without a model ----------------------------------------------------------------------------------


def ask_thumbnails(opened: Opened, facts: Facts, groups: Numbers) -> Probabilities:
    """Gets probabilities from thumbnails alone: directions of edges, gray values and colors, cross-validated.

    Args:
        opened: The data set.
        facts: Of it.
        groups: See `ask_model`.
    """
    rows, labels = labelled_rows(opened, facts)
    features = np.concatenate([_edges(facts.rows["gray"][rows]), _colors(facts.rows["colors"][rows])], axis=1)
    values = cross_validated(features, labels, groups[rows], len(opened.classes))
    return Probabilities(
        numbers=rows, values=values, classes=opened.classes, labels=labels, origin="thumbnails of the images"
    )


def _edges(gray: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Returns (N, 128 + 64) histograms of the directions of edges in cells, and gray values (Dalal and Triggs 2005)."""
    side = gray.shape[1]
    cell = side // _CELLS
    found = np.zeros((len(gray), _CELLS, _CELLS, _DIRECTIONS), np.float32)
    small = gray.reshape(len(gray), 8, side // 8, 8, side // 8).mean(axis=(2, 4)).astype(np.float32) / 255
    for start in range(0, len(gray), 4096):
        part = gray[start : start + 4096].astype(np.float32)
        down, right = np.gradient(part, axis=(1, 2))
        strength = np.hypot(down, right)
        direction = (np.arctan2(down, right) % np.pi * (_DIRECTIONS / np.pi)).astype(np.int64) % _DIRECTIONS
        for k in range(_DIRECTIONS):
            held = np.where(direction == k, strength, 0).reshape(len(part), _CELLS, cell, _CELLS, cell)
            found[start : start + 4096, :, :, k] = held.sum(axis=(2, 4))
    lengths = np.sqrt((found**2).sum(axis=3, keepdims=True)) + 20
    parts = [(found / lengths).reshape(len(gray), -1), small.reshape(len(gray), -1)]
    edges: npt.NDArray[np.float32] = np.concatenate(parts, axis=1).astype(np.float32)
    return edges


def _colors(colors: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    shares: npt.NDArray[np.float32] = colors.reshape(len(colors), -1).astype(np.float32) / np.float32(255)
    return shares


# --- cross-validation ---------------------------------------------------------------------------------


def cross_validated(features: npt.NDArray[np.float32], labels: Numbers, groups: Numbers, num_classes: int) -> Floats:
    """Returns (N, K) probabilities of each image by classifiers that were fitted to images of other folds.

    A ridge regression and nearest neighbours, each with the temperature that fits its answers best.

    Args:
        features: (N, D).
        labels: (N,) classes.
        groups: (N,) images of one group are in one fold.
        num_classes: K.

    Raises:
        UserError: There are fewer groups than two.
    """
    fold = _folds(labels, groups)
    linear, near = np.zeros((len(labels), num_classes)), np.zeros((len(labels), num_classes))
    for number in np.unique(fold).tolist():
        asked, known = fold == number, fold != number
        if not known.any():
            raise UserError("The labels can be judged only among at least two different images. Add some.")
        linear[asked] = linear_classifier(features[known], labels[known], features[asked], num_classes)
        votes = nearest_neighbours(features[known], labels[known], features[asked], num_classes)
        near[asked] = np.log(votes + 0.02 * votes.sum(axis=1, keepdims=True) / num_classes + 1e-12)
    return _geometric_mean([_calibrated(linear, labels), _calibrated(near, labels)])


def _folds(labels: Numbers, groups: Numbers) -> Numbers:
    """Divides images into folds: each class evenly, each group in one; the same images always the same way."""
    _, first, where = np.unique(groups, return_index=True, return_inverse=True)
    random = np.random.default_rng(_SEED)
    of_group = np.zeros(len(first), np.int64)
    start = 0
    for label in np.unique(labels[first]).tolist():
        members = random.permutation(np.flatnonzero(labels[first] == label))
        of_group[members] = (np.arange(len(members)) + start) % FOLDS
        start += len(members)
    return of_group[where]


def _calibrated(scores: Floats, labels: Numbers) -> Floats:
    return softmax(scores / fit_temperature(scores.astype(np.float32), labels))


def _geometric_mean(parts: Sequence[Floats]) -> Floats:
    logs = sum((np.log(np.maximum(part, _LEAST)) for part in parts), np.zeros_like(parts[0])) / len(parts)
    return softmax(logs)
