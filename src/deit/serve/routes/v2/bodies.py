"""Takes the body of a v2 request apart: inflates it, reads its JSON, and cuts off the binary tensors behind that."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from deit.core.errors import MOST_JSON_BYTES, UserError, shown
from deit.serve.refusals import Refusal

# Of the binary tensor data extension: how many bytes of the body are JSON.
HEADER_LENGTH = "inference-header-content-length"

_HINT = " Before binary tensors, the header Inference-Header-Content-Length must say how many bytes are JSON."
_WINDOW = {"gzip": 31, "deflate": 15}  # of zlib: which header it expects
_MOST_PARTS = 16  # of a gzip body: zlib copies what follows each


def refuse(reason: str, message: str) -> NoReturn:
    """Refuses a request that cannot be understood, with status 400."""
    raise Refusal(400, reason, message)


@dataclass(frozen=True, kw_only=True)
class Body:
    """A request.

    Attributes:
        header: The JSON object.
        binary: What follows it.
    """

    header: dict[str, Any]
    binary: memoryview


def split(content: bytes, headers: Mapping[str, str]) -> Body:
    """Cuts the body of a request into its JSON and what follows.

    Args:
        content: The body, inflated.
        headers: Of the request, by lower-case names.

    Raises:
        Refusal: It is not JSON, or not what the headers say.
    """
    length = _header_length(headers.get(HEADER_LENGTH), len(content))
    if length > MOST_JSON_BYTES:
        raise Refusal(
            413, "json_too_large", f"The JSON has {length} bytes, more than {MOST_JSON_BYTES}. Send binary tensors."
        )
    parts = memoryview(content)
    return Body(header=json_object(bytes(parts[:length]), hint=_HINT), binary=parts[length:])


def inflated(body: bytes, encoding: str, most: int) -> bytes:
    """Returns the content of a body that may be compressed, without ever holding more than `most` bytes of it.

    Raises:
        Refusal: It has more bytes, is damaged, or the encoding is not "gzip", "deflate" or "identity".
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        _refuse_larger(len(body), most)
        return body
    if encoding not in _WINDOW:
        known = ", ".join(_WINDOW)
        raise Refusal(
            415, "unsupported_encoding", f"Content-Encoding must be one of {known}. Received: {encoding!r:.80}."
        )
    content, rest, parts = bytearray(), body, 0
    while rest:  # gzip allows several parts
        parts += 1
        if parts > _MOST_PARTS:
            refuse("damaged_body", f"The {encoding} body has more than {_MOST_PARTS} parts.")
        part = zlib.decompressobj(wbits=_WINDOW[encoding])
        try:
            content += part.decompress(rest, most - len(content) + 1)
        except zlib.error as error:
            refuse("damaged_body", f"The body is not {encoding}: {error}.")
        _refuse_larger(len(content), most)
        if not part.eof:
            refuse("damaged_body", f"The {encoding} body is truncated.")
        if encoding == "deflate" and part.unused_data:
            refuse("damaged_body", f"{len(part.unused_data)} bytes follow the deflate body.")
        rest = part.unused_data
    return bytes(content)


def _refuse_larger(size: int, most: int) -> None:
    if size > most:
        raise Refusal(413, "body_too_large", f"The body has more than {most} bytes. Send fewer or smaller images.")


def _header_length(text: str | None, size: int) -> int:
    if text is None:
        return size
    if not (text.isascii() and text.isdecimal() and len(text) <= 12):
        refuse(
            "bad_header_length", f"Inference-Header-Content-Length must be a number of bytes. Received: {text!r:.80}."
        )
    if int(text) > size:
        refuse("bad_header_length", f"Inference-Header-Content-Length is {int(text)}, but the body has {size} bytes.")
    return int(text)


def json_object(content: bytes, *, empty: bool = False, hint: str = "") -> dict[str, Any]:
    """Parses a JSON object.

    Args:
        content: UTF-8 text.
        empty: Whether no text at all stands for {}.
        hint: What may be wrong if it is not JSON.

    Raises:
        Refusal: It is something else, or nested too deeply.
    """
    if empty and not content.strip():
        return {}
    try:
        values = json.loads(content.decode("utf-8"), parse_constant=_no_number)
    except RecursionError:
        refuse("bad_json", "The JSON is nested too deeply.")
    except ValueError as error:
        refuse("bad_json", f"The request is not JSON: {str(error)[:200]}.{hint}")
    if not isinstance(values, dict):
        refuse("bad_json", f"The request must be a JSON object. Received: {shown(values)}.")
    return values


def _no_number(text: str) -> NoReturn:
    raise UserError(f"{text} is not a JSON number")
