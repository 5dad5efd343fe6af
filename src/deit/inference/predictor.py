"""Classifies images: from files, arrays and PIL images to named predictions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np

from deit.core.errors import UserError
from deit.core.images.image_inputs import is_one_image, items_of, name_of
from deit.core.labels import distinct_names
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.core.scores.functions import FUNCTIONS, function_name
from deit.core.scores.metrics import SINGLE_LABEL, has_answer
from deit.inference.answers import Answers, Item, answers
from deit.inference.contract import Array, Contract
from deit.inference.engine import Engine, FunctionEngine, open_engine

_NO_NUMBER = "the model answers with NaN or infinity. Its weights may be damaged."


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One class and its score.

    Attributes:
        label: Class name.
        score: Probability of the class, between 0 and 1; for a regression the value itself.
    """

    label: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Classified:
    """The result of one image.

    Attributes:
        name: Its path, "standard input" for bytes, or "an image".
        predictions: The classes with the highest scores, in descending order; empty when there is an error.
        error: Why the image cannot be read, or that the answer of the model is not a number; else an empty string.
    """

    name: str
    predictions: tuple[Prediction, ...] = ()
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, with the error only where there is one."""
        named = {"image": self.name, "predictions": [asdict(p) for p in self.predictions]}
        return {**named, "error": self.error} if self.error else named


class Predictions(list[Prediction]):
    """The predictions of one image as a list, in descending order of their scores; empty when there is an error.

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
    """Classifies images with an engine.

    Scores follow the problem type: softmax for one class, sigmoid for several labels, the value for a regression.

    Args:
        engine: An engine, or any function from pixels (B, 3, H, W) to logits (B, K).
        processor: The preprocessing; that of the engine when None. A function needs one.
        label_names: Class names in the order of the logits; those of the engine when None. A function needs them.

    Attributes:
        engine: The engine.
        processor: The preprocessing in use.
        label_names: Class names, each followed by its number where several classes share it.

    Examples:
        >>> predictor = Predictor(lambda pixels: pixels.mean((2, 3)), DeiTImageProcessor(), ["red", "green", "blue"])
        >>> predictor.classify([Image.new("RGB", (32, 32), "blue")])[0][0].label
        'blue'
    """

    def __init__(
        self,
        engine: Engine | Callable[[Array], Array],
        processor: DeiTImageProcessor | None = None,
        label_names: Sequence[str] | None = None,
    ) -> None:
        self.engine = _as_engine(engine, processor, label_names)
        contract = self.engine.contract
        self.processor = contract.processor if processor is None else processor
        self.label_names = distinct_names(contract.label_names if label_names is None else label_names)

    @classmethod
    def open(
        cls,
        model_directory: str | os.PathLike[str],
        *,
        device: str = "cpu",
        precision: str = "fp32",
        head_average: str | None = None,
    ) -> Predictor:
        """Opens a model by its path or name; see `open_engine` for the arguments and errors."""
        return cls(open_engine(model_directory, device, precision=precision, head_average=head_average))

    @property
    def problem_type(self) -> str:
        """Meaning of the scores, one of `PROBLEM_TYPES`."""
        return self.engine.contract.problem_type

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
            For one image its `Predictions`, a list in descending order of the scores. For several a list of these;
            that of an unreadable image is empty and has an `error`.

        Raises:
            FileNotFoundError: The path of the one image does not exist.
            ImageError: The one image cannot be read.
            UserError: `top_k` or `batch_size` is smaller than 1, an item is no image, or the model answers with NaN or
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
        self, images: Iterable[Any], *, top_k: int = 5, batch_size: int = 32, strict: bool = False
    ) -> Iterator[Classified]:
        """Classifies images batch after batch; an unreadable image has an error in its place.

        Threads decode the images. Those of a list are decoded while the model works on the batch before; an iterator is
        asked for a batch only after the results of the one before were taken.

        Args:
            images: See `classify`.
            top_k: See `classify`.
            batch_size: See `classify`.
            strict: Raise at the first image that cannot be read.

        Yields:
            One result for each image, in order.

        Raises:
            FileNotFoundError: A path does not exist, and `strict` is on.
            ImageError: An image cannot be read, and `strict` is on.
            UserError: `top_k` or `batch_size` is smaller than 1.
        """
        if top_k < 1 or batch_size < 1:
            raise UserError(f"top_k and batch_size must be at least 1. Received: {top_k} and {batch_size}.")
        for told in self.answers(images, batch_size, strict=strict):
            rows = iter(next(iter(told.outputs.values()), ()))
            for image, error in zip(told.batch.items, told.batch.errors, strict=True):
                found = () if error else self._best(next(rows)[None], top_k)
                reason = error or ("" if found else f"{name_of(image)}: {_NO_NUMBER}")
                if strict and not found:
                    raise UserError(reason)
                yield Classified(name=name_of(image), predictions=found, error=reason)

    def answers(
        self,
        images: Iterable[Item],
        batch_size: int,
        *,
        read: Callable[[Item], Any] | None = None,
        name: Callable[[Item], str] = name_of,
        strict: bool = False,
        ahead: bool = True,
    ) -> Iterator[Answers[Item]]:
        """Yields the logits of every head, batch after batch; see `deit.inference.answers.answers`."""
        return answers(
            self.engine, self.processor, images, batch_size, read=read, name=name, strict=strict, ahead=ahead
        )

    def _best(self, logits: Array, top_k: int) -> tuple[Prediction, ...]:
        """Returns the classes with the highest scores for logits (1, K); none when these are not numbers."""
        answered = has_answer(logits) if self.problem_type == SINGLE_LABEL else np.isfinite(logits)
        if not answered.all():
            return ()
        scores = FUNCTIONS[function_name(self.problem_type, logits.shape[1])](logits)[0]
        best = np.argsort(-scores, kind="stable")[:top_k]
        return tuple(Prediction(label=self.label_names[i], score=float(scores[i])) for i in best)


def _as_engine(
    engine: Engine | Callable[[Array], Array], processor: DeiTImageProcessor | None, label_names: Sequence[str] | None
) -> Engine:
    if hasattr(engine, "contract"):
        return cast("Engine", engine)
    if processor is None or label_names is None:
        raise UserError("A function needs processor and label_names beside it.")
    return FunctionEngine(engine, Contract(processor=processor, label_names=list(label_names)))
