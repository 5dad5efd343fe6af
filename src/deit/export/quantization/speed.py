"""Compares the speed of a quantized model with that of the original, in turns."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from deit.inference.engines.engine import Engine

BATCH_SIZES = (1, 8)
_LEAST_ROUNDS, _MOST_ROUNDS = 5, 50


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a quantized model is.

    Attributes:
        ratios: Name of another engine -> batch size -> its time divided by that of the quantized model, the median of
            rounds.
        milliseconds: Batch size -> time of a call of the quantized model, the median.
        rounds: Rounds that were measured.
    """

    ratios: Mapping[str, Mapping[int, float]]
    milliseconds: Mapping[int, float]
    rounds: int

    @property
    def speedup(self) -> float:
        """The geometric mean over batch sizes of the ratio to the fastest other engine."""
        least = [min(each[size] for each in self.ratios.values()) for size in self.milliseconds]
        return math.exp(statistics.fmean(math.log(each) for each in least))

    def describe(self) -> str:
        """Returns one line, such as "1.31 x (batch 1) and 1.42 x (batch 8) as fast as openvino fp32"."""
        parts = [
            f"{' and '.join(f'{ratio:.2f} x (batch {size})' for size, ratio in by_size.items())} as fast as {name}"
            for name, by_size in self.ratios.items()
        ]
        return ", ".join(parts)


def compare_speed(quantized: Engine, others: Mapping[str, Engine], seconds: float) -> Speed:
    """Measures engines in turns, round after round.

    Args:
        quantized: The engine of the quantized model.
        others: Engines of the original, by name.
        seconds: Time to measure in, roughly; five rounds are done in any case.
    """
    contract = quantized.contract
    assert contract.image_size is not None
    engines = {"": quantized, **others}
    random = np.random.default_rng(0)
    taken: dict[int, dict[str, list[float]]] = {}
    rounds = 0
    for size in BATCH_SIZES:
        pixels = random.standard_normal((size, contract.num_channels, *contract.image_size), np.float32)
        taken[size] = {name: [] for name in engines}
        for engine in engines.values():
            engine(pixels)  # the first call also prepares
        ends = time.monotonic() + seconds / len(BATCH_SIZES)
        rounds = 0
        while rounds < _LEAST_ROUNDS or (rounds < _MOST_ROUNDS and time.monotonic() < ends):
            names = list(engines)
            for name in names[rounds % len(names) :] + names[: rounds % len(names)]:
                before = time.perf_counter()
                engines[name](pixels)
                taken[size][name].append(max(time.perf_counter() - before, 1e-9))
            rounds += 1
    ratios = {
        name: {
            size: statistics.median(b / a for a, b in zip(each[""], each[name], strict=True))
            for size, each in taken.items()
        }
        for name in others
    }
    times = {size: 1e3 * statistics.median(each[""]) for size, each in taken.items()}
    return Speed(ratios=ratios, milliseconds=times, rounds=rounds)
