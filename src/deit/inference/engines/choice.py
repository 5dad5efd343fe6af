"""What the engine "auto" stands for: how answers and times are compared, and what is remembered of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from deit.core.scores.calibration_file import identity_of_weights
from deit.core.scores.functions import FUNCTIONS, function_name
from deit.core.scores.metrics import REGRESSION, SINGLE_LABEL, answered_rows
from deit.inference.contract import Array, Contract
from deit.runtime.auto_precision import LEAST_SPEEDUP, machine_facts
from deit.runtime.cache_folder import keep, recall
from deit.runtime.packages import installed_versions

# How far an answer may be from that of PyTorch in fp32. First a probability, or a share of a regression's value:
# rounding in another order changes it by some millionths; bfloat16, which keeps 8 bits, by up to a few hundredths for
# an image that the model is unsure of. Then a logit, as a share of the distance from the smallest to the largest logit
# of the image: of many classes none may be likely, so that probabilities show no fault.
TOLERANCES = {"fp32": (1e-3, 2e-3), "bf16": (0.03, 0.05)}
LEAST_GAIN = 1.05  # of another engine in the same precision
LEAST_IMAGES = 32  # whose answers must agree
LEAST_ROUNDS = 3  # batches that are measured
TRIAL_SECONDS = 10.0  # in all candidates together

_FORMAT = 1
_CACHE = "engines"  # folder in the cache folder


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """What the engine "auto" stands for at the moment, and why.

    Attributes:
        engine: Name of the engine.
        precision: "fp32" or "bf16".
        reason: Why, in a few words.
        source: "waiting" (not decided yet), "measured", "remembered" (measured earlier) or "rule".
        speedup: Time of plain PyTorch divided by the time of this engine; None if nothing was measured.
        difference: Largest difference of a probability from plain PyTorch; None if nothing was compared.
        since: Images that plain PyTorch answered before.
    """

    engine: str
    precision: str
    reason: str
    source: str
    speedup: float | None = None
    difference: float | None = None
    since: int = 0

    def describe(self) -> str:
        """Returns one line, such as "Engine: openvino, bf16 (2.1 x as fast as torch, measured on 64 images)."."""
        since = f", from image {self.since + 1} on" if self.since else ""
        return f"Engine: {self.engine}, {self.precision}{since} ({self.reason})."


@dataclass(kw_only=True)
class Trial:
    """What is known of a candidate: its times and answers beside those of plain PyTorch.

    Attributes:
        engine: Its name.
        precision: "fp32" or "bf16".
        images: Number of images whose answers were compared.
        ratios: Time of plain PyTorch divided by its time, for each measured batch.
        seconds: Time spent in it.
        difference: Largest difference of a probability.
        objection: Why it is not taken; empty if its answers agree.
        sizes: Of the batches so far.
    """

    engine: str
    precision: str
    images: int = 0
    ratios: list[float] = field(default_factory=list)
    seconds: float = 0.0
    difference: float = 0.0
    objection: str = ""
    sizes: set[int] = field(default_factory=set)

    def note_time(self, batch_size: int, plain: float, seconds: float) -> None:
        """Notes the seconds that plain PyTorch and the candidate took; not for the first batch of a size.

        An engine prepares itself for each size of batches, and so does PyTorch.
        """
        self.seconds += seconds
        if batch_size in self.sizes:
            self.ratios.append(plain / max(seconds, 1e-9))
        self.sizes.add(batch_size)

    @property
    def speedup(self) -> float:
        """The median of the ratios; 0 if nothing was measured."""
        return statistics.median(self.ratios) if self.ratios else 0.0

    def compare(self, expected: Mapping[str, Array], found: Mapping[str, Array], contract: Contract) -> None:
        """Compares the answers to a batch, each (B, K), with those of plain PyTorch."""
        head = contract.head_names[0]
        answered = answered_rows(expected[head], contract.problem_type)
        self.images += int(answered.sum())
        self.objection = self.objection or self._objection(expected[head][answered], found[head][answered], contract)

    def _objection(self, expected: Array, found: Array, contract: Contract) -> str:
        if not len(expected):
            return ""
        function = FUNCTIONS[function_name(contract.problem_type, expected.shape[1])]
        ours, theirs = function(expected).astype(np.float64), function(found).astype(np.float64)
        differences = np.abs(ours - theirs)
        if contract.problem_type == REGRESSION:
            differences /= 1 + np.abs(ours)
        most = float(differences.max())
        if not np.isfinite(most) or not np.isfinite(found).all():
            return "it answers with NaN or infinity"
        self.difference = max(self.difference, most)
        tolerance, share = TOLERANCES[self.precision]
        if most > tolerance:
            return f"its answers differ by {most:.2g}, more than {tolerance:g}"
        if expected.shape[1] == 1:
            return ""
        spread = expected.max(axis=1) - expected.min(axis=1)
        if (np.abs(expected - found).max(axis=1) > share * np.maximum(spread, 1e-6)).any():
            return f"its logits differ by more than {100 * share:g} % of their range"
        # A class that is as likely as the best one, within the tolerance, may change places with it.
        lead = ours.max(axis=1) - ours[np.arange(len(ours)), theirs.argmax(axis=1)]
        if contract.problem_type == SINGLE_LABEL and (lead > tolerance).any():
            return "it names other classes"
        return ""


def best_of(trials: list[Trial]) -> Trial | None:
    """Returns the candidate to take; None for plain PyTorch.

    In the same precision, an engine must be 1.05 x as fast as PyTorch. bf16 rounds more, so it must be 1.2 x as fast as
    the best engine in fp32.
    """
    fit = [trial for trial in trials if not trial.objection and trial.ratios]
    exact = max((t for t in fit if t.precision == "fp32"), key=lambda t: t.speedup, default=None)
    exact = exact if exact is not None and exact.speedup >= LEAST_GAIN else None
    rounded = max((t for t in fit if t.precision != "fp32"), key=lambda t: t.speedup, default=None)
    if rounded is not None and rounded.speedup >= LEAST_SPEEDUP * (1.0 if exact is None else exact.speedup):
        return rounded
    return exact


# --- what is remembered -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was measured in an earlier process; `engine` is "torch" if no candidate was better."""

    engine: str
    precision: str
    speedup: float
    difference: float
    images: int


def verdict_key(contract: Contract, precision: str, packages: tuple[str, ...], gpu: str = "") -> dict[str, Any]:
    """Returns what a verdict depends on: weights, machine, versions and what was asked for.

    Args:
        contract: Of a model that was opened from a directory.
        precision: As asked for.
        packages: Of the candidates.
        gpu: Name of the GPU; empty for the CPU.
    """
    assert contract.folder is not None
    return {
        "weights": identity_of_weights(contract.folder),
        "image_size": contract.image_size,
        "head_average": contract.head_average,
        "asked": precision,
        "versions": installed_versions(("deit", *packages)),
        **machine_facts(),
        "gpu": gpu,
        "format": _FORMAT,
    }


def remembered(key: Mapping[str, Any]) -> Verdict | None:
    """Returns the verdict of an earlier process; None without one, and for a file that is damaged or of another key."""
    values = recall(_CACHE, key) or {}
    kinds = {"engine": str, "precision": str, "speedup": float, "difference": float, "images": int}
    if any(type(values.get(name)) is not kind for name, kind in kinds.items()):
        return None
    found = Verdict(**{name: values[name] for name in kinds})
    is_sane = found.precision in TOLERANCES and 0 <= found.speedup < 1e4 and 0 <= found.difference < 1e4
    return found if is_sane else None


def remember(key: Mapping[str, Any], verdict: Verdict) -> None:
    """Keeps a verdict for later processes. Where the cache cannot be written, they measure again."""
    keep(_CACHE, key, asdict(verdict))
