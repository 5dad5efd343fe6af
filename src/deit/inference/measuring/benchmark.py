"""Measures a model over engines, precisions and batch sizes, in turns."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from deit.core.errors import UserError
from deit.core.processing.batches import usable_cores
from deit.inference.measuring.cells import BATCH_SIZES, BF16, cells_of, check_seconds
from deit.inference.measuring.machine import OtherWork, this_machine
from deit.inference.measuring.processes import CellError, MeasuringProcess, fair_share, spinning_neighbor
from deit.inference.measuring.result import Benchmark, CellResult, Timing
from deit.runtime.devices import multiplies_bf16, resolve
from deit.runtime.memory import free_memory
from deit.runtime.threads import usable_threads

DEFAULT_VARIANT = "deit-small-distilled-patch16-224"

_ROUNDS = 5  # that the time is divided by
_LEAST_TURN = 0.02  # seconds
_OPENING_SECONDS = 300.0  # a compiler may need a minute
_PATIENCE = 300.0  # for one turn of a large batch on a slow machine
_SPARE_MEMORY = 1.5  # times the largest process so far, before another one is started

Progress = Callable[[str, int, int], None]


def benchmark(
    model: str | os.PathLike[str] | None = None,
    *,
    engines: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seconds: float = 60.0,
    noisy: bool = False,
    threads: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Benchmark:
    """Measures how fast a model answers here: latency, throughput, time to the first answer, memory.

    Each combination of an engine, a precision and a batch size is a cell with a process of its own; all have the same
    number of threads. The cells take turns, round after round, so that a drift of the machine reaches all alike. The
    rate of matrix products takes its turn too. Ctrl-C ends the measurement; the result says so, and holds what was
    measured until then.

    Args:
        model: See `open_engine`; None for the small distilled DeiT with random weights.
        engines: Names of engines; None for all that are installed, without torch-compiled, which needs a minute to
            open each cell.
        precisions: Precisions; None for all of each engine, without bf16 on a CPU that does not multiply it.
        batch_sizes: Images in a call.
        seconds: Time to measure in, beside the time that engines need to open. The first round may take twice as long;
            cells that it does not reach then say so.
        noisy: Measure each cell also beside a process that computes all the time.
        threads: Threads of each engine; by default OMP_NUM_THREADS, or one for each core that may be used.
        device: "cpu", "cuda", ...
        progress: Called with what is done now, and the done and the total number of steps.

    Raises:
        OSError: See `open_engine`.
        UserError: See `open_engine`; or an argument is wrong, or no cell could be measured.

    Examples:
        >>> import deit
        >>> result = deit.benchmark("runs/flowers", batch_sizes=[1, 8], seconds=20)  # doctest: +SKIP
        >>> for cell in result.cells:  # doctest: +SKIP
        ...     print(cell.cell.describe(), cell.quiet.throughput)
    """
    check_seconds(seconds)
    threads = _threads(threads)
    place = resolve(device).device
    left_out = [BF16] if precisions is None and not multiplies_bf16(place) else []
    cells = cells_of(engines, precisions, batch_sizes, device_type=place.type, without=left_out)
    result = Benchmark(
        left_out=left_out, model=_name(model), machine=this_machine(threads), load_average=_load_average()
    )
    if noisy:
        result.fair_share = fair_share(threads, usable_cores())
    result.cells = [CellResult(cell=cell) for cell in cells]
    measured = _measured(result, model, threads, device, seconds, noisy, progress or (lambda *_: None))
    if not measured.interrupted and not any(each.quiet.latencies for each in measured.cells):
        raise UserError(f"Nothing could be measured. {result.cells[0].cell.describe()}: {result.cells[0].error}")
    return measured


def _measured(
    result: Benchmark,
    model: str | os.PathLike[str] | None,
    threads: int,
    device: str,
    seconds: float,
    noisy: bool,
    progress: Progress,
) -> Benchmark:
    """Fills a result; Ctrl-C ends that."""
    began, others = time.monotonic(), OtherWork()
    with _measured_model(model) as path:
        measurement = _Measurement(result, str(path), threads, device, seconds, noisy, progress)
        try:
            measurement.run()
        except KeyboardInterrupt:
            result.interrupted = True
        finally:
            measurement.close()
    result.other_cores = others.cores()
    result.seconds = time.monotonic() - began
    return result


class _Measurement:
    """The work of one benchmark, and the processes that do it."""

    def __init__(
        self, result: Benchmark, model: str, threads: int, device: str, seconds: float, noisy: bool, progress: Progress
    ) -> None:
        self.result = result
        self.model = model
        self.threads = threads
        self.device = device
        self.seconds = seconds
        self.noisy = noisy
        self.progress = progress
        self._open: dict[int, MeasuringProcess] = {}  # number of the cell -> its process
        self._rates: dict[str, MeasuringProcess] = {}
        self._rate_rounds: dict[str, list[float]] = {}
        self._cell_rates: dict[int, list[tuple[float, float]]] = {}

    def run(self) -> None:
        """Measures all cells, in as few groups as memory allows."""
        self._open_rates()
        cells = self.result.cells
        waiting = list(range(len(cells)))
        while waiting:
            opened = self._open_group(waiting)
            waiting = waiting[opened:]
            self.result.in_turns = self.result.in_turns and not waiting
            if self._open:
                self._measure(self.seconds * opened / len(cells))
            self._close_cells()

    def close(self) -> None:
        """Ends all processes."""
        self._close_cells()
        for process in self._rates.values():
            process.close()
        self._rates.clear()
        self._conclude()

    def _start(self, order: dict[str, Any]) -> MeasuringProcess:
        return MeasuringProcess(order | {"device": self.device}, threads=self.threads, most_seconds=_OPENING_SECONDS)

    def _open_rates(self) -> None:
        model: str | None = self.model
        for precision in dict.fromkeys(each.cell.precision for each in self.result.cells):
            if precision not in ("fp32", "bf16"):
                continue
            self.progress(f"matrix products in {precision}", 0, len(self.result.cells))
            process = self._start({"what": "rate", "precision": precision, "model": model})
            self._rates[precision] = process
            if model is not None:
                self.result.operations, model = process.told["operations"], None

    def _open_group(self, waiting: Sequence[int]) -> int:
        """Opens processes for cells until memory is short; returns for how many cells that was tried."""
        largest = 0
        for done, number in enumerate(waiting):
            result = self.result.cells[number]
            free = free_memory()
            if self._open and free and free < _SPARE_MEMORY * largest:
                return done
            self.progress(f"opening {result.cell.describe()}", number, len(self.result.cells))
            cell = result.cell
            order = {"what": "cell", "model": self.model, "engine": cell.engine, "precision": cell.precision}
            try:
                process = self._start(order | {"batch_size": cell.batch_size})
            except CellError as error:
                result.error = str(error)
                continue
            self._open[number] = process
            result.first_answer = process.seconds
            result.peak_bytes = process.told["peak_bytes"]
            self.result.image_size = tuple(process.told["image_size"])
            largest = max(largest, result.peak_bytes)
        return len(waiting)

    def _measure(self, seconds: float) -> None:
        """Measures the open cells in turns for a time."""
        conditions = (False, True) if self.noisy else (False,)
        turn = seconds / (_ROUNDS * (len(self._open) * len(conditions) + len(self._rates)))
        ends = time.monotonic() + seconds
        rounds = 0
        while self._open and time.monotonic() < ends:
            rates = self._measure_rates(turn)
            for beside in conditions:
                with spinning_neighbor() if beside else nullcontext():
                    for number in self._order(rounds):
                        self._measure_cell(number, turn, rates, beside=beside)
                        if time.monotonic() > ends + (0 if rounds else seconds):
                            return self._note_unmeasured()
            rounds += 1

    def _note_unmeasured(self) -> None:
        for number in self._open:
            if not self.result.cells[number].quiet.latencies:
                self.result.cells[number].error = "no time was left. Give more seconds"

    def _order(self, rounds: int) -> list[int]:
        numbers = list(self._open)
        first = rounds % max(len(numbers), 1)
        return numbers[first:] + numbers[:first]

    def _measure_rates(self, turn: float) -> dict[str, float]:
        found = {}
        for precision, process in self._rates.items():
            found[precision] = float(process.ask({"seconds": max(turn, _LEAST_TURN)}, _PATIENCE)["rate"])
            self._rate_rounds.setdefault(precision, []).append(found[precision])
        return found

    def _measure_cell(self, number: int, turn: float, rates: dict[str, float], *, beside: bool) -> None:
        result = self.result.cells[number]
        name = f"{result.cell.describe()}{', beside a neighbor' if beside else ''}"
        self.progress(name, number, len(self.result.cells))
        try:
            told = self._open[number].ask({"seconds": max(turn, _LEAST_TURN)}, _PATIENCE)
        except CellError as error:
            result.error = str(error)
            self._open.pop(number).close()
            return
        result.peak_bytes = max(result.peak_bytes, told["peak_bytes"])
        timing: Timing = result.noisy if beside else result.quiet
        timing.add(told["latencies"], result.cell.batch_size)
        if not beside and result.cell.precision in rates:
            pair = timing.rounds[-1], rates[result.cell.precision]
            self._cell_rates.setdefault(number, []).append(pair)

    def _close_cells(self) -> None:
        for process in self._open.values():
            process.close()
        self._open.clear()

    def _conclude(self) -> None:
        """Computes what needs all rounds: a share compares figures of the same round."""
        self.result.matrix_rates = {name: statistics.median(each) for name, each in self._rate_rounds.items()}
        if self.result.operations:
            for number, pairs in self._cell_rates.items():
                shares = [speed * self.result.operations / rate for speed, rate in pairs]
                self.result.cells[number].share = statistics.median(shares)


def _threads(threads: int | None) -> int:
    if threads is None:
        named = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
        threads = int(named) if named.isdigit() and int(named) else usable_threads()
    if threads < 1:
        raise UserError(f"threads must be at least 1. Received: {threads}.")
    return threads


def _load_average() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _name(model: str | os.PathLike[str] | None) -> str:
    return f"{DEFAULT_VARIANT} with random weights" if model is None else str(model)


@contextmanager
def _measured_model(model: str | os.PathLike[str] | None) -> Iterator[str | os.PathLike[str]]:
    """Yields what to open: the model, once it is known to be there, or a folder with random weights."""
    if model is not None:
        from deit.models.weights.model_names import find_model
        from deit.models.weights.torchvision import torchvision_name

        if not torchvision_name(model):
            find_model(model)
        yield model
        return
    import torch

    from deit.core.config.config import DeiTConfig
    from deit.core.processing.image_processor import DeiTImageProcessor
    from deit.core.variants import variant_config
    from deit.models.deit import DeiTForImageClassificationWithTeacher

    with tempfile.TemporaryDirectory(prefix="deit-benchmark-") as name, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = variant_config(DEFAULT_VARIANT, num_labels=1000)
        assert isinstance(config, DeiTConfig)
        DeiTForImageClassificationWithTeacher(config).save_pretrained(name)
        DeiTImageProcessor().save_pretrained(name)
        yield Path(name)
