"""Lists what can be measured here: combinations of an engine, a precision and a batch size."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from deit.core.errors import UserError
from deit.inference.engines.opening import COMPILED, ENGINES

BF16 = "bf16"
BATCH_SIZES = (1, 8, 32)


@dataclass(frozen=True)
class Cell:
    """What is measured by itself.

    Attributes:
        engine: Name of the engine.
        precision: Precision that it is asked for.
        batch_size: Images in a call.
    """

    engine: str
    precision: str
    batch_size: int

    def describe(self) -> str:
        """Returns its name, such as "torch fp32, batch 8"."""
        return f"{self.engine} {self.precision}, batch {self.batch_size}"


def default_engines(device_type: str) -> list[str]:
    """Returns the engines of a kind of device whose packages are installed, without PyTorch's compiler."""
    fitting = {name: kind for name, kind in ENGINES.items() if kind.device_type in (None, device_type)}
    return [name for name, kind in fitting.items() if name != COMPILED and find_spec(kind.package) is not None]


def cells_of(
    engines: Sequence[str] | None,
    precisions: Sequence[str] | None,
    batch_sizes: Sequence[int],
    *,
    device_type: str = "cpu",
    without: Collection[str] = (),
) -> list[Cell]:
    """Returns the cells of a measurement, those of a batch size beside each other.

    Args:
        engines: Names of engines; None for `default_engines`.
        precisions: Precisions; None for all of each engine.
        batch_sizes: Images in a call.
        device_type: "cpu", "cuda", ...
        without: Precisions to leave out.

    Raises:
        UserError: A name is unknown, or nothing is left.
    """
    known = {name: kind.precisions for name, kind in ENGINES.items()}
    for name in engines or ():
        if name not in known:
            raise UserError(f"Unknown engine {name!r}. Known: {', '.join(known)}.")
    all_precisions = list(dict.fromkeys(each for some in known.values() for each in some))
    for precision in precisions or ():
        if precision not in all_precisions:
            raise UserError(f"Unknown precision {precision!r}. Known: {', '.join(all_precisions)}.")
    if not batch_sizes or min(batch_sizes) < 1:
        raise UserError(f"batch_sizes must be numbers of at least 1. Received: {list(batch_sizes)}.")
    cells = [
        Cell(engine, precision, batch_size)
        for batch_size in dict.fromkeys(batch_sizes)
        for engine in dict.fromkeys(engines or default_engines(device_type))
        for precision in known[engine]
        if (precisions is None or precision in precisions) and precision not in without
    ]
    if not cells:
        raise UserError(f"None of these engines has one of these precisions: {', '.join(precisions or ())}.")
    return cells


def check_seconds(seconds: float) -> None:
    """Rejects a time that nothing can be measured in.

    Raises:
        UserError: It is not above zero, or not finite.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise UserError(f"seconds must be a number above 0. Received: {seconds}.")
