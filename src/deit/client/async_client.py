"""`AsyncClient`: asks a server about images, several requests at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Any

from deit.client.answers import models_of, read_reply
from deit.client.batches import Gathering, multipart
from deit.client.conversation import conversation, raise_error_of
from deit.client.encoding import Sent, encode
from deit.client.errors import NoAnswerError, RefusedError, ServerBusyError
from deit.client.options import CLASSIFY_PATH, MODELS_PATH, Options, count
from deit.client.results import ServedPredictions
from deit.client.target import BATCH_BYTES, Target
from deit.client.transport import Question, exchange, open_http
from deit.core.images.image_inputs import is_one_image, items_of
from deit.core.scores.conformal import Coverage


class AsyncClient:
    """The same as `Client` for asyncio, with several requests on their way at a time.

    Args:
        url: See `Client`.
        token: See `Client`.
        deadline: See `Client`. It begins when a request is sent, not while it waits for others.
        retries: See `Client`.
        model: See `Client`.
        version: See `Client`.
        batch_bytes: See `Client`.
        concurrency: Requests on their way at a time, all calls together.

    Raises:
        UserError: An argument cannot be used.

    Examples:
        >>> async def label() -> str:
        ...     async with deit.AsyncClient("http://127.0.0.1:8080") as client:
        ...         return (await client.classify("bird.jpg"))[0].label
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        deadline: float = 60.0,
        retries: int = 5,
        model: str | None = None,
        version: str | None = None,
        batch_bytes: int = BATCH_BYTES,
        concurrency: int = 8,
    ) -> None:
        self._target = Target(
            url=url,
            token=token,
            deadline=deadline,
            retries=retries,
            model=model,
            version=version,
            batch_bytes=batch_bytes,
        )
        self._concurrency = count(concurrency, "concurrency")
        self._slots = asyncio.Semaphore(concurrency)
        self._http = open_http(self._target, connections=concurrency)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def classify(
        self,
        images: Any,
        *,
        top_k: int = 5,
        batch_size: int = 16,
        strict: bool = False,
        coverage: float | Coverage | None = None,
        abstain: bool = False,
        heads: bool = False,
        embedding: bool = False,
        explain: str | None = None,
    ) -> Any:
        """Classifies one image or several: arguments, results and errors are those of `Client.classify`."""
        asked = self._target.options(
            top_k=top_k, coverage=coverage, abstain=abstain, heads=heads, embedding=embedding, explain=explain
        )
        if is_one_image(images):
            results = [result async for result in self._each([images], asked, batch_size, strict=True)]
            return results[0]
        return [result async for result in self._each(images, asked, batch_size, strict=strict)]

    async def classify_each(
        self,
        images: Iterable[Any],
        *,
        top_k: int = 5,
        batch_size: int = 16,
        strict: bool = False,
        coverage: float | Coverage | None = None,
        abstain: bool = False,
        heads: bool = False,
        embedding: bool = False,
        explain: str | None = None,
    ) -> AsyncIterator[ServedPredictions]:
        """Yields the results of several images in order; at most `concurrency` requests are ahead of the reader."""
        asked = self._target.options(
            top_k=top_k, coverage=coverage, abstain=abstain, heads=heads, embedding=embedding, explain=explain
        )
        async for result in self._each(images, asked, batch_size, strict=strict):
            yield result

    async def models(self) -> list[dict[str, Any]]:
        """Returns what the server says about its models; see `Client.models`."""
        return models_of(await self._ask(Question(method="GET", path=MODELS_PATH)), self._target.url)

    async def _each(
        self, images: Iterable[Any], asked: Options, batch_size: int, *, strict: bool
    ) -> AsyncIterator[ServedPredictions]:
        ahead: deque[tuple[list[Sent], asyncio.Task[list[ServedPredictions]]]] = deque()
        batches = self._batches(images, count(batch_size, "batch_size"))
        try:
            more = True
            while more or ahead:
                while more and len(ahead) < self._concurrency:
                    batch = await anext(batches, None)
                    if batch is None:
                        more = False
                    else:
                        ahead.append((batch, asyncio.create_task(self._results(batch, asked))))
                if not ahead:
                    return
                batch, task = ahead[0]
                results = await task
                ahead.popleft()
                for image, result in zip(batch, results, strict=True):
                    if strict and result.error:
                        raise_error_of(image, result)
                    yield result
        finally:
            for _, task in ahead:
                task.cancel()
            await asyncio.gather(*(task for _, task in ahead), return_exceptions=True)

    async def _batches(self, images: Iterable[Any], batch_size: int) -> AsyncIterator[list[Sent]]:
        gathering = Gathering(batch_size, self._target.batch_bytes)
        for item in items_of(images):
            if ready := gathering.add(await asyncio.to_thread(encode, item)):
                yield ready
        if ready := gathering.rest():
            yield ready

    async def _results(self, batch: list[Sent], asked: Options) -> list[ServedPredictions]:
        steps = conversation(batch, self._target.url)
        try:
            images = next(steps)
            while True:
                question = Question(method="POST", path=CLASSIFY_PATH, params=asked.query(), files=multipart(images))
                try:
                    values = await self._ask(question)
                except RefusedError as refusal:
                    images = steps.throw(refusal)
                else:
                    images = steps.send(values)
        except StopIteration as end:
            results: list[ServedPredictions] = end.value
            return results

    async def _ask(self, question: Question) -> dict[str, Any]:
        """Sends a question until it is answered, or the budget is spent."""
        async with self._slots:
            budget = self._target.budget()
            while True:
                try:
                    return read_reply(await exchange(self._http, self._target, budget, question))
                except (ServerBusyError, NoAnswerError) as error:
                    await asyncio.sleep(budget.pause(error))
