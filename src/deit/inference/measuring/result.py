"""Holds what a benchmark measured, and writes it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deit.core.files import replace_folder_content, write_json_atomically
from deit.inference.measuring.cells import Cell
from deit.inference.measuring.machine import BUSY_SHARE, Machine

RESULT_NAME, CHART_NAME = "benchmark.json", "benchmark.png"
PERCENTILES = {50: 1, 95: 20, 99: 100}  # and the calls that each needs to mean something


@dataclass(kw_only=True)
class Timing:
    """Calls of one cell under one condition.

    Attributes:
        latencies: Seconds of each call.
        rounds: Images per second in each round.
    """

    latencies: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)

    def add(self, latencies: Sequence[float], batch_size: int) -> None:
        """Adds the calls of a round.

        Args:
            latencies: Seconds of each call.
            batch_size: Images in a call.
        """
        self.latencies += latencies
        self.rounds.append(batch_size * len(latencies) / max(sum(latencies), 1e-9))

    @property
    def throughput(self) -> float | None:
        """Images per second: the median of the rounds; None without any."""
        return statistics.median(self.rounds) if self.rounds else None

    def percentile(self, percent: int) -> float | None:
        """Returns the latency that so many of 100 calls stay within, in seconds; None if there are too few calls."""
        if len(self.latencies) < PERCENTILES[percent]:
            return None
        return float(np.percentile(self.latencies, percent))

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values, times in milliseconds."""
        percentiles = {f"p{percent}_ms": _ms(self.percentile(percent)) for percent in PERCENTILES}
        return {
            "images_per_second": _rounded(self.throughput),
            **percentiles,
            "calls": len(self.latencies),
            "rounds": [_rounded(each) for each in self.rounds],
        }


@dataclass(kw_only=True)
class CellResult:
    """What one cell showed.

    Attributes:
        cell: The cell.
        first_answer: Seconds from the start of its process to its first answer; Python and all libraries start in them.
        peak_bytes: The most memory that its process had.
        quiet: Calls beside nothing that this program started.
        noisy: Calls beside a spinning neighbor.
        share: Share of the machine's rate of matrix products that the model reached; None if either is unknown.
        error: Why it could not be measured; empty otherwise.
    """

    cell: Cell
    first_answer: float | None = None
    peak_bytes: int = 0
    quiet: Timing = field(default_factory=Timing)
    noisy: Timing = field(default_factory=Timing)
    share: float | None = None
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        values = {**asdict(self.cell), "first_answer_s": _rounded(self.first_answer), "peak_bytes": self.peak_bytes}
        values |= self.quiet.as_dict()
        values["share_of_matrix_rate"] = None if self.share is None else round(self.share, 4)
        if self.noisy.latencies:
            values["noisy"] = self.noisy.as_dict()
        return values | ({"error": self.error} if self.error else {})


@dataclass(kw_only=True)
class Benchmark:
    """What `deit.benchmark` measured.

    Attributes:
        model: What was measured, in words.
        machine: What it was measured on.
        image_size: (height, width) of the pixels; None if no cell was measured.
        cells: One result for each cell, in the order of the measurement.
        operations: Floating-point operations of one image; None if unknown.
        matrix_rates: Precision -> the best rate of matrix products here, in operations per second.
        fair_share: With a neighbor, what is left of a speed if each thread gets as much time; None without one.
        load_average: Of the minute before the measurement; None where the system does not tell.
        other_cores: Cores that other processes used meanwhile; None where the system does not tell.
        in_turns: Whether all cells were measured in turns. If memory does not hold all processes, groups follow each
            other.
        left_out: Precisions that were not measured, as this processor does not multiply in them.
        interrupted: Whether Ctrl-C ended the measurement.
        seconds: Duration of all.
    """

    model: str
    machine: Machine
    image_size: tuple[int, int] | None = None
    cells: list[CellResult] = field(default_factory=list)
    operations: int | None = None
    matrix_rates: dict[str, float] = field(default_factory=dict)
    fair_share: float | None = None
    load_average: float | None = None
    other_cores: float | None = None
    in_turns: bool = True
    left_out: list[str] = field(default_factory=list)
    interrupted: bool = False
    seconds: float = 0.0

    @property
    def busy(self) -> bool | None:
        """Whether other processes used more than a tenth of the cores; None where the system does not tell."""
        return None if self.other_cores is None else self.other_cores > BUSY_SHARE * self.machine.cores

    def notes(self) -> list[str]:
        """Returns sentences that a reader of the figures has to know."""
        notes = []
        if self.other_cores is not None:
            used = f"Other processes used {self.other_cores:.1f} of {self.machine.cores} core(s) meanwhile"
            notes.append(f"{used}: the machine was busy." if self.busy else f"{used}: the machine was quiet.")
        if self.matrix_rates and self.operations:
            rates = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {name}" for name, rate in self.matrix_rates.items())
            notes.append(f"Best matrix products here: {rates}; an image needs {self.operations / 1e9:.2f} GFLOP.")
        calls = [len(each.quiet.latencies) for each in self.cells if each.quiet.latencies]
        if calls and min(calls) < max(PERCENTILES.values()):
            needed = " and ".join(f"{n} for p{percent}" for percent, n in PERCENTILES.items() if n > 1)
            notes.append(f"A dash is a percentile of too few calls ({needed} are needed): give more seconds.")
        if self.fair_share is not None:
            notes.append(
                f"With a neighbor, {100 * self.fair_share:.0f} % of the quiet figure is the fair share: what is left "
                "if each busy thread gets as much time."
            )
        if self.left_out:
            names = ", ".join(self.left_out)
            notes.append(f"Left out: {names}, in which this processor does not multiply. Name it to measure it anyway.")
        if not self.in_turns:
            notes.append("Memory did not hold all processes at once: compare only cells of one batch size closely.")
        if self.interrupted:
            notes.append("Interrupted: these are the figures until then.")
        return notes

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON. Times have their unit in their names; rates are per second."""
        return {
            "model": self.model,
            "machine": asdict(self.machine),
            "image_size": self.image_size,
            "operations_per_image": self.operations,
            "matrix_rates": {name: round(rate) for name, rate in self.matrix_rates.items()},
            "fair_share": _rounded(self.fair_share),
            "load_average": self.load_average,
            "other_cores": _rounded(self.other_cores),
            "busy": self.busy,
            "in_turns": self.in_turns,
            "left_out": self.left_out,
            "interrupted": self.interrupted,
            "seconds": _rounded(self.seconds),
            "cells": [each.as_dict() for each in self.cells],
        }

    def write(self, folder: Path) -> None:
        """Writes `benchmark.json` and `benchmark.png` into a folder; older ones are replaced.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
            WritingError: The folder cannot be written.
        """
        from deit.inference.measuring.chart import draw

        figure = draw(self)
        with replace_folder_content(folder) as temporary:
            write_json_atomically(temporary / RESULT_NAME, self.as_dict())
            figure.savefig(temporary / CHART_NAME, dpi=150)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1e3 * seconds, 3)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
