"""Classifies images: from files, arrays and PIL images to named predictions."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np

from deit.core.errors import UserError
from deit.core.images.image_inputs import is_one_image, items_of, name_of
from deit.core.labels import distinct_names
from deit.core.processing.batches import PixelBatch, pixel_batches
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.core.processing.reduced_reading import ReducedReader, wants_exact_decoding
from deit.core.scores.calibration_file import Calibration
from deit.core.scores.conformal import Coverage
from deit.core.scores.functions import FUNCTIONS, function_name
from deit.core.scores.metrics import answered_rows
from deit.core.scores.predictions import (
    Classified as Classified,
    Prediction as Prediction,
    Predictions as Predictions,
)
from deit.inference.answers import Answers, Item, answers_to
from deit.inference.contract import FEATURES, Array, Contract
from deit.inference.engines.auto_engine import held
from deit.inference.engines.engine import Engine, FunctionEngine
from deit.inference.engines.opening import open_engine
from deit.inference.judgement import Judge, has_calibration, open_calibration

logger = logging.getLogger(__name__)

_NO_NUMBER = "the model answers with NaN or infinity. Its weights may be damaged."


class Predictor:
    """Classifies images with an engine.

    Scores follow the problem type: softmax for one class, sigmoid for several labels, the value for a regression. With
    a calibration, logits are divided by its temperature first.

    Args:
        engine: An engine, or any function from pixels (B, 3, H, W) to logits (B, K).
        processor: The preprocessing; that of the engine when None. A function needs one.
        label_names: Class names in the order of the logits; those of the engine when None. A function needs them.
        calibration: Result of `calibrate`; None leaves scores raw.

    Attributes:
        engine: The engine.
        processor: The preprocessing in use.
        label_names: Class names, each followed by its number where several classes share it.
        calibration: The calibration in use, or None.
        exact_decoding: Decode large JPEG files whole, see `ReducedReader`; false unless `DEIT_EXACT_DECODING` is set.
        reduced_images: Number of images that were decoded at a reduced size.

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
        *,
        calibration: Calibration | None = None,
    ) -> None:
        self.engine = _as_engine(engine, processor, label_names)
        contract = self.engine.contract
        self.processor = contract.processor if processor is None else processor
        self.label_names = distinct_names(contract.label_names if label_names is None else label_names)
        self.calibration = calibration
        self.exact_decoding = wants_exact_decoding()
        self.reduced_images = 0
        self._why_raw = "The model has no calibration. Pass calibration=, a result of deit.calibrate."

    @classmethod
    def open(
        cls,
        model_directory: str | os.PathLike[str],
        *,
        device: str = "cpu",
        engine: str | None = None,
        precision: str | None = None,
        head_average: str | None = None,
        calibrated: bool = True,
    ) -> Predictor:
        """Opens a model by its path or name; see `open_engine` for the other arguments and errors.

        Args:
            model_directory: See `open_engine`.
            device: See `open_engine`.
            engine: See `open_engine`. None is "auto": what needs the same bits in every run should pass "torch".
            precision: See `open_engine`.
            head_average: See `open_engine`.
            calibrated: Use `calibration.json`, where the model has one. One that was made for other weights, another
                preprocessing, other classes or another average is left aside, and the log says so.

        Raises:
            DamagedFileError: `calibration.json` is damaged.
        """
        options: dict[str, Any] = {"engine": engine or "auto", "precision": precision, "head_average": head_average}
        opened = cls(open_engine(model_directory, device, **options))
        if not calibrated:
            opened._why_raw = "The model was opened without its calibration."
            return opened
        opened.calibration, opened._why_raw = open_calibration(opened.engine.contract, opened.processor)
        if opened.calibration is not None and opened.calibration.outliers is not None:
            _warn_without_features(opened.engine)
        if opened.calibration is None and has_calibration(opened.engine.contract):
            logger.warning("%s", opened._why_raw)
        return opened

    @property
    def problem_type(self) -> str:
        """Meaning of the scores, one of `PROBLEM_TYPES`."""
        return self.engine.contract.problem_type

    def judge(self, coverage: float | Coverage | None = None, *, abstain: bool = False) -> Judge | None:
        """Returns what judges answers by the calibration; None for raw scores.

        Args:
            coverage: See `classify`.
            abstain: See `classify`.

        Raises:
            UserError: There is no calibration for it.
        """
        if self.calibration is not None:
            wanted = coverage if isinstance(coverage, Coverage | None) else Coverage(percent=coverage)
            return Judge(self.calibration, wanted, abstain=abstain)
        if coverage is None and not abstain:
            return None
        raise UserError(f"Coverage and abstaining need a calibration. {self._why_raw}")

    def classify(
        self,
        images: Any,
        *,
        top_k: int = 5,
        batch_size: int = 32,
        strict: bool = False,
        coverage: float | Coverage | None = None,
        abstain: bool = False,
    ) -> Any:
        """Classifies one image or several.

        Args:
            images: A path, bytes or base64 text of a file, an open file, a PIL image of any mode, or an array or
                tensor: (H, W), (H, W, C) or (C, H, W), which the preprocessing takes as it is; or an iterable of
                these, or a batch of 4 dimensions.
            top_k: Predictions for each image, at most the number of classes.
            batch_size: Images that go through the model together.
            strict: Raise at the first of several images that cannot be read.
            coverage: Percentage of images whose prediction set holds the true class (in `judgement`); or a `Coverage`.
            abstain: Name no class for an image whose set does not hold exactly one (at 95 % unless `coverage` says
                otherwise), or that is unlike the training images.

        Returns:
            For one image its `Predictions`, a list in descending order of the scores. For several a list of these;
            that of an unreadable image is empty and has an `error`.

        Raises:
            FileNotFoundError: The path of the one image does not exist.
            ImageError: The one image cannot be read.
            UserError: `top_k` or `batch_size` is smaller than 1, an item is no image, the model answers with NaN or
                infinity, or there is no calibration for the coverage.
        """
        judge = self.judge(coverage, abstain=abstain)
        engine = held(self.engine)  # results of one call are compared with each other
        if is_one_image(images):
            return Predictions(next(self._each([images], engine, top_k, batch_size, strict=True, judge=judge)))
        results = list(self._each(items_of(images), engine, top_k, batch_size, strict=strict, judge=judge))
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
        judge: Judge | None = None,
    ) -> Iterator[Classified]:
        """Classifies images batch after batch; an unreadable image has an error in its place.

        Threads decode the images. Those of a list are decoded while the model works on the batch before; an iterator is
        asked for a batch only after the results of the one before were taken. The engine "auto" may change between two
        batches, which the log says (`classify` keeps one for a whole call).

        Args:
            images: See `classify`.
            top_k: See `classify`.
            batch_size: See `classify`.
            strict: Raise at the first image that cannot be read.
            judge: Result of `judge`; None judges by the calibration, without a coverage.

        Yields:
            One result for each image, in order.

        Raises:
            FileNotFoundError: A path does not exist, and `strict` is on.
            ImageError: An image cannot be read, and `strict` is on.
            UserError: `top_k` or `batch_size` is smaller than 1.
        """
        judge = self.judge() if judge is None else judge
        yield from self._each(images, self.engine, top_k, batch_size, strict=strict, judge=judge)

    def _each(
        self, images: Iterable[Any], engine: Engine, top_k: int, batch_size: int, *, strict: bool, judge: Judge | None
    ) -> Iterator[Classified]:
        if top_k < 1 or batch_size < 1:
            raise UserError(f"top_k and batch_size must be at least 1. Received: {top_k} and {batch_size}.")
        with_features = judge is not None and judge.needs_features
        reader = ReducedReader(self.processor, exact=self.exact_decoding)
        options: dict[str, Any] = {"strict": strict, "with_features": with_features, "engine": engine}
        for told in self.answers(images, batch_size, read=reader, **options):
            self.reduced_images += reader.taken()
            for found in self.classified_batch(told, top_k=top_k, judge=judge):
                if strict and found.error:
                    raise UserError(found.error)
                yield found

    def classified_batch(
        self, told: Answers[Item], *, top_k: int, judge: Judge | None, name: Callable[[Item], str] = name_of
    ) -> Iterator[Classified]:
        """Yields the results of a batch that `answers` gave, one for each image, in order.

        Args:
            told: The answers; judging outliers needs `with_features`.
            top_k: See `classify`.
            judge: Result of `judge`.
            name: Returns the name of an item.
        """
        rows = iter(next(iter(told.outputs.values()), ()))
        features = iter(told.outputs.get(FEATURES, ()))
        for image, error in zip(told.batch.items, told.batch.errors, strict=True):
            called = name(image)
            if error:
                yield Classified(name=called, error=error)
            else:
                yield self.classified(called, next(rows)[None], next(features, None), top_k, judge)

    def answers(
        self,
        images: Iterable[Item],
        batch_size: int,
        *,
        read: Callable[[Item], Any] | None = None,
        name: Callable[[Item], str] = name_of,
        strict: bool = False,
        ahead: bool = True,
        with_features: bool = False,
        engine: Engine | None = None,
    ) -> Iterator[Answers[Item]]:
        """Yields the logits of every head, batch after batch; see `deit.inference.answers.answers`.

        With `with_features`, what the class head is given follows as `FEATURES`, where the engine knows it. `engine`
        takes the place of the predictor's.
        """
        batches = pixel_batches(images, self.processor, batch_size, read=read, name=name, strict=strict, ahead=ahead)
        return self.answers_to(batches, with_features=with_features, engine=engine)

    def answers_to(
        self, batches: Iterable[PixelBatch[Item]], *, with_features: bool = False, engine: Engine | None = None
    ) -> Iterator[Answers[Item]]:
        """Yields the same for batches that are read already."""
        engine = self.engine if engine is None else engine
        return answers_to(getattr(engine, "with_features", engine) if with_features else engine, batches)

    def classified(
        self, name: str, logits: Array, features: Array | None, top_k: int, judge: Judge | None
    ) -> Classified:
        """Returns the result for the logits of one image; an error when these are not numbers.

        Args:
            name: Of the image.
            logits: (1, K), of the first head.
            features: (D,), what the class head was given; None without.
            top_k: See `classify`.
            judge: Result of `judge`.
        """
        if not answered_rows(logits, self.problem_type).all():
            return Classified(name=name, error=f"{name}: {_NO_NUMBER}")
        scores = self.scores(logits)[0]
        judgement = None if judge is None else judge.judge(logits, scores, None if features is None else features[None])
        abstains = judgement is not None and judgement.abstained
        predictions = () if abstains else self.best(scores, top_k)
        return Classified(name=name, predictions=predictions, judgement=judgement)

    def best(self, scores: Array, top_k: int) -> tuple[Prediction, ...]:
        """Returns the classes with the highest of some scores (K,), in descending order; of equal ones, the first."""
        order = np.argsort(-scores, kind="stable")[:top_k]
        return tuple(Prediction(label=self.label_names[i], score=float(scores[i])) for i in order)

    def scores(self, logits: Array, head: str | None = None) -> Array:
        """Returns the scores (B, K) of a head's logits (B, K), divided by its temperature in the calibration.

        Args:
            logits: (B, K).
            head: Its name; the first one, which is the answer of the model, when None.
        """
        if self.calibration is not None:
            logits = logits / np.float32(self.calibration.temperature(head or self.engine.contract.head_names[0]))
        result: Array = FUNCTIONS[function_name(self.problem_type, logits.shape[1])](logits)
        return result


def _warn_without_features(engine: Engine) -> None:
    if not getattr(engine, "gives_features", True):
        logger.warning(
            "The model gives no features in the engine %s, so images unlike the training images are not found. Open "
            "the model directory with engine='torch' for that.",
            engine.name,
        )


def _as_engine(
    engine: Engine | Callable[[Array], Array], processor: DeiTImageProcessor | None, label_names: Sequence[str] | None
) -> Engine:
    if hasattr(engine, "contract"):
        return cast("Engine", engine)
    if processor is None or label_names is None:
        raise UserError("A function needs processor and label_names beside it.")
    return FunctionEngine(engine, Contract(processor=processor, label_names=list(label_names)))
