"""Answers requests with one opened model: admission, decoding, batches, and what the answers say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from deit.core.errors import ImageError, UserError
from deit.core.processing.batches import read_pixels
from deit.core.processing.reduced_reading import ReducedReader
from deit.inference.contract import FEATURES, Array
from deit.inference.judgement import Judge
from deit.inference.predictor import Predictor
from deit.serve.answers import Answer, Timing, Wants
from deit.serve.batcher import Batcher, Computed, Measures
from deit.serve.decoding import DecodingPool
from deit.serve.refusals import Refusal
from deit.serve.settings import ServeSettings
from deit.serve.tracing import record

Pixels = npt.NDArray[np.uint8] | Array

_RATE_SHARE = 0.2  # of the newest batch in the running mean of the speed


class ServedModel:
    """One model that answers requests.

    Args:
        predictor: The opened model.
        settings: Limits.
        pool: Threads that decode.
        measures: Takes the measurements.
        name: Of the model, in addresses and answers.
        version: Likewise.
        merged: The same model with merged tokens, for times of overload; None without.
    """

    def __init__(
        self,
        predictor: Predictor,
        settings: ServeSettings,
        *,
        pool: DecodingPool,
        measures: Measures,
        name: str = "model",
        version: str = "1",
        merged: Predictor | None = None,
    ) -> None:
        self.predictor, self.settings = predictor, settings
        self.name, self.version = name, version
        self._pool, self._measures = pool, measures
        self._reader = ReducedReader(
            predictor.processor, exact=predictor.exact_decoding, limit=min(settings.max_pixels, 2**26)
        )
        self._judge = lru_cache(maxsize=64)(predictor.judge)
        self._batcher = Batcher(
            partial(_ask, predictor),
            settings,
            name=self.label,
            measures=measures,
            merged_model=None if merged is None else partial(_ask, merged),
            is_overloaded=self._is_overloaded,
        )
        self._admitted = 0
        self._decoded_ahead = asyncio.Semaphore(2 * settings.max_batch + pool.threads)

    # --- life ----------------------------------------------------------------------------------------

    @property
    def label(self) -> str:
        """How measurements call it: "NAME" for version 1, else "NAME@VERSION"."""
        return self.name if self.version == "1" else f"{self.name}@{self.version}"

    @property
    def class_names(self) -> Sequence[str]:
        """The classes in the order of the scores."""
        return self.predictor.label_names

    @property
    def folder(self) -> Path | None:
        """The model directory, if there is one."""
        return self.predictor.engine.contract.folder

    async def warm_up(self) -> None:
        """Begins to answer: runs batches of 1, 2, 4, ... up to the largest through the model, so that none is slow."""
        self._batcher.start()
        size = 1
        while True:
            await asyncio.gather(*(self._batcher.submit(self.canary()) for _ in range(size)))
            if size == self.settings.max_batch:
                return
            size = min(2 * size, self.settings.max_batch)

    async def close(self) -> None:
        """Ends the batches and the thread of the model."""
        await self._batcher.close()

    def canary(self) -> Array:
        """Returns pixels (1, C, H, W) of a gray image, for a question whose answer matters to nobody."""
        contract = self.predictor.engine.contract
        size = contract.image_size or self.predictor.processor.output_size or (224, 224)
        return np.zeros((1, contract.num_channels, *size), np.float32)

    async def check(self) -> None:
        """Sends a gray image through the model, before all that waits.

        Raises:
            Refusal: There is no answer within `ready_seconds`.
        """
        problem = self._batcher.problem()
        if not problem:
            try:
                async with asyncio.timeout(self.settings.ready_seconds):
                    await self._batcher.submit(self.canary(), first=True)
                return
            except TimeoutError:
                problem = f"no answer within {self.settings.ready_seconds:g} s"
        raise Refusal(503, "not_ready", f"The model {self.name} does not answer: {problem}.", 1.0)

    def describe(self) -> dict[str, Any]:
        """Returns what clients may know of the model, as JSON values."""
        contract = self.predictor.engine.contract
        return {
            "name": self.name,
            "version": self.version,
            "classes": list(self.predictor.label_names),
            "image_size": None if contract.image_size is None else list(contract.image_size),
            "heads": list(contract.head_names),
            "problem_type": contract.problem_type,
            "calibrated": self.predictor.calibration is not None,
            "engine": self.predictor.engine.name,
            "precision": self.predictor.engine.precision,
        }

    # --- answers -------------------------------------------------------------------------------------

    async def answer(
        self, images: Sequence[bytes | Pixels], wants: Wants, deadline: float | None = None
    ) -> list[Answer]:
        """Answers a request.

        Whoever awaits this may be canceled, because the client is gone: what was not computed yet is dropped.

        Args:
            images: Files; RGB arrays (1, H, W, 3) uint8; or pixels (1, 3, H, W) float32 that are preprocessed already.
            wants: What to answer.
            deadline: Of `time.monotonic`, after which nobody needs the answer; None for `request_seconds` from now.

        Returns:
            An answer for each image, in order; an image that cannot be read or computed has an error in its place.

        Raises:
            Refusal: The queue is full, there are too many images, the model cannot give what is asked for, or the
                deadline is over.
        """
        judge = self._checked(wants)
        latest = time.monotonic() + self.settings.request_seconds
        until = latest if deadline is None else min(deadline, latest)
        with self._admit(len(images)) as leave:
            try:
                async with asyncio.timeout_at(until):  # the clock of the event loop is the monotonic one
                    return list(await asyncio.gather(*(self._one(image, wants, judge, leave) for image in images)))
            except TimeoutError as error:
                raise Refusal(504, "deadline", "The deadline was over before the answer was computed.") from error

    def _checked(self, wants: Wants) -> Judge | None:
        if wants.top_k < 1:
            raise Refusal(400, "bad_option", f"top_k must be at least 1. Received: {wants.top_k}.")
        try:
            return self._judge(wants.coverage, abstain=wants.abstain)
        except UserError as error:
            raise Refusal(400, "bad_option", str(error)) from error

    @contextmanager
    def _admit(self, count: int) -> Iterator[Callable[[], None]]:
        """Takes room in the queue; yields what gives back that of one image, as soon as it waits no longer."""
        if not 0 < count <= self.settings.max_images:
            raise Refusal(
                413 if count else 400,
                "too_many_images" if count else "no_image",
                f"Send 1 to {self.settings.max_images} images in a request. Received: {count}.",
            )
        if self._admitted + count > self.settings.max_queue:
            raise Refusal(
                self.settings.full_status,
                "queue_full",
                f"{self._admitted} images wait, and {self.settings.max_queue} may. Try again later.",
                1.0,
            )
        left = count
        self._enter(count)

        def leave() -> None:
            nonlocal left
            left -= 1
            self._enter(-1)

        try:
            yield leave
        finally:
            self._enter(-left)

    def _enter(self, count: int) -> None:
        self._admitted += count
        self._measures.waiting(self.label, self._admitted)

    def _is_overloaded(self) -> bool:
        return self._admitted >= self.settings.degrade_at * self.settings.max_queue

    async def _one(self, image: bytes | Pixels, wants: Wants, judge: Judge | None, leave: Callable[[], None]) -> Answer:
        await self._decoded_ahead.acquire()
        holds = True

        def taken() -> None:
            nonlocal holds
            holds = False
            self._decoded_ahead.release()
            leave()

        try:
            started = time.monotonic()
            pixels = await self._pixels(image)
            decoded = time.monotonic()
            features = wants.embedding or (judge is not None and judge.needs_features)
            computed = await self._batcher.submit(pixels, features=features, whole=wants.is_promise, taken=taken)
            _trace(started, decoded, computed)
            return self._told(computed, wants, judge, decoded - started)
        except Refusal as refusal:
            return Answer(error=refusal)
        finally:
            if holds:
                self._decoded_ahead.release()

    async def _pixels(self, image: bytes | Pixels) -> Array:
        if not isinstance(image, bytes) and image.dtype == np.float32:
            return image.astype(np.float32, copy=False)
        if isinstance(image, bytes) and len(image) > self.settings.max_image_bytes:
            raise Refusal(
                413, "image_too_large", f"The image has {len(image)} bytes, and {self.settings.max_image_bytes} may be."
            )
        try:
            return await self._pool.run(partial(self._read, image))
        except ImageError as error:
            raise Refusal(422, "unreadable_image", str(error)) from error

    def _read(self, image: bytes | Pixels) -> Array:
        started = time.monotonic()
        source = image if isinstance(image, bytes) else Image.fromarray(image[0])
        pixels = read_pixels(source, self.predictor.processor, self._reader)
        self._measures.decoded(self.label, time.monotonic() - started)
        return pixels

    def _told(self, computed: Computed, wants: Wants, judge: Judge | None, decode: float) -> Answer:
        outputs = computed.outputs
        first = next(iter(outputs))
        features = outputs.get(FEATURES)
        row = None if features is None else features[0]
        judge = None if computed.merged else judge  # what was calibrated is the whole model
        classified = self.predictor.classified("", outputs[first], row, wants.top_k, judge)
        if classified.error:
            raise Refusal(500, "no_number", "The model answers with NaN or infinity. Its weights may be damaged.")
        return Answer(
            classified=classified,
            outputs={name: values[0] for name, values in outputs.items()},
            scores=self.predictor.scores(outputs[first])[0],
            embedding=row if wants.embedding else None,
            calibrated=judge is not None,
            merged=computed.merged,
            timing=Timing(decode=decode, queue=computed.queued, compute=computed.seconds),
        )


def _trace(started: float, decoded: float, computed: Computed) -> None:
    begun = decoded + computed.queued
    record("decode", started, decoded)
    record("queue", decoded, begun)
    record("compute", begun, begun + computed.seconds)


def _ask(predictor: Predictor, pixels: Array, features: bool) -> Mapping[str, Array]:
    engine: Any = predictor.engine
    answers: Mapping[str, Array] = (getattr(engine, "with_features", engine) if features else engine)(pixels)
    return answers
