"""Reads the answers of a server, and says plainly what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from deit.client.batches import sent_name
from deit.client.budget import retry_after
from deit.client.encoding import Sent
from deit.client.errors import DamagedAnswerError, DeadlineError, RefusedError, ServerBusyError
from deit.client.results import ServedPredictions, read_origin, read_result
from deit.core.errors import UserError, shown

# An answer with embeddings and maps of all blocks for 64 images has about 10 MiB.
MOST_ANSWER_BYTES = 256 * 2**20

# What a server says of a request because of its images: too large, too many, or none can be read.
FAULTS_OF_IMAGES = (413, 422)

_NO_DEIT = "Is it the address of a `deit serve`?"


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The answer of a server as it came.

    Attributes:
        url: What was asked.
        status: HTTP status.
        headers: Of the answer; their names are found in any case.
        content: Its body.
        with_token: Whether a token was sent.
    """

    url: str
    status: int
    headers: Mapping[str, str]
    content: bytes
    with_token: bool

    @property
    def is_json(self) -> bool:
        """Whether it says that it is JSON."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower() == "application/json"

    def values(self) -> dict[str, Any]:
        """Returns the JSON object of the body.

        Raises:
            DamagedAnswerError: It is none.
        """
        if not self.is_json:
            kind = self.headers.get("Content-Type", "no type")
            raise DamagedAnswerError(f"{self.url} answers with {shown(kind)}, not with JSON. {_NO_DEIT}")
        try:
            values = json.loads(self.content.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise DamagedAnswerError(f"The answer of {self.url} is damaged: it is no JSON ({error}).") from error
        if not isinstance(values, dict):
            raise DamagedAnswerError(f"{self.url} answers with {shown(values)}. {_NO_DEIT}")
        return values


def read_reply(reply: Reply) -> dict[str, Any]:
    """Returns the values of an answer with results.

    Raises:
        ServerBusyError: The server cannot take the request now.
        DeadlineError: The server did not answer within the deadline that it was told.
        RefusedError: The server refuses the request.
        DamagedAnswerError: It is not the answer of a `deit serve`.
    """
    if reply.status == 200:
        return reply.values()
    if reply.status in FAULTS_OF_IMAGES and (told := _json(reply)) is not None and "results" in told:
        return told  # every image has an error of its own
    if 300 <= reply.status < 400:
        raise _refused(
            reply, f"{reply.url} sends on to {shown(reply.headers.get('Location', 'nowhere'))}. Use that address."
        )
    reason, message = _message(reply)
    if reply.status == 401:
        wish = "does not accept the token" if reply.with_token else "wants a token: pass token="
        raise _refused(reply, f"{reply.url} {wish} (401).")
    if reply.status in (429, 503):
        text = f"{reply.url} is busy ({reply.status}): {message}"
        raise ServerBusyError(text, status=reply.status, reason=reason, retry_after=retry_after(reply.headers))
    if reply.status == 504:
        raise DeadlineError(f"{reply.url} did not answer within the deadline (504): {message}")
    if not reason and reply.status in (404, 405, 501):
        raise _refused(reply, f"{reply.url} is not there ({reply.status}). {_NO_DEIT}")
    raise _refused(reply, f"{reply.url} refuses the request ({reply.status}): {message}")


def read_results(values: dict[str, Any], images: list[Sent], url: str) -> list[ServedPredictions]:
    """Reads the results of a request, in the order of its images.

    Raises:
        DamagedAnswerError: They are not those of these images.
    """
    with _reading(url):
        origin = read_origin(values)
        results = values["results"]
        if not isinstance(results, list) or len(results) != len(images):
            raise UserError(f"{shown(results)} are not the results of {len(images)} image(s)")
        return [
            read_result(result, image.name, sent_name(number), origin)
            for number, (result, image) in enumerate(zip(results, images, strict=True))
        ]


def models_of(values: dict[str, Any], url: str) -> list[dict[str, Any]]:
    """Reads the list of models.

    Raises:
        DamagedAnswerError: It is none.
    """
    models = values.get("models")
    if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        raise DamagedAnswerError(f"{url} answers with {shown(models)}, where its models belong. {_NO_DEIT}")
    return models


def add_part(content: bytearray, part: bytes, url: str) -> None:
    """Adds a part of a body to what has come of it.

    Raises:
        DamagedAnswerError: It is more than an answer has.
    """
    content += part
    if len(content) > MOST_ANSWER_BYTES:
        raise DamagedAnswerError(f"The answer of {url} has more than {MOST_ANSWER_BYTES} bytes. {_NO_DEIT}")


@contextmanager
def _reading(url: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise DamagedAnswerError(f"The answer of {url} is damaged: {reason}. {_NO_DEIT}") from error


def _refused(reply: Reply, text: str) -> RefusedError:
    reason, message = _message(reply)
    return RefusedError(text, status=reply.status, reason=reason, message=message)


def _message(reply: Reply) -> tuple[str, str]:
    """Returns reason and message of an error; without those of a `deit serve` an empty reason, and the body."""
    text = reply.content[:200].decode("utf-8", errors="replace").strip()
    told = _json(reply) or {}
    try:
        error = told["error"] if "error" in told else told["results"][0]["error"]
        reason, message = error["reason"], error["message"]
    except (LookupError, TypeError):
        return "", shown(text) if text else "it does not say why."
    return (reason, message) if isinstance(reason, str) and isinstance(message, str) else ("", shown(text))


def _json(reply: Reply) -> dict[str, Any] | None:
    try:
        return reply.values()
    except DamagedAnswerError:
        return None
