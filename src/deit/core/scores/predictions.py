"""What is said about one image: classes with scores, and how far to trust them. Predictors and clients share it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


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
class Judgement:
    """What a calibration says about one answer.

    Attributes:
        prediction_set: Classes that hold the true one with the coverage that was asked for, the likeliest first; None
            if none was asked for.
        interval: The same for a regression: the ends of an interval.
        named: Classes that the thresholds of a binary or multi-label model name; None if it has no thresholds.
        outlier_score: Distance of the features to the training images, as a multiple of that which 95 of 100 held-out
            images keep: above 1, an image is unlike the training images. None if that is not known.
        abstained: Why no class is named; else empty.
    """

    prediction_set: tuple[str, ...] | None = None
    interval: tuple[float, float] | None = None
    named: tuple[str, ...] | None = None
    outlier_score: float | None = None
    abstained: str = ""

    @property
    def is_outlier(self) -> bool:
        """Whether the image is unlike the training images."""
        return self.outlier_score is not None and self.outlier_score > 1

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, of what is known."""
        values: dict[str, Any] = {}
        if self.prediction_set is not None:
            values["set"] = list(self.prediction_set)
        if self.interval is not None:
            values["interval"] = list(self.interval)
        if self.named is not None:
            values["named"] = list(self.named)
        if self.outlier_score is not None:
            values |= {"outlier_score": self.outlier_score, "is_outlier": self.is_outlier}
        if self.abstained:
            values["abstained"] = self.abstained
        return values


@dataclass(frozen=True, kw_only=True)
class Classified:
    """The result of one image.

    Attributes:
        name: Its path, "standard input" for bytes, or "an image".
        predictions: The classes with the highest scores, in descending order; empty when there is an error
            or no class is named, see `abstained`.
        error: Why the image cannot be read, or that the answer of the model is not a number; else an empty string.
        judgement: What the calibration says about the answer; None for raw scores.
    """

    name: str
    predictions: tuple[Prediction, ...] = ()
    error: str = ""
    judgement: Judgement | None = None

    @property
    def abstained(self) -> str:
        """Why no class is named; else empty."""
        return "" if self.judgement is None else self.judgement.abstained

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, with the error only where there is one, and with the judgement likewise."""
        values: dict[str, Any] = {"image": self.name, "predictions": [asdict(p) for p in self.predictions]}
        if self.judgement is not None:
            values |= {"calibrated": True, **self.judgement.to_dict()}
        return {**values, "error": self.error} if self.error else values


class Predictions(list[Prediction]):
    """The predictions of one image as a list, in descending order of their scores.

    Empty when there is an error, or when no class is named.

    Attributes:
        name: See `Classified`.
        error: See `Classified`.
        judgement: See `Classified`.
        abstained: See `Classified`.
    """

    def __init__(self, told: Classified) -> None:
        super().__init__(told.predictions)
        self.name = told.name
        self.error = told.error
        self.judgement = told.judgement
        self.abstained = told.abstained

    def __getitem__(self, number: Any) -> Any:
        if (self.error or self.abstained) and not isinstance(number, slice):
            raise IndexError(f"There is no prediction: {self.error or self.abstained}")
        return super().__getitem__(number)

    def __repr__(self) -> str:
        reason = self.error or self.abstained
        return f"<no prediction: {reason}>" if reason else super().__repr__()
