"""Compares the scores of an evaluation with those that training recorded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deit.core.errors import UserError
from deit.core.images.known_images import LEARNT, MEASURED, KnownImages, Overlap
from deit.core.model_directory import read_known_images, read_training_record
from deit.core.scores.metrics import score_text, score_title
from deit.data.divisions import split_indices
from deit.data.sources import Source, Subset, contents_of, former_fingerprint

VALIDATION, TRAINING, WHOLE = "validation", "training", "whole"

# What another device, precision or batch size may change a score by: one hundredth of a percent of all images, or a
# hundredth part of what is large.
_TOLERANCE = 0.01
_SHOWN = ("top1", "micro_f1", "mean_absolute_error", "loss")


@dataclass(frozen=True, kw_only=True)
class RecordedScores:
    """The scores that training recorded, and the role of today's images in it.

    Attributes:
        part: "validation" for the very images that the model was measured on, "training" for those it learned from,
            "whole" for both together, "" for others.
        scores: Head -> scores by name, of the validation images.
    """

    part: str
    scores: dict[str, dict[str, float]]

    def notes(self, seen: dict[str, dict[str, float]]) -> list[str]:
        """Returns sentences that a reader of today's scores should know.

        Args:
            seen: Head -> scores by name.
        """
        if self.part == TRAINING:
            return ["The model was trained on these very images. The scores say nothing about new ones."]
        if self.part == WHOLE:
            return [
                "Most of these images were in the model's training, so the scores are too good. "
                "Pass --held-out to score those that training kept for validation."
            ]
        if self.part != VALIDATION:
            return []
        head = next(iter(self.scores))
        shown = ", ".join(_in_words(name, value) for name, value in self.scores[head].items() if name in _SHOWN)
        differences = self._differences(seen)
        rest = f"Seen now is something else ({'; '.join(differences)})." if differences else "Seen now is the same."
        return [f"Recorded at training, on these images: {head}: {shown}. {rest}"]

    def _differences(self, seen: dict[str, dict[str, float]]) -> list[str]:
        return [
            f"{head}: {_in_words(name, recorded)} then, {_in_words(name, seen[head][name])} now"
            for head, scores in self.scores.items()
            for name, recorded in scores.items()
            if head in seen and name in seen[head] and not _same(recorded, seen[head][name])
        ]


def _same(recorded: float, seen: float) -> bool:
    if math.isnan(recorded) or math.isnan(seen):
        return math.isnan(recorded) and math.isnan(seen)
    return abs(recorded - seen) <= _TOLERANCE * max(1.0, abs(recorded))


def _in_words(name: str, value: float) -> str:
    title = score_title(name)
    unit = " %" if title.endswith(" %") else ""
    return f"{title.removesuffix(' %')} {score_text(name, value)}{unit}"


def read_recorded_scores(model_directory: Path, source: Source) -> RecordedScores | None:
    """Returns what training wrote down, or None for a model that was not trained here.

    Args:
        model_directory: Of the model.
        source: The images of today.
    """
    record = read_training_record(model_directory)
    if not record or "scores" not in record:
        return None
    data, fingerprints = record.get("data", {}), _fingerprints(source)
    part = ""
    if data.get("val_fingerprint") in fingerprints:
        part = VALIDATION
    elif data.get("train_fingerprint") in fingerprints:
        part = TRAINING
    else:
        kept = held_out(model_directory, source)
        if kept is not None and data.get("val_fingerprint") in _fingerprints(kept):
            part = WHOLE
    return RecordedScores(part=part, scores=record["scores"])


def held_out(model_directory: Path, source: Source) -> Subset | None:
    """Finds the images that training kept for validation.

    Uses the hashes that training recorded, and needs all of the images. Models of earlier versions have no hashes; for
    those it needs exactly the images that training divided.

    Args:
        model_directory: Of the model.
        source: Images with the model's classes.

    Returns:
        The images that the model never learned from, or None if they cannot be identified.
    """
    contents, known = contents_of(source), read_known_images(model_directory)
    if known is not None and contents is not None and len(known.hashes):  # a training that checked no image has none
        wanted = np.setdiff1d(known.with_role(MEASURED), known.with_role(LEARNT))
        kept = np.flatnonzero(np.isin(contents, wanted))
        return Subset(source, kept) if len(wanted) and np.isin(wanted, contents).all() else None
    record: dict[str, Any] = read_training_record(model_directory) or {}
    division = record.get("data", {}).get("held_out")
    if division is None:  # older records name no seed; it was 0
        fraction = record.get("recipe", {}).get("data", {}).get("val_fraction", 0.2)
        division = {"val_fraction": fraction, "seed": 0}
    try:
        _, kept = split_indices(source.labels, source.classes, division["val_fraction"], division["seed"])
    except UserError:  # too few images to have been divided
        return None
    part = Subset(source, kept)
    return part if record.get("data", {}).get("val_fingerprint") in _fingerprints(part) else None


def overlap_of(known: KnownImages | None, source: Source) -> Overlap | None:
    """Counts the images that the model has met before; returns None if that is not recorded."""
    contents = contents_of(source)
    return None if known is None or contents is None else known.overlap(contents)


def _fingerprints(source: Source) -> tuple[str, str]:
    return source.fingerprint(), former_fingerprint(source)
