"""Measures one cell, or the rate of matrix products, in a process of its own.

Reads orders from standard input, one JSON object a line, and answers each with one line. Ends when the input ends,
which is also what happens when the process that started it is killed.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from deit.core.errors import UserError
from deit.runtime.memory import peak_memory

Order = dict[str, Any]
Run = Callable[[float], Order]

_OF_USER = (UserError, OSError, ModuleNotFoundError, MemoryError)


def main() -> None:
    """Answers orders until the input ends, then leaves without tearing anything down."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")  # for answers alone
    os.dup2(2, 1)  # what libraries print goes to standard error
    run: Run | None = None
    for line in sys.stdin:
        try:
            if run is None:
                told, run = _prepared(json.loads(line))
            else:
                told = run(float(json.loads(line)["seconds"]))
        except Exception as error:  # noqa: BLE001  # the process that asked raises it again
            told = {"error": str(error) or type(error).__name__}
            if not isinstance(error, _OF_USER):
                told["traceback"] = traceback.format_exc()
        channel.write(json.dumps(told | {"peak_bytes": peak_memory()}) + "\n")
        channel.flush()
    os._exit(0)


def _prepared(order: Order) -> tuple[Order, Run]:
    return _rate(order) if order["what"] == "rate" else _cell(order)


def _cell(order: Order) -> tuple[Order, Run]:
    """Opens an engine and gets its first answer; what it returns measures calls for a time."""
    import numpy as np

    from deit.inference.engines.opening import open_engine

    engine = open_engine(order["model"], order["device"], engine=order["engine"], precision=order["precision"])
    contract = engine.contract
    size = contract.image_size or contract.processor.output_size
    shape = (order["batch_size"], contract.num_channels, *size)
    pixels = np.random.default_rng(0).standard_normal(shape, np.float32)
    before = time.perf_counter()
    engine(pixels)
    last = time.perf_counter() - before
    told = {"precision": engine.precision, "device": engine.device, "image_size": list(size)}
    return told, _runs(lambda: engine(pixels), last)


def _runs(call: Callable[[], Any], last: float) -> Run:
    def run(seconds: float) -> Order:
        nonlocal last
        if last < seconds / 3:
            call()  # brings weights and code back into the caches, which other processes have used meanwhile
        latencies: list[float] = []
        while not latencies or sum(latencies) < seconds:
            before = time.perf_counter()
            call()
            latencies.append(time.perf_counter() - before)
        last = latencies[-1]
        return {"latencies": latencies}

    return run


def _rate(order: Order) -> tuple[Order, Run]:
    from deit.inference.measuring.matrix_rate import MatrixRate

    told: Order = {}
    if order.get("model") is not None:
        from deit.inference.measuring.operations import count_operations

        told["operations"] = count_operations(order["model"])
    rate = MatrixRate(order["precision"], order["device"])
    return told, lambda seconds: {"rate": rate.measure(seconds)}


if __name__ == "__main__":
    main()
