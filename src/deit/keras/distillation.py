"""Distillation with Keras: `compile` and `fit` train a student with two heads on labels and a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from deit.core.config.following_defaults import REDUCTIONS, check_distillation_kind, following
from deit.core.errors import UserError, WrongTypeError
from deit.core.labels import NO_LABEL
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.keras.deit import TFDeiTForImageClassificationWithTeacher
from deit.keras.label_checks import ClassRange, check_labels, checked_data, plain_errors
from deit.keras.losses import classification_loss, distillation_loss, is_integer
from deit.keras.optimizers import leave_undecayed, undecayed
from deit.keras.teacher import KerasTeacher

# Arguments of `compile` that the distillation sets itself.
_OWN = ("loss", "loss_weights", "metrics", "weighted_metrics")
_HEADS = {"top1": "logits", "class_top1": "cls_logits", "distillation_top1": "distillation_logits"}


@keras.saving.register_keras_serializable(package="deit")
class KerasDistillation(keras.Model):
    """Trains a student with two heads: the class head on labels, the distillation head on a teacher (paper, section 4).

    The loss is (1 - w) x cross-entropy(class head, labels) + w x distillation(distillation head, teacher), as in
    `deit.DistillationTask`. Use it like any Keras model: `compile(optimizer)` without a loss, then `fit`, `evaluate`,
    `predict`. Evaluation does not smooth labels.

    Data is NumPy arrays, a `tf.data.Dataset`, a `keras.utils.PyDataset` or a generator of `(pixels, labels)`, or of
    `(pixels, labels, teacher_logits)` with precomputed logits of the teacher. Labels are (B,) class numbers,
    -100 for images without one, or (B, K) probabilities. Reports `loss`, its two parts, and the top-1 accuracy in
    percent of both heads together (`top1`) and of each.

    Training never changes the teacher: weights, batch norm and `trainable` flags stay. The result is the student:
    `distillation.student.save_pretrained(folder)`. `.keras` files (`save`, `ModelCheckpoint`), pickles and copies hold
    student, teacher, optimizer and settings.

    Args:
        student: The model to train; at inference its two heads are averaged.
        teacher: A `KerasTeacher`, which converts the student's pixels for the teacher; a Keras model that takes them
            unchanged (resized to its own size, if any); or None if the data holds its logits.
        kind: "hard" (the teacher's top class; the paper's choice) or "soft" (its distribution).
        temperature: Temperature of soft distillation. None takes the paper's 3.
        weight: Share w of the distillation loss. None takes the paper's: 0.5 for hard, 0.1 for soft.
        reduction: "batchmean", or "numel" as in the paper's code; see `deit.models.losses.distillation_loss`.
        label_smoothing: Smoothing of the class head's labels; 0.1 in the paper. Probabilities are not smoothed.
        processor: Preprocessing of the student. A teacher with `mean` and `std` needs it, to undo the normalization.
        name: Name of the Keras model.

    Raises:
        TypeError: The student has one head, or the teacher is not a Keras model.
        ValueError: The teacher has another number of classes, is not built or returns another kind of output than
            stated, or an argument is out of range.

    Examples:
        >>> config = DeiTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32)
        >>> config.num_labels = 10
        >>> task = KerasDistillation(TFDeiTForImageClassificationWithTeacher(config), kind="soft", temperature=3.0)
        >>> task.compile("adamw")
        >>> pixels, labels = np.zeros((8, 3, 32, 32), "float32"), np.arange(8)
        >>> history = task.fit(pixels, labels, teacher_logits=np.zeros((8, 10), "float32"), verbose=0)
    """

    def __init__(
        self,
        student: TFDeiTForImageClassificationWithTeacher,
        teacher: KerasTeacher | keras.Model | None = None,
        *,
        kind: str = "hard",
        temperature: float | None = None,
        weight: float | None = None,
        reduction: str = "batchmean",
        label_smoothing: float = 0.1,
        processor: DeiTImageProcessor | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name, autocast=False)
        _check_student(student)
        temperature = following("distillation.temperature", temperature, kind)
        weight = following("distillation.weight", weight, kind)
        _check_numbers(kind, temperature, weight, reduction, label_smoothing)
        self.student = student
        self.kind, self.temperature, self.weight = kind, temperature, weight
        self.reduction, self.label_smoothing = reduction, label_smoothing
        self.num_classes: int = student.config.num_labels
        teacher = KerasTeacher(teacher) if teacher is not None and not _is_teacher(teacher) else teacher
        self._part_metrics = [keras.metrics.Mean(name=name) for name in ("class_loss", "distillation_loss", *_HEADS)]
        self._take_teacher(teacher, *_statistics(teacher, processor))
        if self.teacher is not None:
            self.teacher.check(student.config.grid_image_size, self.num_classes)
        self.built = True

    def _take_teacher(self, teacher: KerasTeacher | None, mean: Sequence[float], std: Sequence[float]) -> None:
        self.teacher, self._mean, self._std = teacher, tuple(mean), tuple(std)
        if teacher is not None:
            self._teacher_model = teacher.model  # tracked by Keras, which passes its weights as arguments on JAX

    def build(self, input_shape: Any = None) -> None:
        """Does nothing: student and teacher are already built."""
        self.built = True

    def network_parts(self) -> dict[str, Any]:
        """Returns the student by its name in files."""
        return {"student": self.student}

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of `from_config`. Keras saves the weights."""
        settings = ("kind", "temperature", "weight", "reduction", "label_smoothing", "name")
        return {
            "student": keras.saving.serialize_keras_object(self.student),
            "teacher": None if self.teacher is None else self.teacher.get_config(),
            "mean": list(self._mean),
            "std": list(self._std),
            **{name: getattr(self, name) for name in settings},
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Builds the distillation that `get_config` described."""
        values = dict(config)
        student = keras.saving.deserialize_keras_object(values.pop("student"), custom_objects)
        teacher, mean, std = (values.pop(name) for name in ("teacher", "mean", "std"))
        task = cls(student, **values)
        if teacher is not None:  # without `check`: Keras loads its weights later
            task._take_teacher(KerasTeacher.from_config(teacher, custom_objects), mean, std)
        return task

    def get_compile_config(self) -> dict[str, Any]:
        """Returns the arguments of `compile`, and the tensors that the optimizer does not decay."""
        config = super().get_compile_config()
        return {**config, "undecayed": undecayed(self)} if config else config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as `get_compile_config` described."""
        values = dict(config)
        plain = values.pop("undecayed", [])
        values = keras.saving.deserialize_keras_object(values)
        self.compile(**{name: value for name, value in values.items() if name not in _OWN})
        leave_undecayed(self, plain)
        self.optimizer.build(self.trainable_variables)

    # --- trained variables: only the student's, for all flags of the teacher -----------------------------

    @property
    def trainable_variables(self) -> list[Any]:
        """Those of the student."""
        return list(self.student.trainable_variables)

    @property
    def trainable_weights(self) -> list[Any]:
        """Those of the student."""
        return list(self.student.trainable_weights)

    @property
    def non_trainable_variables(self) -> list[Any]:
        """All others, including the teacher's."""
        trained = {id(v) for v in self.trainable_variables}
        return [v for v in self.variables if id(v) not in trained]

    @property
    def non_trainable_weights(self) -> list[Any]:
        """All others, including the teacher's."""
        trained = {id(v) for v in self.trainable_weights}
        return [v for v in self.weights if id(v) not in trained]

    # --- one batch -------------------------------------------------------------------------------------

    def call(self, pixel_values: Any, training: bool = False) -> dict[str, Any]:
        """Returns the student's "logits", "cls_logits" and "distillation_logits", each (B, K).

        Args:
            pixel_values: (B, 3, H, W), or as the student's `data_format` says.
            training: Whether dropout and drop path are active.
        """
        output = self.student(pixel_values, training=training)
        return {name: output[name] for name in _HEADS.values()}

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Returns the loss of a batch.

        Args:
            x: Pixels.
            y: Labels.
            y_pred: Result of `call`.
            sample_weight: The third part of the data: the teacher's logits (B, K).
            training: False compares the distillation head with the labels if there are no teacher and no logits.

        Raises:
            TypeError: Labels are neither class numbers nor probabilities.
            ValueError: Shapes differ, or there are no logits of the teacher, or logits and a teacher.
        """
        y = self._checked_labels(y)
        answers = self._answers(x, sample_weight, training)
        smoothing = self.label_smoothing if len(y.shape) == 1 and training else 0.0
        class_loss = classification_loss(y_pred["cls_logits"], y, label_smoothing=smoothing)
        if answers is None:
            teacher_loss = classification_loss(y_pred["distillation_logits"], y)
        else:
            teacher_loss = distillation_loss(
                y_pred["distillation_logits"],
                answers,
                kind=self.kind,
                temperature=self.temperature,
                reduction=self.reduction,
            )
        count = ops.shape(y_pred["logits"])[0]
        for metric, value in zip(self._part_metrics, (class_loss, teacher_loss), strict=False):
            metric.update_state(ops.stop_gradient(value), sample_weight=ops.cast(count, "float32"))
        loss = (1 - self.weight) * class_loss + self.weight * teacher_loss
        return loss + ops.sum(ops.stack([ops.sum(v) for v in self.losses])) if self.losses else loss

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """Returns the metrics up to and including this batch; arguments as in `compute_loss`."""
        y = self._checked_labels(y)
        classes = ops.argmax(y, axis=-1) if len(y.shape) == 2 else y
        classes = ops.cast(classes, "int32")
        labelled = ops.cast(classes != NO_LABEL, "float32")
        for metric, name in zip(self._part_metrics[2:], _HEADS.values(), strict=True):
            right = ops.cast(ops.argmax(y_pred[name], axis=-1), "int32") == classes
            metric.update_state(100.0 * ops.cast(right, "float32"), sample_weight=labelled)
        metrics: dict[str, Any] = self.get_metrics_result()
        return metrics

    def _answers(self, pixels: Any, given: Any, training: bool) -> Any:
        if self.teacher is None:
            if given is None and training:
                raise UserError(
                    "Distillation needs a teacher, or its logits with the data: fit(x, y, teacher_logits=...) or a "
                    "data set of (x, y, teacher_logits)."
                )
            if given is not None:
                self._check_answers(given)
                given = ops.cast(given, "float32")
            return given
        if given is not None:
            raise UserError(
                "Both a teacher and a third part of the data came. Leave one of them out; weights of samples are not "
                "supported."
            )
        data_format = self.student.data_format
        return self.teacher(pixels, mean=self._mean, std=self._std, data_format=data_format)

    # --- checks, by shape and dtype, for arrays, specs and tensors -----------------------------------------

    def _checked_labels(self, labels: Any) -> Any:
        """Returns labels as (B,) or (B, K)."""
        if labels is None:
            raise UserError("Labels are missing. For images without labels pass labels of -100.")
        if isinstance(labels, (Mapping, list, tuple)):
            raise WrongTypeError(f"labels must be one array. Received: {type(labels).__name__}.")
        shape, kind = tuple(labels.shape), keras.backend.standardize_dtype(labels.dtype)
        if is_integer(labels) and len(shape) == 2 and shape[1] == 1:
            return labels[:, 0]
        if is_integer(labels) and len(shape) != 1:
            raise UserError(f"Class numbers must have the shape (batch,). Received: {shape}.")
        if not is_integer(labels) and ("float" not in kind or shape[1:] != (self.num_classes,)):
            raise WrongTypeError(
                f"labels must be integers (batch,), or probabilities (batch, {self.num_classes}). "
                f"Received: {kind} {shape}."
            )
        return labels

    def _check_answers(self, answers: Any) -> None:
        shape, kind = tuple(answers.shape), keras.backend.standardize_dtype(answers.dtype)
        if "float" not in kind:
            raise WrongTypeError(f"teacher_logits must be floats. Received: {kind}.")
        if shape[1:] != (self.num_classes,):
            raise UserError(
                f"Teacher and student must have the same classes: teacher_logits (batch, {self.num_classes}). "
                f"Received: {shape}."
            )
        if isinstance(answers, np.ndarray) and not np.isfinite(answers).all():
            raise UserError("teacher_logits hold NaN or infinity. Leave such images out, or ask another teacher.")

    def _check_data(self, x: Any, y: Any, answers: Any, *, training: bool) -> None:
        """Checks the data before training, for errors without a traceback of Keras."""
        if y is None:
            x, y, answers = _parts_of_data_set(x)
            if y is None:
                return  # a generator: `checked_data` checks each batch
        self._checked_labels(y)
        if answers is not None:
            self._check_answers(answers)
        if (answers is not None) == (self.teacher is not None) and (training or answers is not None):
            self._answers(None, answers, training)  # raises
        check_labels(None, y, self._class_ranges())

    def _class_ranges(self) -> dict[str | None, ClassRange]:
        return {None: ClassRange(self.num_classes)}

    # --- compile, fit, evaluate ------------------------------------------------------------------------

    def compile(self, optimizer: Any = "adamw", **options: Any) -> None:
        """Prepares training; `options` are those of `keras.Model.compile`, without losses and metrics.

        Args:
            optimizer: Such as `keras_adamw(distillation, WarmupCosine(...))`.
            **options: `jit_compile`, `run_eagerly`, `steps_per_execution`, `auto_scale_loss`.

        Raises:
            TypeError: A loss or metric was passed. The distillation has its own.
        """
        own = sorted(set(options) & set(_OWN))
        if own:
            raise WrongTypeError(
                f"{type(self).__name__} brings its own losses and metrics. Leave out {', '.join(own)}."
            )
        super().compile(optimizer=optimizer, **options)

    def fit(self, x: Any = None, y: Any = None, *, teacher_logits: Any = None, **options: Any) -> Any:
        """Trains the student; `options` are those of `keras.Model.fit`.

        Args:
            x: Pixels, or a data set; see the class.
            y: Labels, if `x` is an array.
            teacher_logits: (B, K), if `x` is an array and there is no teacher.
            **options: `epochs`, `batch_size`, `validation_data`, `callbacks`, ...

        Returns:
            Keras's history.

        Raises:
            TypeError: Labels or logits have the wrong dtype, or weights of samples or classes were passed.
            ValueError: A shape or class number is invalid.
        """
        _refuse_weights(options)
        self._check_data(x, y, teacher_logits, training=True)
        validation = options.get("validation_data")
        if validation is not None and not isinstance(validation, (tuple, list)):
            options["validation_data"] = checked_data(validation, self._class_ranges())
        elif validation is not None and len(validation) > 1:
            check_labels(None, validation[1], self._class_ranges())
        x = checked_data(x, self._class_ranges()) if y is None else x
        with plain_errors(self):
            return super().fit(x=x, y=y, sample_weight=teacher_logits, **options)

    def evaluate(self, x: Any = None, y: Any = None, *, teacher_logits: Any = None, **options: Any) -> Any:
        """Scores the student; arguments and errors as in `fit`, result as in `keras.Model.evaluate`.

        Without a teacher and its logits, compares the distillation head with the labels.
        """
        if "sample_weight" in options:  # Keras passes the third part of validation_data this way
            teacher_logits = options.pop("sample_weight")
        self._check_data(x, y, teacher_logits, training=False)
        x = checked_data(x, self._class_ranges()) if y is None else x
        with plain_errors(self):
            return super().evaluate(x=x, y=y, sample_weight=teacher_logits, **options)


def _is_teacher(teacher: Any) -> bool:
    return isinstance(teacher, KerasTeacher)


def _check_student(student: Any) -> None:
    if not isinstance(student, TFDeiTForImageClassificationWithTeacher):
        raise WrongTypeError(
            f"Distillation needs a student with a distillation head. Received: {type(student).__name__}. Take "
            "TFDeiTForImageClassificationWithTeacher."
        )
    if student.config.num_labels < 2:
        raise UserError(f"The student needs at least two classes. Received: {student.config.num_labels}.")


def _check_numbers(kind: str, temperature: float, weight: float, reduction: str, label_smoothing: float) -> None:
    check_distillation_kind(kind)
    if reduction not in REDUCTIONS:
        raise UserError(f"reduction must be 'batchmean' or 'numel'. Received: {reduction!r}.")
    if not temperature > 0:
        raise UserError(f"temperature must be positive. Received: {temperature}.")
    if not 0 <= weight <= 1:
        raise UserError(f"weight must lie in [0, 1]. Received: {weight}.")
    if not 0 <= label_smoothing < 1:
        raise UserError(f"label_smoothing must lie in [0, 1). Received: {label_smoothing}.")


def _statistics(teacher: Any, processor: DeiTImageProcessor | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of the student's normalization."""
    if processor is not None:
        return processor.channel_mean, processor.channel_std
    if teacher is not None and teacher.mean is not None:
        raise UserError(
            "A teacher with mean and std needs the student's, to undo them. Pass processor=, the preprocessing of the "
            "student."
        )
    return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def _parts_of_data_set(data: Any) -> tuple[Any, Any, Any]:
    """Returns the parts of a data set: specs of a tf.data.Dataset, the first batch of a PyDataset; else Nones."""
    if hasattr(data, "element_spec"):
        parts = data.element_spec
    elif isinstance(data, keras.utils.PyDataset):
        parts = data[0]
    else:
        return None, None, None
    parts = tuple(parts) if isinstance(parts, (tuple, list)) else (parts,)
    if len(parts) not in (2, 3):
        raise UserError(f"A data set must give (x, y) or (x, y, teacher_logits). Received: {len(parts)} parts.")
    x, y, *rest = parts
    if y is not None and getattr(y, "shape", None) is not None and getattr(y.shape, "rank", 0) is None:
        return None, None, None  # of unknown shape
    return x, y, rest[0] if rest else None


def _refuse_weights(options: Mapping[str, Any]) -> None:
    for name in ("sample_weight", "class_weight"):
        if options.get(name) is not None:
            raise WrongTypeError(f"{name} is not supported in distillation. Leave it out.")
