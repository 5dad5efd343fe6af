"""Defines what a request can ask for, and what an image is answered with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from deit.core.scores.conformal import Coverage
from deit.inference.contract import Array
from deit.inference.predictor import Classified
from deit.serve.refusals import Refusal


@dataclass(frozen=True, kw_only=True)
class Wants:
    """Options of a request.

    Attributes:
        top_k: Classes for each image.
        coverage: For prediction sets; None for no sets.
        abstain: See `Predictor.classify`.
        heads: Predictions of each head of a model with two.
        embedding: What the class head is given.
        explain: A method of `deit.explain`; empty for no explanation.
        explain_score: Whether the maps of the explanation are scored, which takes many passes through the model.
    """

    top_k: int = 5
    coverage: Coverage | None = None
    abstain: bool = False
    heads: bool = False
    embedding: bool = False
    explain: str = ""
    explain_score: bool = False

    @property
    def is_promise(self) -> bool:
        """Whether the answer rests on what was measured with the whole model, so that no tokens may be merged."""
        return self.coverage is not None or self.abstain or bool(self.explain)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds that an image spent being decoded, waiting for its batch, and in the model."""

    decode: float = 0.0
    queue: float = 0.0
    compute: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """The result of one image.

    Attributes:
        error: Why there is none; then everything else is empty.
        classified: Predictions and judgement.
        outputs: Logits (K,) of each head, and `FEATURES` (D,) where they were asked for and the model has them.
        scores: (K,), as `Predictor.scores`; empty for an error.
        heads: Predictions of each head, label and score; empty unless asked for.
        embedding: (D,), or None unless asked for.
        explanation: JSON values of an explanation; None unless asked for.
        calibrated: Whether the scores are calibrated.
        merged: Tokens that each block merged since the server was overloaded; 0 for the whole model.
        timing: Where the time went.
    """

    error: Refusal | None = None
    classified: Classified | None = None
    outputs: Mapping[str, Array] = field(default_factory=dict)
    scores: Array | None = None
    heads: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    embedding: Array | None = None
    explanation: Mapping[str, Any] | None = None
    calibrated: bool = False
    merged: int = 0
    timing: Timing = field(default_factory=Timing)

    def explained(self, explanation: Mapping[str, Any]) -> Answer:
        """Returns the answer with an explanation."""
        return replace(self, explanation=explanation)

    def to_dict(self, name: str) -> dict[str, Any]:
        """Returns JSON values.

        Args:
            name: What the client called the image.
        """
        if self.error is not None:
            return {"image": name, "predictions": [], **self.error.to_dict()}
        assert self.classified is not None
        values = {**self.classified.to_dict(), "image": name, "calibrated": self.calibrated}
        if self.heads:
            values["heads"] = dict(self.heads)
        if self.embedding is not None:
            values["embedding"] = self.embedding.tolist()
        if self.explanation is not None:
            values["explanation"] = dict(self.explanation)
        if self.merged:
            values["merged"] = self.merged
        return values
