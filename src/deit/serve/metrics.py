"""Counts what the server does, for Prometheus: where the time of a request goes, sizes of batches, refusals."""

from __future__ import annotations

import os
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from deit.core.errors import WrongStateError

# Of the environment: the folder in which several worker processes keep what they count. prometheus_client reads it when
# it is imported, so it has to be set before a worker process starts.
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

UNKNOWN = "unknown"  # in place of the name of a model that the server does not have
OTHER = "other"  # in place of a reason or a route beyond `_MOST_VALUES`

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_TRIES, _PAUSE = 20, 0.01  # seconds, to read the files of the workers
_MOST_VALUES = 64  # reasons or routes: a label is a time series that Prometheus keeps for weeks


class Metrics:
    """What one application counts, in a registry of its own.

    A model is called "NAME" or "NAME@VERSION" here; its labels are `model` and `version` ("1" where there is none).
    Names that `know` was not told become "unknown", so that clients cannot make labels.

    With several worker processes, which start inside `counting_workers`, every worker answers with the sums over all of
    them; `deit_models_ready` is the smallest number of any worker.

    Raises:
        WrongStateError: The variable was set after `prometheus_client` was imported, which then counts for one process.
    """

    def __init__(self) -> None:
        named = os.environ.get(FOLDER_VARIABLE)
        self._folder = Path(named) if named else None
        self._registry = CollectorRegistry()
        self._lock = threading.Lock()
        self._models: set[str] = set()
        self._reasons: set[str] = set()
        self._routes: set[str] = set()
        self._make()
        if self._folder is None:
            ProcessCollector(registry=self._registry)
        elif os.getpid() not in _processes(self._folder):
            raise WrongStateError(
                f"{FOLDER_VARIABLE} is {self._folder}, but prometheus_client was imported before it was set and would "
                "count for this process alone. Set it before the process starts."
            )

    def _make(self) -> None:
        def seconds(name: str, meaning: str, *labels: str) -> Histogram:
            return Histogram(name, meaning, labels, registry=self._registry, buckets=SECONDS)

        model = ("model", "version")
        self._decoding = seconds("deit_decode_seconds", "Time in which the images of a request are decoded.", *model)
        self._queueing = seconds("deit_queue_seconds", "Time that images wait for their batch to begin.", *model)
        self._assembling = seconds(
            "deit_batch_assembly_seconds", "Time from the first image of a batch to its begin.", *model
        )
        self._computing = seconds("deit_compute_seconds", "Time of a batch in the model.", *model)
        self._answering = seconds("deit_request_seconds", "Time from a request's head to its answer.", "route")
        self._sizes = Histogram(
            "deit_batch_images", "Images of a batch.", model, registry=self._registry, buckets=IMAGES
        )
        self._refusals = Counter(
            "deit_refusals", "Requests that were refused, by reason.", (*model, "reason"), registry=self._registry
        )
        self._answers = Counter(
            "deit_answers", "Answers, by route and status.", ("route", "status"), registry=self._registry
        )
        self._waiting = Gauge(
            "deit_queue_images", "Images that wait now.", model, registry=self._registry, multiprocess_mode="livesum"
        )
        self._ready = Gauge(
            "deit_models_ready",
            "Models that answer now; with several workers, of the worker that has the fewest.",
            registry=self._registry,
            multiprocess_mode="livemin",
        )

    @property
    def shared_folder(self) -> Path | None:
        """The folder that all worker processes share; None for one process."""
        return self._folder

    # --- what happened -----------------------------------------------------------------------------

    def know(self, model: str) -> None:
        """Allows the name of a model as a label, and shows its empty queue."""
        with self._lock:
            self._models.add(model)
        self.waiting(model, 0)

    def decoded(self, model: str, seconds: float) -> None:
        """Records that the images of a request were decoded."""
        self._decoding.labels(*self._model(model)).observe(seconds)

    def queued(self, model: str, seconds: float) -> None:
        """Records how long images waited until their batch began."""
        self._queueing.labels(*self._model(model)).observe(seconds)

    def batched(self, model: str, images: int, seconds: float) -> None:
        """Records a batch: its images, and the time from the first of them to the begin of the batch."""
        self._sizes.labels(*self._model(model)).observe(images)
        self._assembling.labels(*self._model(model)).observe(seconds)

    def computed(self, model: str, seconds: float) -> None:
        """Records how long the model computed a batch."""
        self._computing.labels(*self._model(model)).observe(seconds)

    def waiting(self, model: str, images: int) -> None:
        """Sets how many images wait for a model now."""
        self._waiting.labels(*self._model(model)).set(images)

    def refused(self, model: str, reason: str) -> None:
        """Counts a request that was refused. `model` may be what a client wrote, or empty."""
        self._refusals.labels(*self._model(model), self._bounded(self._reasons, reason)).inc()

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Counts an answer.

        Args:
            route: Path of the route with its parameters in braces, never that of the request.
            status: HTTP status.
            seconds: From the head of the request to the end of the answer.
        """
        name = self._bounded(self._routes, route)
        self._answers.labels(name, str(status) if 100 <= status <= 599 else OTHER).inc()
        self._answering.labels(name).observe(seconds)

    def ready(self, models: int) -> None:
        """Sets how many models answer now."""
        self._ready.set(models)

    def _model(self, model: str) -> tuple[str, str]:
        if model not in self._models:
            return UNKNOWN, ""
        name, _, version = model.partition("@")
        return name, version or "1"

    def _bounded(self, seen: set[str], value: str) -> str:
        with self._lock:
            if value not in seen and len(seen) >= _MOST_VALUES:
                return OTHER
            seen.add(value)
        return value

    # --- what Prometheus reads ---------------------------------------------------------------------

    def text(self, accept: str = "") -> tuple[bytes, str]:
        """Returns everything in a format of Prometheus, and its content type.

        Args:
            accept: `Accept` header of the request; OpenMetrics if it asks for that.
        """
        encode, content_type = choose_encoder(accept)
        registry = self._registry
        if self._folder is not None:
            registry = CollectorRegistry()
            MultiProcessCollector(registry, path=str(self._folder))
            registry.register(_WorkerMemory(self._folder))
        return _encoded(encode, registry), content_type


def _encoded(encode: Callable[[CollectorRegistry], bytes], registry: CollectorRegistry) -> bytes:
    """Encodes the measurements; waits while a worker is making its file, which is empty for a moment."""
    for _ in range(_TRIES):
        try:
            return encode(registry)
        except struct.error:
            time.sleep(_PAUSE)
    return encode(registry)


class _WorkerMemory(Collector):
    """Memory of all workers; `prometheus_client` has no process metrics for several of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterator[Metric]:
        """Yields the sums over the workers that live."""
        found = [_memory(process) for process in _processes(self._folder)]
        memory = [of_one for of_one in found if of_one is not None]
        yield GaugeMetricFamily(
            "process_resident_memory_bytes", "Resident memory of all workers in bytes.", value=sum(memory)
        )
        yield GaugeMetricFamily("deit_workers", "Worker processes that live.", value=len(memory))


def _processes(folder: Path) -> set[int]:
    """Returns the numbers of the processes that count into the folder, without those that were forgotten."""
    numbers = (file.stem.rpartition("_")[2] for file in folder.glob("gauge_live*.db"))
    return {int(number) for number in numbers if number.isdecimal()}


def _memory(process: int) -> int | None:
    """Returns the resident bytes of a process, or None if it does not live or the system does not say."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def counting_workers() -> Iterator[Path]:
    """Lets the worker processes that are started inside the block count together; yields their folder."""
    with tempfile.TemporaryDirectory(prefix="deit-metrics-") as folder:
        before = os.environ.get(FOLDER_VARIABLE)
        os.environ[FOLDER_VARIABLE] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop(FOLDER_VARIABLE)
            if before is not None:
                os.environ[FOLDER_VARIABLE] = before


def forget_worker(process: int, folder: str | os.PathLike[str]) -> None:
    """Takes the gauges of a worker that ended out of the sums. What it counted stays."""
    mark_process_dead(process, os.fspath(folder))
