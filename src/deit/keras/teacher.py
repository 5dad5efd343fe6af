"""A Keras model as teacher: converts the student's pixels to its input format, and its outputs to logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from deit.core.errors import UserError, WrongTypeError
from deit.core.variants import IMAGENET_MEAN, IMAGENET_STD

CHANNELS_FIRST, CHANNELS_LAST = "channels_first", "channels_last"
OUTPUTS = ("logits", "probabilities")
_LEAST = 1e-30  # smaller probabilities are raised to it, so that logarithms are finite

# Modes of `preprocess_input` of keras.applications: (highest value, mean, std, order of the channels).
_MODES: dict[str, tuple[float, tuple[float, ...], tuple[float, ...], str]] = {
    "tf": (1.0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "rgb"),
    "torch": (1.0, IMAGENET_MEAN, IMAGENET_STD, "rgb"),
    "caffe": (255.0, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0), "bgr"),
    "raw": (255.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "rgb"),
}


class KerasTeacher:
    """A fixed Keras model that answers for the student's view of each image. Training never changes it.

    The teacher receives the pixels of the student, flips and mixed images included, resized and normalized for it. The
    resize is bicubic with antialiasing, as in `deit.train.teachers.teacher.Teacher`.

    Args:
        model: Any built Keras model with one output for each class. An output that is a mapping must hold "logits".
        mean: Mean of each channel that the teacher expects, in its units and order; None passes the student's values.
        std: Standard deviation of each channel; required with `mean`.
        max_value: Value of white before the teacher's `mean` is subtracted: 1 or 255.
        channel_order: "rgb" or "bgr".
        image_size: Pixels, one number or (height, width); None takes the model's own, or the student's if the model
            accepts any size.
        data_format: "channels_last" or "channels_first"; None takes the model's own (of this package), else
            "channels_last".
        output: "logits", or "probabilities" for a model that ends in a softmax, as in keras.applications. A model
            that returns the other kind raises an error.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: The model is not built, or an argument has an invalid value.

    Examples:
        >>> model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(10)])
        >>> KerasTeacher(model, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).image_size
        (32, 32)
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        max_value: float = 1.0,
        channel_order: str = "rgb",
        image_size: int | tuple[int, int] | None = None,
        data_format: str | None = None,
        output: str = "logits",
    ) -> None:
        if not isinstance(model, keras.Model):
            raise WrongTypeError(
                f"A teacher must be a keras.Model. Received: {type(model).__name__}. Logits that were computed before "
                "go with the data: fit(x, y, teacher_logits=...)."
            )
        if not model.built:
            raise UserError(f"The teacher {model.name!r} has no weights yet. Call it on a batch, or load weights.")
        if (mean is None) != (std is None) or (mean is not None and (len(mean), len(std or ())) != (3, 3)):
            raise UserError(f"mean and std must both be left out, or have 3 numbers. Received: {mean}, {std}.")
        _require_one_of("output", output, OUTPUTS)
        _require_one_of("channel_order", channel_order, ("rgb", "bgr"))
        _require_one_of("data_format", data_format, (None, CHANNELS_FIRST, CHANNELS_LAST))
        self.model = model
        self.mean, self.std, self.max_value = mean, std, max_value
        self.channel_order = channel_order
        self.data_format = data_format or getattr(model, "data_format", None) or CHANNELS_LAST
        size = _own_size(model, self.data_format) if image_size is None else image_size
        self.image_size: tuple[int, int] | None = (size, size) if isinstance(size, int) else size
        self.output = output

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of `from_config` as JSON values. Keras saves the weights."""
        settings = ("mean", "std", "max_value", "channel_order", "image_size", "data_format", "output")
        values = {name: getattr(self, name) for name in settings}
        values = {name: list(value) if isinstance(value, (list, tuple)) else value for name, value in values.items()}
        return {"model": keras.saving.serialize_keras_object(self.model), **values}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> KerasTeacher:
        """Builds the teacher that `get_config` described."""
        values = dict(config)
        model = keras.saving.deserialize_keras_object(values.pop("model"), custom_objects)
        size = values.pop("image_size")
        return cls(model, image_size=None if size is None else tuple(size), **values)

    @classmethod
    def of_application(cls, model: keras.Model, mode: str, *, output: str = "probabilities") -> KerasTeacher:
        """Creates a teacher from a model of keras.applications.

        Args:
            model: From keras.applications, with its top.
            mode: Preprocessing of its `preprocess_input`: "tf" (to [-1, 1]: MobileNet, MobileNetV2, Inception,
                ResNetV2, Xception, NASNet), "torch" (ImageNet's mean and std: DenseNet), "caffe" (BGR less the mean:
                ResNet50, VGG) or "raw" (0 to 255, the model normalizes: EfficientNet, EfficientNetV2, ConvNeXt,
                MobileNetV3).
            output: "logits" for a model made with `classifier_activation=None`.

        Raises:
            ValueError: The mode is unknown; others as for the class.
        """
        _require_one_of("mode", mode, tuple(_MODES))
        max_value, mean, std, order = _MODES[mode]
        return cls(model, mean=mean, std=std, max_value=max_value, channel_order=order, output=output)

    def __call__(self, pixels: Any, *, mean: Sequence[float], std: Sequence[float], data_format: str) -> Any:
        """Returns the teacher's logits (B, K) as float32, without gradient.

        Args:
            pixels: Pixels of the student, (B, 3, H, W) or (B, H, W, 3).
            mean: Mean of each channel in the student's normalization.
            std: Standard deviation of each channel in the student's normalization.
            data_format: Order of axes of `pixels`.

        Raises:
            TypeError: The model does not return logits.
        """
        answer = self.model(self.view(pixels, mean=mean, std=std, data_format=data_format), training=False)
        if isinstance(answer, Mapping):
            answer = answer.get("logits")
        if answer is None or len(getattr(answer, "shape", ())) != 2:
            raise WrongTypeError(
                f"The teacher must return logits (batch, classes). Received: {getattr(answer, 'shape', answer)}."
            )
        answer = ops.stop_gradient(ops.cast(answer, "float32"))
        return ops.log(ops.maximum(answer, _LEAST)) if self.output == "probabilities" else answer

    def view(self, pixels: Any, *, mean: Sequence[float], std: Sequence[float], data_format: str) -> Any:
        """Converts the student's pixels to the input format of the teacher; arguments as in `__call__`."""
        x = ops.cast(pixels, "float32")
        if data_format == CHANNELS_FIRST:
            x = ops.transpose(x, (0, 2, 3, 1))  # (B, H, W, 3) from here on
        if self.mean is not None:
            x = x * ops.array(std, "float32") + ops.array(mean, "float32")
        size = (int(x.shape[1]), int(x.shape[2]))
        for axis, (old, new) in enumerate(zip(size, self.image_size or size, strict=True)):
            if old != new:  # matrix products give equal results on every backend and compile with XLA
                x = ops.einsum("ah,bhwc->bawc" if axis == 0 else "aw,bhwc->bhac", ops.array(_resize(old, new)), x)
        if self.mean is not None and self.std is not None:
            if self.channel_order == "bgr":
                x = ops.flip(x, axis=-1)
            x = (x * self.max_value - ops.array(self.mean, "float32")) / ops.array(self.std, "float32")
        return ops.transpose(x, (0, 3, 1, 2)) if self.data_format == CHANNELS_FIRST else x

    def check(self, image_size: tuple[int, int], num_classes: int) -> None:
        """Runs the teacher on one gray image, to find mistakes before training.

        Args:
            image_size: (height, width) of the student's pixels.
            num_classes: Number of classes of the student.

        Raises:
            TypeError: The model does not return logits.
            ValueError: The model rejects such images, has another number of classes, or `output` does not match its
                outputs.
        """
        half = (0.5, 0.5, 0.5)
        grey = np.zeros((1, *image_size, 3), np.float32)
        try:
            answer = self(ops.array(grey), mean=half, std=half, data_format=CHANNELS_LAST)
        except ValueError as error:
            first = str(error).strip().splitlines()[0]
            raise UserError(f"The teacher {self.model.name!r} does not accept the student's images: {first}") from error
        if answer.shape[1] != num_classes:
            raise UserError(
                f"Teacher and student must have the same classes. Received: teacher {answer.shape[1]}, student "
                f"{num_classes}."
            )
        values = np.asarray(ops.convert_to_numpy(answer), dtype=np.float64)
        if not np.isfinite(values).all():
            raise UserError(f"The teacher {self.model.name!r} returns NaN or infinity. Its weights may be damaged.")
        raw = np.exp(values) if self.output == "probabilities" else values
        is_distribution = bool(num_classes > 1 and (raw >= 0).all() and abs(raw.sum() - 1) < 0.02)
        if is_distribution != (self.output == "probabilities"):
            gives, other = ("probabilities", "logits") if is_distribution else ("logits", "probabilities")
            raise UserError(
                f"The teacher seems to return {gives}, but its output is set to {other!r}. Pass output={gives!r}."
            )


def _require_one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name} must be one of {', '.join(map(repr, allowed))}. Received: {value!r}.")


def _own_size(model: keras.Model, data_format: str) -> tuple[int, int] | None:
    """Returns the input image size of a model; None if it accepts any size."""
    own: tuple[int, int] | None = getattr(getattr(model, "config", None), "grid_image_size", None)
    if own is not None:
        return own
    shape = getattr(model, "input_shape", None)
    if not (isinstance(shape, tuple) and len(shape) == 4):
        return None
    height, width = shape[1:3] if data_format == CHANNELS_LAST else shape[2:4]
    return None if height is None or width is None else (height, width)


@lru_cache(maxsize=32)
def _resize(old: int, new: int) -> npt.NDArray[np.float32]:
    """Returns the matrix (new, old) of PyTorch's bicubic resize with `antialias=True`."""
    scale = old / new
    stretch = max(scale, 1.0)
    center = (np.arange(new)[:, None] + 0.5) * scale
    first = np.maximum((center - 2 * stretch + 0.5).astype(int), 0)
    last = np.minimum((center + 2 * stretch + 0.5).astype(int), old)
    place = np.arange(old)[None]
    x = np.abs((place - center + 0.5) / stretch)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((x - 5) * x + 8) * x * -0.5 + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0)) * ((place >= first) & (place < last))
    matrix: npt.NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return matrix
