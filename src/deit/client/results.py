"""The results of a server: `Predictions` with what only a server adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from deit.core.config.field_checks import is_finite
from deit.core.errors import UserError, shown
from deit.core.scores.predictions import Classified, Judgement, Prediction, Predictions


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Which model answered, and how long it took.

    Attributes:
        model: Name of the model.
        version: Its version.
        timing_ms: Milliseconds of the request by its stages: "decode", "queue", "compute", "total".
    """

    model: str = ""
    version: str = ""
    timing_ms: Mapping[str, float] = field(default_factory=dict)


class ServedPredictions(Predictions):
    """The predictions of one image, see `Predictions`, as a server answered them.

    Attributes:
        origin: Which model answered, and how long it took.
        merged: Tokens that each block merged because the server was overloaded; 0 for the whole model.
        heads: For each head its own predictions, if asked for; else None.
        embedding: (D,) float32, what the class head is given, if asked for; else None.
        explanation: Maps of where each head looked, as the server sends them, if asked for; else None.
    """

    def __init__(self, told: Classified, origin: Origin, sent: Mapping[str, Any]) -> None:
        super().__init__(told)
        self.origin = origin
        self.merged = int(_number(sent.get("merged", 0)))
        heads = sent.get("heads")
        self.heads = None if heads is None else {name: _predictions(rows) for name, rows in _mapping(heads).items()}
        embedding = sent.get("embedding")
        self.embedding: npt.NDArray[np.float32] | None = None if embedding is None else _vector(embedding)
        explanation = sent.get("explanation")
        self.explanation = None if explanation is None else dict(_mapping(explanation))


def unreadable(name: str, error: str) -> ServedPredictions:
    """Returns the result of an image that has an error."""
    return ServedPredictions(Classified(name=name, error=error), Origin(), {})


def read_origin(answer: Mapping[str, Any]) -> Origin:
    """Reads what an answer says about the model.

    Raises:
        UserError: It is not as it should be.
    """
    timing = {name: _number(value) for name, value in _mapping(answer.get("timing_ms", {})).items()}
    return Origin(model=_text(answer.get("model", "")), version=_text(answer.get("version", "")), timing_ms=timing)


def read_result(sent: Any, name: str, traveled_as: str, origin: Origin) -> ServedPredictions:
    """Reads the result of one image.

    Args:
        sent: Part of the answer.
        name: Name of the image here.
        traveled_as: Name that it had in the request.
        origin: Of the answer.

    Raises:
        UserError: It is not as it should be, or is that of another image.
    """
    values = _mapping(sent)
    if values.get("image") != traveled_as:
        raise UserError(f"a result is of {shown(values.get('image'))}, where that of {traveled_as!r} belongs")
    if (error := values.get("error")) is not None:
        return unreadable(name, renamed(_text(_mapping(error)["message"]), name, traveled_as))
    predictions = tuple(_predictions(values.get("predictions")))
    judgement = _judgement(values) if values.get("calibrated") else None
    if not predictions and not (judgement and judgement.abstained):
        raise UserError("a result names no class and gives no reason")
    return ServedPredictions(Classified(name=name, predictions=predictions, judgement=judgement), origin, values)


def renamed(error: str, name: str, traveled_as: str) -> str:
    """Returns the error of a server with the name of the image here."""
    for there in (traveled_as, "The image"):
        if error.startswith(f"{there} "):
            return name + error.removeprefix(there)
    return f"{name}: {error}"


def _judgement(values: Mapping[str, Any]) -> Judgement:
    interval = values.get("interval")
    if interval is not None:
        low, high = interval
        interval = (_number(low), _number(high))
    outlier_score = values.get("outlier_score")
    return Judgement(
        prediction_set=_names(values.get("set")),
        interval=interval,
        named=_names(values.get("named")),
        outlier_score=None if outlier_score is None else _number(outlier_score),
        abstained=_text(values.get("abstained", "")),
    )


def _predictions(rows: Any) -> list[Prediction]:
    return [Prediction(label=_text(row["label"]), score=_number(row["score"])) for row in _rows(rows)]


def _rows(rows: Any) -> list[Mapping[str, Any]]:
    if not isinstance(rows, list):
        raise UserError(f"{shown(rows)} is no list of predictions")
    return [_mapping(row) for row in rows]


def _names(value: Any) -> tuple[str, ...] | None:
    return None if value is None else tuple(_text(name) for name in value)


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{shown(value)} is no object")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"{shown(value)} is no text")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not is_finite(value):
        raise UserError(f"{shown(value)} is no number")
    return float(value)


def _vector(values: Any) -> npt.NDArray[np.float32]:
    if not isinstance(values, list) or not values:
        raise UserError(f"{shown(values)} is no list of numbers")
    return np.array([_number(value) for value in values], np.float32)
