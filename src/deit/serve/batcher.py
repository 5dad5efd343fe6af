"""Makes batches of images across requests, by size or deadline, and gives them to the model in one thread."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from deit.inference.contract import Array
from deit.serve.refusals import Refusal
from deit.serve.settings import ServeSettings

logger = logging.getLogger(__name__)

_FOREVER = float("inf")

Model = Callable[[Array, bool], Mapping[str, Array]]  # of pixels, and whether features are wanted beside the logits


class ModelError(Exception):
    """The model answered with something else than what it was asked for: a bug of its engine."""


class Measures(Protocol):
    """What takes measurements of batches; seconds and counts."""

    def queued(self, model: str, seconds: float) -> None:
        """Notes the seconds that an image waited for its batch."""
        ...

    def batched(self, model: str, images: int, seconds: float) -> None:
        """Notes the images of a batch, and the seconds from the first of them to the begin of the batch."""
        ...

    def computed(self, model: str, seconds: float) -> None:
        """Notes the seconds of a batch in the model."""
        ...

    def decoded(self, model: str, seconds: float) -> None:
        """Notes the seconds that an image was decoded."""
        ...

    def waiting(self, model: str, images: int) -> None:
        """Notes how many images wait now."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Computed:
    """What the model said of one image.

    Attributes:
        outputs: Name -> (1, ...).
        queued: Seconds that it waited for its batch.
        seconds: Seconds that the model took for the batch.
        merged: Tokens merged by each block; 0 for the whole model.
    """

    outputs: Mapping[str, Array]
    queued: float
    seconds: float
    merged: int = 0


@dataclass(kw_only=True, eq=False)
class _Waiting:
    pixels: Array
    features: bool
    whole: bool
    taken: Callable[[], None]
    future: asyncio.Future[Computed]
    since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Batch:
    entries: list[_Waiting]
    results: list[Mapping[str, Array] | Refusal]
    began: float
    seconds: float


class Batcher:
    """Gathers images until a batch is full or its first image has waited long enough, and asks the model.

    Images count, not requests: a batch never has more than `max_batch` of them, and a request with more is in several.
    All calls of the model are made in one thread, one after another. A full batch is given to that thread while the
    batch before is computed, so that the model does not wait for the event loop. An image whose task was canceled (its
    client is gone, its deadline is over) is dropped before it is computed. A batch that the model fails on is computed
    once more image by image, so that one bad image fails alone.

    Args:
        model: From pixels (n, 3, H, W), and whether features are wanted, to outputs of n rows.
        settings: Size of batches, times.
        name: Of the model, for measurements and the log.
        measures: Takes the measurements.
        merged_model: The model that merges tokens, for times of overload; None without.
        is_overloaded: Whether to use it now.
    """

    def __init__(
        self,
        model: Model,
        settings: ServeSettings,
        *,
        name: str,
        measures: Measures,
        merged_model: Model | None = None,
        is_overloaded: Callable[[], bool] = lambda: False,
    ) -> None:
        self._model, self._merged_model = model, merged_model
        self._settings, self._name, self._measures = settings, name, measures
        self._is_overloaded = is_overloaded
        self._queue: deque[_Waiting] = deque()
        self._changed = asyncio.Event()  # an image arrived, or a batch is answered
        self._given: set[asyncio.Task[None]] = set()  # batches that the thread has
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="deit-model")
        self._loop: asyncio.Task[None] | None = None
        self._busy_since = 0.0

    def start(self) -> None:
        """Begins to make batches, in the running event loop."""
        self._loop = asyncio.get_running_loop().create_task(self._run(), name="deit-batcher")

    @property
    def waiting(self) -> int:
        """Number of decoded images that wait for a batch."""
        return len(self._queue)

    def problem(self) -> str:
        """Returns why the model does not answer any more; empty if it does."""
        busy = self._busy_since
        if busy and (passed := time.monotonic() - busy) > self._settings.stuck_seconds:
            return f"one call of the model has been running for {passed:.0f} s"
        if self._loop is None or self._loop.done():
            return "no batches are made any more"
        return ""

    async def submit(
        self,
        pixels: Array,
        *,
        features: bool = False,
        whole: bool = True,
        first: bool = False,
        taken: Callable[[], None] = lambda: None,
    ) -> Computed:
        """Waits for a batch and returns the answer of the model to one image.

        Args:
            pixels: (1, 3, H, W) float32.
            features: Whether the answer must hold features.
            whole: Whether the model must not merge tokens.
            first: Whether to go in front of all others.
            taken: Called when the model begins with the image; not if the caller was canceled before.

        Raises:
            Refusal: The model failed on this image.
        """
        future: asyncio.Future[Computed] = asyncio.get_running_loop().create_future()
        entry = _Waiting(pixels=pixels, features=features, whole=whole, taken=taken, future=future)
        (self._queue.appendleft if first else self._queue.append)(entry)
        self._changed.set()
        try:
            return await future
        except asyncio.CancelledError:
            with suppress(ValueError):
                self._queue.remove(entry)
            raise

    async def close(self) -> None:
        """Ends the batches; who still waits is refused."""
        ending = [self._loop, *self._given] if self._loop is not None else []
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        self._fail((self._queue.popleft() for _ in range(len(self._queue))), _closed())
        self._thread.shutdown(wait=False, cancel_futures=True)

    # --- batches -------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await self._until_due()
            batch, merged = self._take()
            if batch:
                task = asyncio.get_running_loop().create_task(self._answer(batch, merged), name="deit-batch")
                self._given.add(task)
                task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._given.discard(task)
        self._changed.set()

    async def _until_due(self) -> None:
        """Waits until the next batch is due, see `_seconds_left`."""
        while (left := self._seconds_left()) > 0:
            self._changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), None if left == _FOREVER else left)

    def _seconds_left(self) -> float:
        """Returns how long the next batch may wait for more images.

        A full batch is due at once, and may be given to the thread while it computes another one. Any other batch is
        due when its first image has waited long enough and the thread is idle.
        """
        if not self._queue or len(self._given) > 1:
            return _FOREVER
        if len(self._queue) >= self._settings.max_batch:
            return 0.0
        if self._given:
            return _FOREVER
        return self._queue[0].since + self._settings.max_wait_ms / 1000 - time.monotonic()

    def _take(self) -> tuple[list[_Waiting], bool]:
        """Takes the next batch: images of one size, all for the whole model or all for the one that merges tokens."""
        merging = self._merged_model is not None and self._is_overloaded()
        batch: list[_Waiting] = []
        others: list[_Waiting] = []
        while self._queue and len(batch) < self._settings.max_batch:
            entry = self._queue.popleft()
            if entry.future.done():
                continue
            alike = not batch or (entry.pixels.shape, merging and not entry.whole) == (
                batch[0].pixels.shape,
                merging and not batch[0].whole,
            )
            (batch if alike else others).append(entry)
        self._queue.extendleft(reversed(others))
        return batch, bool(batch) and merging and not batch[0].whole

    async def _answer(self, batch: list[_Waiting], merged: bool) -> None:
        model = self._merged_model if merged and self._merged_model is not None else self._model
        loop = asyncio.get_running_loop()

        def compute() -> _Batch:
            loop.call_soon_threadsafe(_take_out, batch)
            return self._compute(model, batch)

        try:
            self._tell(await loop.run_in_executor(self._thread, compute), self._settings.degrade if merged else 0)
        except asyncio.CancelledError:
            self._fail(batch, _closed())
            raise
        except Exception as error:  # noqa: BLE001  # a bug, which whoever waits reports
            self._fail(batch, error)

    def _tell(self, computed: _Batch, merged: int) -> None:
        """Gives the results to those who wait for them."""
        queued = [computed.began - entry.since for entry in computed.entries]
        if not queued:
            return
        for seconds in queued:
            self._measures.queued(self._name, seconds)
        self._measures.batched(self._name, len(queued), max(queued))
        self._measures.computed(self._name, computed.seconds)
        for entry, result, waited in zip(computed.entries, computed.results, queued, strict=True):
            if entry.future.done():
                continue
            if isinstance(result, Refusal):
                entry.future.set_exception(result)
            else:
                told = Computed(outputs=result, queued=waited, seconds=computed.seconds, merged=merged)
                entry.future.set_result(told)

    def _compute(self, model: Model, batch: list[_Waiting]) -> _Batch:
        """Asks the model about those images of a batch that somebody still waits for; in the thread of the model."""
        entries = [entry for entry in batch if not entry.future.done()]
        began = time.monotonic()
        results = self._results(model, [e.pixels for e in entries], any(e.features for e in entries))
        return _Batch(entries=entries, results=results, began=began, seconds=time.monotonic() - began)

    def _results(self, model: Model, pixels: list[Array], features: bool) -> list[Mapping[str, Array] | Refusal]:
        """Asks the model about a batch, and after a failure about each of its images."""
        self._busy_since = time.monotonic()
        try:
            return list(_rows(model, pixels, features)) if pixels else []
        except Exception as error:  # noqa: BLE001  # whatever a model raises, the other images have answers
            if len(pixels) == 1:
                return [self._failed(error)]
            logger.warning("%s failed on a batch of %d images (%s).", self._name, len(pixels), type(error).__name__)
            return [result for each in pixels for result in self._results(model, [each], features)]
        finally:
            self._busy_since = 0.0

    def _failed(self, error: Exception) -> Refusal:
        reference = uuid.uuid4().hex[:12]
        logger.error("%s failed on an image, reference %s.", self._name, reference, exc_info=error)
        return Refusal(
            500,
            "model_failed",
            f"The model failed on this image. The log of the server says why: reference {reference}.",
        )

    def _fail(self, entries: Iterable[_Waiting], error: Exception) -> None:
        for entry in entries:
            if not entry.future.done():
                entry.future.set_exception(error)


def _take_out(batch: list[_Waiting]) -> None:
    for entry in batch:
        if not entry.future.done():  # else its request has ended, and has given back its room
            entry.taken()


def _closed() -> Refusal:
    return Refusal(503, "draining", "The model was closed before the image was computed.", 1.0)


def _rows(model: Model, pixels: list[Array], features: bool) -> Iterable[Mapping[str, Array]]:
    """Returns the outputs (1, ...) of each image.

    Raises:
        ModelError: The model returns another number of rows; which belongs to which image is unknown then.
    """
    outputs = model(np.concatenate(pixels), features)
    if wrong := {name: len(values) for name, values in outputs.items() if len(values) != len(pixels)}:
        raise ModelError(f"The model was given {len(pixels)} images and returned rows: {wrong}.")
    return [{name: values[i : i + 1] for name, values in outputs.items()} for i in range(len(pixels))]
