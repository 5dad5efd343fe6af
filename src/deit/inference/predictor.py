"""Image in, named predictions out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from deit.core.errors import UserError
from deit.core.images.image_inputs import is_one_image, items_of, name_of
from deit.core.labels import distinct_names
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.core.scores.metrics import has_answer, softmax
from deit.inference.reading import read_pixels
from deit.inference.runners import Array, open_model

_NO_NUMBER = "the model answers with NaN or infinity. Its weights may be damaged."


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One class and how probable the model finds it.

    Attributes:
        label: Class name.
        score: Between 0 and 1.
    """

    label: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Classified:
    """What came of one image.

    Attributes:
        name: Its path, "standard input" for bytes, or "an image".
        predictions: The most probable classes, first the best; empty when the image could not be read.
        error: Why it could not be read, or that the model's answer is no number; or an empty string.
    """

    name: str
    predictions: tuple[Prediction, ...] = ()
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, with the error only where there is one."""
        named = {"image": self.name, "predictions": [asdict(p) for p in self.predictions]}
        return {**named, "error": self.error} if self.error else named


class Predictions(list[Prediction]):
    """The most probable classes of one image, first the best; none where it could not be read.

    Attributes:
        name: See `Classified`.
        error: See `Classified`.
    """

    def __init__(self, told: Classified) -> None:
        super().__init__(told.predictions)
        self.name = told.name
        self.error = told.error

    def __getitem__(self, number: Any) -> Any:
        if self.error and not isinstance(number, slice):
            raise IndexError(f"There is no prediction: {self.error}")
        return super().__getitem__(number)

    def __repr__(self) -> str:
        return f"<no prediction: {self.error}>" if self.error else super().__repr__()


class Predictor:
    """Classifies images with a model directory.

    Args:
        runner: Any function from pixels (B, 3, H, W) to logits (B, K).
        processor: The preprocessing that the weights were scored with.
        label_names: Class names in the order of the logits.

    Examples:
        >>> predictor = Predictor(lambda pixels: pixels.mean((2, 3)), DeiTImageProcessor(), ["red", "green", "blue"])
        >>> predictor.classify([Image.new("RGB", (32, 32), "blue")])[0][0].label
        'blue'
    """

    def __init__(
        self, runner: Callable[[Array], Array], processor: DeiTImageProcessor, label_names: Sequence[str]
    ) -> None:
        self.runner = runner
        self.processor = processor
        self.label_names = distinct_names(label_names)

    @classmethod
    def open(
        cls, model_directory: str | os.PathLike[str], *, device: str = "cpu", head_average: str | None = None
    ) -> Predictor:
        """Opens a model directory.

        Args:
            model_directory: As training or `save_pretrained` writes it, with its preprocessing; or a name, see
                `deit.models.weights.model_names.find_model`.
            device: "cpu", "cuda", ..., or "auto" for a GPU if there is one.
            head_average: See `open_runner`.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file is damaged, or `head_average` cannot be used.
        """
        opened = open_model(model_directory, device, head_average=head_average)
        return cls(opened.runner, opened.processor, opened.runner.label_names)

    def classify(self, images: Any, *, top_k: int = 5, batch_size: int = 32, strict: bool = False) -> Any:
        """Classifies one image or several.

        Args:
            images: A path, bytes or base64 text of a file, an open file, a PIL image of any mode, or an array or
                tensor: (H, W), (H, W, C) or (C, H, W), which the preprocessing takes as it is; or an iterable of
                these, or a batch of 4 dimensions.
            top_k: Predictions for each image, at most the number of classes.
            batch_size: Images that go through the model together.
            strict: Raise at the first of several images that cannot be read.

        Returns:
            For one image its `Predictions`, a list with the most probable class first. For several a list of these;
            one that cannot be read is in its place, empty and with an `error`.

        Raises:
            FileNotFoundError: The path of the one image does not exist.
            ImageError: The one image cannot be read.
            ValueError: `top_k` or `batch_size` is smaller than 1, it is no image, or the model answers with NaN or
                infinity.
        """
        if is_one_image(images):
            return Predictions(next(self.classify_each([images], top_k=top_k, batch_size=batch_size, strict=True)))
        results = list(self.classify_each(items_of(images), top_k=top_k, batch_size=batch_size, strict=strict))
        for result in results:
            if result.error.endswith(_NO_NUMBER):
                raise UserError(result.error)
        return [Predictions(result) for result in results]

    def classify_each(
        self,
        images: Iterable[Any],
        *,
        top_k: int = 5,
        batch_size: int = 32,
        strict: bool = False,
    ) -> Iterator[Classified]:
        """Classifies images one batch after the other; what cannot be read comes back with an error in its place.

        Args:
            images: See `classify`.
            top_k: See `classify`.
            batch_size: See `classify`.
            strict: Raise at the first image that cannot be read.

        Yields:
            One result for each image, in order. The images of a batch are decoded one after the other.

        Raises:
            FileNotFoundError: A path does not exist, and `strict` is on.
            ImageError: An image cannot be read, and `strict` is on.
            ValueError: `top_k` or `batch_size` is smaller than 1.
        """
        if top_k < 1 or batch_size < 1:
            raise UserError(f"top_k and batch_size must be at least 1. Received: {top_k} and {batch_size}.")
        remaining = iter(images)
        while chunk := list(islice(remaining, batch_size)):
            read = read_pixels(self.processor, chunk, strict=strict)
            answers = iter(() if read.pixels is None else self._answer(read.pixels, top_k))
            for image, error in zip(chunk, read.errors, strict=True):
                answer = () if error else next(answers)
                reason = error or ("" if answer else f"{name_of(image)}: {_NO_NUMBER}")
                if strict and not answer:
                    raise UserError(reason)
                yield Classified(name=name_of(image), predictions=answer, error=reason)

    def _answer(self, pixels: Array, top_k: int) -> list[tuple[Prediction, ...]]:
        return [self._best(logits[None], top_k) for logits in self.runner(pixels)]

    def _best(self, logits: Array, top_k: int) -> tuple[Prediction, ...]:
        """Returns the best classes of one image, none where its logits (1, K) are no numbers."""
        if not has_answer(logits).all():
            return ()
        scores = softmax(logits)[0]
        best = np.argsort(-scores, kind="stable")[:top_k]
        return tuple(Prediction(label=self.label_names[i], score=float(scores[i])) for i in best)
