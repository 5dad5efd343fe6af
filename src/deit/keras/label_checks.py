"""Finds class numbers out of range before `fit` runs its compiled steps, which cannot raise an error."""

from __future__ import annotations

import copy
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from deit.core.errors import UserError
from deit.core.labels import NO_LABEL

_LOGITS = ("logits", "cls_logits", "distillation_logits")
_FOUND = re.compile(r"(labels must be class numbers from 0 to \d+.*?)\. Received:\D*(-?\d+)")


@dataclass(frozen=True)
class ClassRange:
    """The class numbers that a loss accepts.

    Attributes:
        classes: Number of classes K; valid numbers are 0 to K - 1.
        ignored: The number for "no label"; None if there is none.
        whole: Whether class numbers must be integers; if False, floats are class numbers too.
    """

    classes: int
    ignored: int | None = NO_LABEL
    whole: bool = True

    def applies_to(self, kind: str, shape: tuple[int | None, ...]) -> bool:
        """Whether an array of this dtype and shape holds class numbers."""
        numbers = "int" in kind or (not self.whole and "float" in kind)
        return numbers and (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1))

    def check(self, labels: Any) -> None:
        """Checks an array.

        Raises:
            ValueError: A class number is out of range.
        """
        array = _as_array(labels)
        if array is None or not self.applies_to(array.dtype.name, array.shape):
            return
        wrong = array[(array < 0) | (array >= self.classes)]
        wrong = wrong[wrong != self.ignored] if self.ignored is not None else wrong
        if wrong.size:
            raise UserError(f"{self.rule}. Received: {wrong.flat[0]}.")

    @property
    def rule(self) -> str:
        """Describes the valid class numbers."""
        none = "" if self.ignored is None else f" ({self.ignored}: no label)"
        return f"labels must be class numbers from 0 to {self.classes - 1}{none}"


def _as_array(labels: Any) -> np.ndarray | None:
    if labels is None or isinstance(labels, (str, bytes)):
        return None
    try:
        is_tensor = type(labels).__module__.split(".")[0] in ("tensorflow", "torch", "jaxlib", "jax")
        array = np.asarray(ops.convert_to_numpy(labels) if is_tensor else labels)
    except Exception:  # noqa: BLE001 - a symbolic tensor; each backend raises another error
        return None
    return array if array.dtype.kind in "iuf" else None


def class_ranges(num_labels: int, problem_type: str | None, loss: Any) -> dict[str | None, ClassRange]:
    """Returns the valid class numbers of the targets of each output; the key None is for targets without a name.

    Args:
        num_labels: Number of classes; 0 without a classifier.
        problem_type: `config.problem_type`.
        loss: The argument of `compile`; None for the model's own loss.
    """
    if not num_labels:
        return {}
    if loss is None:
        own = problem_type == "single_label_classification" or (problem_type is None and num_labels > 1)
        return {None: ClassRange(num_labels)} if own else {}
    losses = dict(loss) if isinstance(loss, Mapping) else {None: loss}
    ranges: dict[str | None, ClassRange] = {}
    for name, each in losses.items():
        if (name is None or name in _LOGITS) and _is_sparse(each):
            ranges[name] = ClassRange(num_labels, getattr(each, "ignore_class", None), whole=False)
    return ranges


def _is_sparse(loss: Any) -> bool:
    """Whether one of Keras's losses takes class numbers."""
    if isinstance(loss, str):
        return loss in ("sparse_categorical_crossentropy", "SparseCategoricalCrossentropy")
    return isinstance(loss, keras.losses.SparseCategoricalCrossentropy) or (
        loss is keras.losses.sparse_categorical_crossentropy
    )


def check_labels(x: Any, y: Any, ranges: Mapping[str | None, ClassRange]) -> None:
    """Checks the labels of arrays, or of one batch.

    Args:
        x: Inputs; a mapping may hold "labels".
        y: Labels, by names of outputs or not; None where they are in the inputs.
        ranges: See `class_ranges`.

    Raises:
        ValueError: A class number is out of range.
    """
    for labels, allowed in _pairs(x, y, ranges):
        allowed.check(labels)


def _pairs(x: Any, y: Any, ranges: Mapping[str | None, ClassRange]) -> Iterator[tuple[Any, ClassRange]]:
    inside = x.get("labels") if isinstance(x, Mapping) else None
    if inside is not None and None in ranges:
        yield inside, ranges[None]
    if isinstance(y, Mapping):
        for name, labels in y.items():
            if name in ranges or (None in ranges and name in _LOGITS):
                yield labels, ranges.get(name) or ranges[None]
    elif y is not None:
        for allowed in ranges.values():
            yield y, allowed


def checked_data(x: Any, ranges: Mapping[str | None, ClassRange]) -> Any:
    """Returns a data set that checks its batches when they are read; returns other data unchanged.

    Args:
        x: `tf.data.Dataset`, `keras.utils.PyDataset`, a generator, PyTorch's `DataLoader`, or arrays.
        ranges: See `class_ranges`.
    """
    if not ranges:
        return x
    if hasattr(x, "element_spec") and hasattr(x, "map"):
        return x.map(lambda *batch: _checked_in_graph(batch, ranges))
    if isinstance(x, keras.utils.PyDataset):
        return _CheckedDataset(x, ranges)
    if inspect.isgenerator(x):
        return (_checked(batch, ranges) for batch in x)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.utils.data.DataLoader):
        loader = copy.copy(x)
        loader.collate_fn = _CheckedBatches(x.collate_fn, ranges)
        return loader
    return x


def _parts(batch: Any) -> tuple[Any, Any]:
    """Returns inputs and labels of a batch."""
    if isinstance(batch, (tuple, list)):
        return (batch[0] if batch else None), (batch[1] if len(batch) > 1 else None)
    return batch, None


def _checked(batch: Any, ranges: Mapping[str | None, ClassRange]) -> Any:
    check_labels(*_parts(batch), ranges)
    return batch


def _checked_in_graph(batch: tuple[Any, ...], ranges: Mapping[str | None, ClassRange]) -> Any:
    """Adds checks to a batch of `tf.data`, which raise TensorFlow errors; see `plain_errors`."""
    import tensorflow as tf

    checks = []
    for labels, allowed in _pairs(*_parts(batch), ranges):
        if not hasattr(labels, "dtype") or not allowed.applies_to(labels.dtype.name, tuple(labels.shape)):
            continue
        right = (labels >= 0) & (labels < allowed.classes)
        right = right if allowed.ignored is None else right | (labels == allowed.ignored)
        wrong = tf.boolean_mask(labels, ~right)
        checks.append(tf.debugging.Assert(tf.reduce_all(right), [allowed.rule + ". Received:", wrong[:1], "."]))
    with tf.control_dependencies(checks):
        batch = tf.nest.map_structure(tf.identity, batch)
    return batch if len(batch) > 1 else batch[0]


class _CheckedDataset(keras.utils.PyDataset):
    """A `PyDataset` that checks its batches."""

    def __init__(self, inner: keras.utils.PyDataset, ranges: Mapping[str | None, ClassRange]) -> None:
        super().__init__(inner.workers, inner.use_multiprocessing, inner.max_queue_size)
        self.inner, self.ranges = inner, ranges

    @property
    def num_batches(self) -> int | None:
        """Number of batches in an epoch."""
        count: int | None = self.inner.num_batches
        return count

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        return _checked(self.inner[index], self.ranges)

    def on_epoch_begin(self) -> None:
        """Calls the same method of the inner data set."""
        self.inner.on_epoch_begin()

    def on_epoch_end(self) -> None:
        """Calls the same method of the inner data set."""
        self.inner.on_epoch_end()


@dataclass(frozen=True)
class _CheckedBatches:
    """Collates batches of a `DataLoader` and checks them. A class, because worker processes need to pickle it."""

    collate: Callable[[Any], Any]
    ranges: Mapping[str | None, ClassRange]

    def __call__(self, samples: Any) -> Any:
        return _checked(self.collate(samples), self.ranges)


@contextmanager
def plain_errors(model: Any) -> Iterator[None]:
    """Converts the TensorFlow error of a checked `tf.data` into the error for arrays, and restores the weights.

    On JAX, Keras moves the weights out of the model while it trains or scores, and loses them if the first batch fails.

    Args:
        model: The model of `fit` or `evaluate`.

    Raises:
        ValueError: A class number is out of range.
    """
    optimizer = getattr(model, "optimizer", None)
    variables = [*model.variables, *model.metrics_variables, *([] if optimizer is None else optimizer.variables)]
    before = [(v, v._value) for v in variables] if keras.backend.backend() == "jax" else []
    try:
        yield
    except BaseException as error:
        for variable, value in before:
            if variable._value is None:
                variable._value = value
        found = _FOUND.search(str(error)) if type(error).__name__ == "InvalidArgumentError" else None
        if found is None:
            raise
        raise UserError(f"{found[1]}. Received: {found[2]}.") from error
