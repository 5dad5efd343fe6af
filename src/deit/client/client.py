"""`Client`: asks a server about images, one request after the other."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import Any

from deit.client.answers import models_of, read_reply
from deit.client.batches import gathered, multipart
from deit.client.conversation import conversation, raise_error_of
from deit.client.encoding import Sent, encode
from deit.client.errors import NoAnswerError, RefusedError, ServerBusyError
from deit.client.options import CLASSIFY_PATH, MODELS_PATH, Options, count
from deit.client.results import ServedPredictions
from deit.client.target import BATCH_BYTES, Target
from deit.client.transport import Background, Question, exchange, open_http
from deit.core.images.image_inputs import is_one_image, items_of
from deit.core.scores.conformal import Coverage


class Client:
    """Classifies images by a `deit serve` elsewhere, with the arguments and results of `Predictor.classify`.

    Repeats a request that was not answered: after 429 and 503, not before the time of Retry-After, and after a
    connection that was refused, or closed before an answer. All else is raised at once. Tells the server how much of
    the deadline is left, so that it computes no answer that comes too late. May be used from several threads.

    Args:
        url: Address of the server, such as "http://127.0.0.1:8080".
        token: Bearer token of the server; None sends none.
        deadline: Seconds in which each request must be answered, all its repetitions included.
        retries: Repetitions of a request at most.
        model: Name of a model of the server; None asks its default.
        version: Version of the model; None asks its newest.
        batch_bytes: Bytes of image files in a request, at most; a larger file travels alone.

    Raises:
        UserError: An argument cannot be used.

    Examples:
        >>> with deit.Client("http://127.0.0.1:8080") as client:  # doctest: +SKIP
        ...     client.classify("bird.jpg")[0].label
        'kingfisher'
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
        self._background = Background(partial(open_http, self._target))

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._background.close()

    def classify(
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
        """Classifies one image or several.

        Args:
            images: See `Predictor.classify`. Paths are read here, and only the content is sent. PIL images and arrays
                are sent as PNG; arrays must hold uint8.
            top_k: See `Predictor.classify`.
            batch_size: Images in a request, at most.
            strict: See `Predictor.classify`.
            coverage: See `Predictor.classify`.
            abstain: See `Predictor.classify`.
            heads: Ask for the predictions of each head (`heads` of the result).
            embedding: Ask for what the class head is given (`embedding` of the result).
            explain: Method of an explanation, such as "relevance" (`explanation` of the result).

        Returns:
            For one image its `ServedPredictions`, a list in descending order of the scores. For several a list of
            these; that of an unreadable image is empty and has an `error`.

        Raises:
            FileNotFoundError: The path of the one image does not exist.
            ImageError: The one image cannot be read, here or by the server.
            RefusedError: The server refuses the request; `ServerBusyError` if it was too busy in all attempts.
            DeadlineError: There is no answer within the deadline.
            UnreachableError: No connection can be made.
            DamagedAnswerError: The answer is incomplete, or not that of a `deit serve`.
            UserError: An argument cannot be used.
        """
        options: dict[str, Any] = {"top_k": top_k, "coverage": coverage, "abstain": abstain}
        options |= {"heads": heads, "embedding": embedding, "explain": explain}
        if is_one_image(images):
            return next(self.classify_each([images], batch_size=batch_size, strict=True, **options))
        return list(self.classify_each(images, batch_size=batch_size, strict=strict, **options))

    def classify_each(
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
    ) -> Iterator[ServedPredictions]:
        """Yields the results of several images in order, request after request; see `classify`."""
        asked = self._target.options(
            top_k=top_k, coverage=coverage, abstain=abstain, heads=heads, embedding=embedding, explain=explain
        )
        sent = map(encode, items_of(images))
        for batch in gathered(sent, count(batch_size, "batch_size"), self._target.batch_bytes):
            for image, result in zip(batch, self._results(batch, asked), strict=True):
                if strict and result.error:
                    raise_error_of(image, result)
                yield result

    def models(self) -> list[dict[str, Any]]:
        """Returns what the server says about its models: names, versions, classes.

        Raises:
            RefusedError: See `classify`, as all others.
        """
        values = self._ask(Question(method="GET", path=MODELS_PATH))
        return models_of(values, self._target.url)

    def _results(self, batch: list[Sent], asked: Options) -> list[ServedPredictions]:
        steps = conversation(batch, self._target.url)
        try:
            images = next(steps)
            while True:
                question = Question(method="POST", path=CLASSIFY_PATH, params=asked.query(), files=multipart(images))
                try:
                    values = self._ask(question)
                except RefusedError as refusal:
                    images = steps.throw(refusal)
                else:
                    images = steps.send(values)
        except StopIteration as end:
            results: list[ServedPredictions] = end.value
            return results

    def _ask(self, question: Question) -> dict[str, Any]:
        """Sends a question until it is answered, or the budget is spent."""
        budget = self._target.budget()
        while True:
            try:
                return read_reply(self._background.run(lambda http: exchange(http, self._target, budget, question)))
            except (ServerBusyError, NoAnswerError) as error:
                time.sleep(budget.pause(error))
