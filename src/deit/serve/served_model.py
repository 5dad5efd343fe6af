"""Answers requests with one opened model: admission, decoding, batches, results."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from deit.core.errors import UserError
from deit.core.processing.batches import read_pixels
from deit.core.processing.reduced_reading import ReducedReader
from deit.inference.contract import Array
from deit.inference.judgement import Judge
from deit.inference.predictor import Predictor
from deit.serve.answering.admission import Room
from deit.serve.answering.explaining import Explainer
from deit.serve.answering.results import result_of
from deit.serve.answers import Answer, Wants
from deit.serve.batcher import Batcher, Computed, Measures
from deit.serve.decoding import DecodingPool
from deit.serve.refusals import Refusal
from deit.serve.settings import ServeSettings
from deit.serve.tracing import record

Pixels = npt.NDArray[np.uint8] | Array

logger = logging.getLogger(__name__)

_JUDGES = 64  # that are kept, each with thresholds of its own
_GIVEN = "the given bytes"  # what the reading code calls an image that has no path


def label_of(name: str, version: str) -> str:
    """Returns how messages and metrics call a model: "NAME" for version 1, else "NAME@VERSION"."""
    return name if version == "1" else f"{name}@{version}"


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
        self._reader = ReducedReader(predictor.processor, exact=predictor.exact_decoding, limit=settings.max_pixels)
        self._judge = lru_cache(maxsize=_JUDGES)(predictor.judge)
        waiting = partial(measures.waiting, self.label)
        self._room = Room(settings.max_queue, settings.full_status, "queue_full", on_change=waiting)
        self._explainer = Explainer(predictor.engine, settings.explain_queue, settings.full_status)
        self._batcher = Batcher(
            partial(_ask, predictor),
            settings,
            name=self.label,
            measures=measures,
            merged_model=None if merged is None else partial(_ask, merged),
            is_overloaded=self._is_overloaded,
        )
        self._merging = False
        # Decoded images are larger than their files: only those of the next batches are in memory.
        self._decoded_ahead = asyncio.Semaphore(2 * settings.max_batch + pool.threads)

    # --- what it is ----------------------------------------------------------------------------------

    @property
    def label(self) -> str:
        """How measurements call it."""
        return label_of(self.name, self.version)

    @property
    def class_names(self) -> Sequence[str]:
        """The classes in the order of the scores."""
        return self.predictor.label_names

    @property
    def folder(self) -> Path | None:
        """The model directory, if there is one."""
        return self.predictor.engine.contract.folder

    def describe(self) -> dict[str, Any]:
        """Returns what clients may know of the model, as JSON values."""
        contract = self.predictor.engine.contract
        return {
            "name": self.name,
            "version": self.version,
            "classes": list(self.predictor.label_names),
            "image_size": None if contract.image_size is None else list(contract.image_size),
            "preprocessing": self._geometry(),
            "heads": list(contract.head_names),
            "problem_type": contract.problem_type,
            "calibrated": self.predictor.calibration is not None,
            "engine": self.predictor.engine.name,
            "precision": self.predictor.engine.precision,
        }

    def _geometry(self) -> dict[str, Any]:
        """Returns which part of an image the model sees: the sides it is resized to, and the size of its center."""
        processor = self.predictor.processor
        crop = processor.output_size if processor.do_center_crop else None
        resize = dict(processor.size) if processor.do_resize else None
        return {"resize": resize, "crop": None if crop is None else list(crop)}

    # --- life ----------------------------------------------------------------------------------------

    async def warm_up(self) -> None:
        """Begins to answer: runs batches of 1, 2, 4, ... up to the largest through the model, so that none is slow.

        Raises:
            Refusal: The model fails on a gray image.
        """
        self._batcher.start()
        size = 1
        while True:
            await asyncio.gather(*(self._batcher.submit(self._gray(), features=True) for _ in range(size)))
            if size == self.settings.max_batch:
                return
            size = min(2 * size, self.settings.max_batch)

    async def close(self) -> None:
        """Ends the batches and the threads of the model."""
        await self._batcher.close()
        self._explainer.close()

    def problem(self) -> str:
        """Returns why the model does not answer any more; empty if it does."""
        return self._batcher.problem()

    async def check(self) -> None:
        """Sends a gray image through the model, in front of all that waits.

        Raises:
            Refusal: There is no answer within `ready_seconds`.
        """
        problem = self._batcher.problem()
        if not problem:
            try:
                async with asyncio.timeout(self.settings.ready_seconds):
                    await self._batcher.submit(self._gray(), first=True)
                return
            except TimeoutError:
                problem = f"no answer within {self.settings.ready_seconds:g} s"
        raise Refusal(503, "not_ready", f"The model {self.label} does not answer: {problem}.", 1.0)

    def _gray(self) -> Array:
        """Returns pixels (1, C, H, W) of a gray image, for a question whose answer matters to nobody."""
        contract = self.predictor.engine.contract
        size = contract.image_size or self.predictor.processor.output_size or (224, 224)
        return np.zeros((1, contract.num_channels, *size), np.float32)

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
        judge = self._checked(wants, len(images))
        latest = time.monotonic() + self.settings.request_seconds
        until = latest if deadline is None else min(deadline, latest)
        with ExitStack() as rooms:
            leave = rooms.enter_context(self._room.admit(len(images)))
            if wants.explain:
                rooms.enter_context(self._explainer.room.admit(len(images)))
            try:
                async with asyncio.timeout_at(until):  # the clock of the event loop is the monotonic one
                    return list(await asyncio.gather(*(self._one(image, wants, judge, leave) for image in images)))
            except TimeoutError as error:
                raise Refusal(504, "deadline", "The deadline was over before the answer was computed.") from error

    def _checked(self, wants: Wants, count: int) -> Judge | None:
        """Checks a request; returns what judges its answers, None for raw scores."""
        if count < 1:
            raise Refusal(400, "no_image", "The request holds no image.")
        if count > self.settings.images_per_request:
            text = f"A request may hold {self.settings.images_per_request} images. Received: {count}."
            raise Refusal(413, "too_many_images", text)
        if wants.top_k < 1:
            raise Refusal(400, "bad_option", f"top_k must be at least 1. Received: {wants.top_k}.")
        if wants.explain:
            self._explainer.check(wants.explain, count)
        try:
            return self._judge(wants.coverage, abstain=wants.abstain)
        except UserError as error:  # a client need not know where the model lies
            text = str(error).replace(str(self.folder), f"The model {self.label}") if self.folder else str(error)
            raise Refusal(400, "bad_option", text) from error

    def _is_overloaded(self) -> bool:
        """Whether tokens are merged now: from a share of the queue on, until half of it is left."""
        limit = self.settings.degrade_at
        self._merging = self._room.share >= (limit / 2 if self._merging else limit)
        return self._merging

    async def _one(self, image: bytes | Pixels, wants: Wants, judge: Judge | None, leave: Callable[[], None]) -> Answer:
        """Answers one image; whatever happens to it, the others of the request have their answers."""
        try:
            return await self._answered(image, wants, judge, leave)
        except Refusal as refusal:
            return Answer(error=refusal)
        except Exception as error:  # a bug, which the log shows and the client does not see
            reference = uuid.uuid4().hex[:12]
            logger.error("An image failed, reference %s.", reference, exc_info=error)
            text = f"The server failed on this image. Its log says why: reference {reference}."
            return Answer(error=Refusal(500, "server_error", text))

    async def _answered(
        self, image: bytes | Pixels, wants: Wants, judge: Judge | None, leave: Callable[[], None]
    ) -> Answer:
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
        finally:
            if holds:
                self._decoded_ahead.release()
        _trace(started, decoded, computed)
        tell = partial(result_of, self.predictor, computed, wants, judge, decoded - started)
        answer = tell() if judge is None else await self._pool.run(tell)
        if not wants.explain:
            return answer
        begun = time.monotonic()
        explanation = await self._explainer.explain(pixels, wants.explain, scored=wants.explain_score)
        record("explain", begun, time.monotonic())
        return answer.explained(explanation)

    async def _pixels(self, image: bytes | Pixels) -> Array:
        if not isinstance(image, bytes) and image.dtype == np.float32:
            return image.astype(np.float32, copy=False)
        if isinstance(image, bytes) and len(image) > self.settings.max_image_bytes:
            text = f"An image may have {self.settings.max_image_bytes} bytes. Received: {len(image)}."
            raise Refusal(413, "image_too_large", text)
        try:
            return await self._pool.run(partial(self._read, image))
        except UserError as error:
            raise Refusal(422, "unreadable_image", str(error).replace(_GIVEN, "The image", 1)) from error

    def _read(self, image: bytes | Pixels) -> Array:
        started = time.monotonic()
        source = image if isinstance(image, bytes) else Image.fromarray(image[0])
        pixels = read_pixels(source, self.predictor.processor, self._reader)
        self._measures.decoded(self.label, time.monotonic() - started)
        return pixels


def _trace(started: float, decoded: float, computed: Computed) -> None:
    begun = decoded + computed.queued
    record("decode", started, decoded)
    record("queue", decoded, begun)
    record("compute", begun, begun + computed.seconds)


def _ask(predictor: Predictor, pixels: Array, features: bool) -> Mapping[str, Array]:
    engine: Any = predictor.engine
    answers: Mapping[str, Array] = (getattr(engine, "with_features", engine) if features else engine)(pixels)
    return answers
