"""Losses of classification and distillation in Keras, equal to those of `deit.models.losses` (paper, section 4).

The losses compute in float32 for every dtype of logits, and work inside `tf.function` and `jax.jit`. Compiled code
cannot raise an error: there, a class number out of range makes the loss NaN.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from deit.core.config.following_defaults import REDUCTIONS, check_distillation_kind
from deit.core.errors import UserError, WrongTypeError
from deit.core.labels import NO_LABEL, problem_type_of


def classification_loss(
    logits: Any, target: Any, *, label_smoothing: float = 0.0, loss: str = "ce", sample_weight: Any = None
) -> Any:
    """Returns the distance of logits from the true classes; see `deit.models.losses.classification_loss`.

    Args:
        logits: (B, K).
        target: (B,) class numbers, -100 for images without a label; or (B, K) class probabilities.
        label_smoothing: Share of the target mass spread over all K classes.
        loss: "ce" or "bce".
        sample_weight: (B,), see `weighted`.

    Returns:
        A scalar; 0 when no image has a label.

    Raises:
        ValueError: An unknown loss, or label smoothing with "bce".
    """
    logits = ops.cast(logits, "float32")
    target = ops.convert_to_tensor(target)
    if loss == "bce":
        if label_smoothing:
            raise UserError(f'label_smoothing must be 0 with the loss "bce". Received: {label_smoothing}.')
        return _binary_loss(logits, target, sample_weight)
    if loss != "ce":
        raise UserError(f"loss must be 'ce' or 'bce'. Received: {loss!r}.")
    classes = logits.shape[-1]
    log_probabilities = ops.log_softmax(logits, axis=-1)
    if len(target.shape) == 2:
        shares = ops.cast(target, "float32") * (1.0 - label_smoothing) + label_smoothing / classes
        return ops.mean(weighted(-ops.sum(shares * log_probabilities, axis=-1), sample_weight))
    labelled, one_hot = _one_hot(target, classes)
    shares = one_hot * (1.0 - label_smoothing) + label_smoothing / classes
    terms = -ops.sum(shares * log_probabilities, axis=-1)
    return _mean_of_labelled(weighted(terms, sample_weight), labelled)


def weighted(terms: Any, sample_weight: Any) -> Any:
    """Multiplies the losses of images by weights. The mean is then taken over images, as in Keras, not over weights.

    Args:
        terms: (B,).
        sample_weight: (B,) or (B, 1); None leaves the losses unchanged.

    Raises:
        ValueError: The weights have another shape.
    """
    if sample_weight is None:
        return terms
    weights = ops.cast(ops.convert_to_tensor(sample_weight), "float32")
    if len(weights.shape) == 2 and weights.shape[1] == 1:
        weights = weights[:, 0]
    if not _same_shape(tuple(weights.shape), tuple(terms.shape)):
        raise UserError(
            f"sample_weight must have one number for each image, the shape {tuple(terms.shape)}. "
            f"Received: {tuple(weights.shape)}."
        )
    return terms * weights


def _one_hot(target: Any, classes: int) -> tuple[Any, Any]:
    """Returns a mask of labeled images (B,), and one-hot labels (B, K), NaN where out of range."""
    target = ops.cast(target, "int32")
    labelled = target != NO_LABEL
    safe = ops.where(labelled, target, 0)
    in_range = ops.logical_and(safe >= 0, safe < classes)
    one_hot = ops.cast(safe[:, None] == ops.arange(classes, dtype="int32")[None], "float32")
    return labelled, ops.where(in_range[:, None], one_hot, float("nan"))


def _mean_of_labelled(terms: Any, labelled: Any) -> Any:
    return ops.sum(ops.where(labelled, terms, 0.0)) / ops.maximum(ops.sum(ops.cast(labelled, "float32")), 1.0)


def _binary_terms(logits: Any, target: Any) -> Any:
    return ops.maximum(logits, 0.0) - logits * target + ops.log1p(ops.exp(-ops.abs(logits)))


def _binary_loss(logits: Any, target: Any, sample_weight: Any = None) -> Any:
    if len(target.shape) == 2:
        terms = _binary_terms(logits, ops.cast(target > 0, "float32"))
        return ops.mean(weighted(ops.mean(terms, axis=-1), sample_weight))
    labelled, one_hot = _one_hot(target, logits.shape[-1])
    return _mean_of_labelled(weighted(ops.mean(_binary_terms(logits, one_hot), axis=-1), sample_weight), labelled)


def distillation_loss(
    student_logits: Any,
    teacher_logits: Any,
    *,
    kind: str = "hard",
    temperature: float = 1.0,
    reduction: str = "batchmean",
    sample_weight: Any = None,
) -> Any:
    """Returns the distance of the distillation head from the teacher (paper, equations 2 and 3).

    See `deit.models.losses.distillation_loss`, which also says how libraries differ.

    Args:
        student_logits: (B, K), of the distillation head.
        teacher_logits: (B, K); "hard" also accepts the teacher's top classes (B,) as integers.
        kind: "hard" or "soft".
        temperature: T of the soft loss; the hard loss ignores it.
        reduction: "batchmean" or "numel", of the soft loss.
        sample_weight: (B,), see `weighted`.

    Raises:
        ValueError: The kind or reduction is unknown, the numbers of classes or images differ, or the soft loss
            received class numbers.
    """
    check_distillation_kind(kind)
    if reduction not in REDUCTIONS:
        raise UserError(f"reduction must be 'batchmean' or 'numel'. Received: {reduction!r}.")
    student_logits = ops.cast(student_logits, "float32")
    teacher_logits = ops.convert_to_tensor(teacher_logits)
    integers = is_integer(teacher_logits)
    if integers and kind != "hard":
        raise UserError(
            f"A teacher's classes suffice for hard distillation alone. Received: {kind!r}. Pass its logits."
        )
    student_shape, teacher_shape = tuple(student_logits.shape), tuple(teacher_logits.shape)
    if not _same_shape(teacher_shape, student_shape[:1] if integers else student_shape):
        what = "one class of the teacher for each image" if integers else "the same number of classes in both"
        raise UserError(f"There must be {what}. Received: teacher {teacher_shape}, student {student_shape}.")
    if kind == "hard":
        labels = teacher_logits if integers else ops.argmax(teacher_logits, axis=-1)
        if integers:  # every image has a teacher's class: -100 is invalid
            labels = ops.where(labels == NO_LABEL, ops.cast(-1, labels.dtype), labels)
        return classification_loss(student_logits, labels, sample_weight=sample_weight)
    student = ops.log_softmax(student_logits / temperature, axis=-1)
    teacher = ops.log_softmax(ops.cast(teacher_logits, "float32") / temperature, axis=-1)
    terms = ops.sum(ops.exp(teacher) * (teacher - student), axis=-1) * temperature**2  # (B,)
    terms = weighted(terms, sample_weight)
    return ops.mean(terms) if reduction == "batchmean" else ops.mean(terms) / student_logits.shape[-1]


def problem_loss(logits: Any, labels: Any, problem_type: str, sample_weight: Any = None) -> Any:
    """Returns the loss of a classification model by problem type, as in transformers.

    Args:
        logits: (B, K).
        labels: (B,) class numbers (-100: no label), (B, K) zeros and ones, or (B,) or (B, K) numbers to regress.
        problem_type: "regression", "single_label_classification" or "multi_label_classification".
        sample_weight: (B,), see `weighted`.

    Returns:
        A scalar: the mean over the batch; with class numbers, the mean over labeled images.

    Raises:
        ValueError: The shapes disagree, or there is only one class.
        TypeError: Class numbers are not integers.
    """
    logits = ops.cast(logits, "float32")
    labels = ops.convert_to_tensor(labels)
    classes = logits.shape[-1]
    if problem_type == "single_label_classification":
        if classes == 1:
            raise UserError("With one label there is nothing to choose. Set num_labels, or problem_type='regression'.")
        if not is_integer(labels):
            raise WrongTypeError(
                f"labels must be class numbers, integers. Received: {keras.backend.standardize_dtype(labels.dtype)}. "
                "Convert them, or set problem_type in the configuration."
            )
        if len(labels.shape) == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if not _same_shape(tuple(labels.shape), tuple(logits.shape[:1])):
            raise UserError(
                f"labels must have one class number for each image, the shape {tuple(logits.shape[:1])}. "
                f"Received: {tuple(labels.shape)}."
            )
        labelled, one_hot = _one_hot(labels, classes)
        terms = weighted(-ops.sum(one_hot * ops.log_softmax(logits, axis=-1), axis=-1), sample_weight)
        return ops.sum(ops.where(labelled, terms, 0.0)) / ops.sum(ops.cast(labelled, "float32"))
    if problem_type == "regression" and classes == 1 and len(labels.shape) == 1:
        labels = labels[:, None]
    if not _same_shape(tuple(labels.shape), tuple(logits.shape)):  # backends would broadcast them
        raise UserError(
            f"Targets of the problem type {problem_type!r} must have the shape {tuple(logits.shape)}. "
            f"Received: {tuple(labels.shape)}."
        )
    labels = ops.cast(labels, "float32")
    terms = ops.square(logits - labels) if problem_type == "regression" else _binary_terms(logits, labels)
    return ops.mean(weighted(ops.mean(terms, axis=-1), sample_weight))


def infer_problem_type(labels: Any, num_labels: int) -> str:
    """Infers the problem type from labels; see `deit.core.labels.problem_type_of`."""
    return problem_type_of(keras.backend.standardize_dtype(labels.dtype), num_labels)


def is_integer(tensor: Any) -> bool:
    """Whether a tensor holds integers. Booleans do not count."""
    return "int" in keras.backend.standardize_dtype(tensor.dtype)


def _same_shape(left: tuple[int | None, ...], right: tuple[int | None, ...]) -> bool:
    """Whether two shapes are equal; an unknown side (None) equals every number."""
    return len(left) == len(right) and all(a == b or None in (a, b) for a, b in zip(left, right, strict=True))


def masked_pixel_loss(
    pixels: Any, reconstruction: Any, patch_mask: Any, patch_size: tuple[int, int], sample_weight: Any = None
) -> Any:
    """Returns the mean absolute error of the masked pixels (SimMIM). Every image has its own mask.

    Args:
        pixels: (B, C, H, W).
        reconstruction: (B, C, rows x patch height, columns x patch width).
        patch_mask: (B, P), 1 or True for masked patches.
        patch_size: (height, width) of a patch.
        sample_weight: (B,), see `weighted`.

    Returns:
        A scalar; 0 when nothing is masked.
    """
    channels, height, width = reconstruction.shape[1:]
    rows, columns = height // patch_size[0], width // patch_size[1]
    mask = ops.reshape(ops.cast(patch_mask, "float32"), (-1, rows, columns))
    mask = ops.repeat(ops.repeat(mask, patch_size[0], axis=1), patch_size[1], axis=2)[:, None]  # (B, 1, H, W)
    error = ops.abs(ops.cast(pixels[:, :, :height, :width], "float32") - ops.cast(reconstruction, "float32"))
    errors = weighted(ops.sum(error * mask, axis=(1, 2, 3)), sample_weight)
    return ops.sum(errors) / (ops.sum(mask) + 1e-5) / channels
