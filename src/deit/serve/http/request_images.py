"""Turns the body of a request into image files and options. Never opens a path or an address."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from deit.core.errors import shown
from deit.core.printable import printable
from deit.serve.decoding import DecodingPool
from deit.serve.refusals import Refusal
from deit.serve.settings import ServeSettings

_RAW = ("application/octet-stream", "")
_OPTION_BYTES = 4096  # of one field of a form
_JSON_VALUES = 100_000  # of a body, which has some for each image; each takes up to 25 times its bytes in memory


@dataclass(frozen=True, kw_only=True)
class RequestImages:
    """What a request holds.

    Attributes:
        names: What the client calls the images.
        images: The files.
        options: Name -> value as it was sent: text from an address or a form, JSON values from JSON.
    """

    names: list[str]
    images: list[bytes]
    options: Mapping[str, Any]


async def read_request(request: Request, settings: ServeSettings, pool: DecodingPool) -> RequestImages:
    """Reads a body of any of the three kinds: a form with files, JSON with base64, or the bytes of one image.

    Raises:
        Refusal: It is none of them, is damaged, or is over a limit.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        text = f"Send the body as it is, since images are compressed already. Received: {printable(encoding, 100)}."
        raise Refusal(415, "unsupported_encoding", text)
    options = _query(request)
    if kind == "multipart/form-data":
        found = await _form(request, settings)
    elif kind == "application/json":
        found = await pool.run(partial(_json, await request.body()))
    elif kind in _RAW or kind.startswith("image/"):
        body = await request.body()
        found = RequestImages(names=["image"] if body else [], images=[body] if body else [], options={})
    else:
        raise Refusal(
            415,
            "unknown_content_type",
            "Send an image (Content-Type: image/jpeg or application/octet-stream), multipart/form-data with files, or "
            f"application/json. Received: {printable(kind, 100)}.",
        )
    if not found.images:
        raise Refusal(400, "no_image", "The request holds no image.")
    if twice := sorted(options.keys() & found.options.keys()):
        raise Refusal(400, "bad_option", f"An option is given twice: {twice[0]}.")
    return RequestImages(names=found.names, images=found.images, options={**options, **found.options})


def _query(request: Request) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name in options:
            raise Refusal(400, "bad_option", f"An option is given twice: {printable(name, 100)}.")
        options[name] = value
    return options


async def _form(request: Request, settings: ServeSettings) -> RequestImages:
    parser = _Parser(
        request.headers,
        request.stream(),
        max_files=settings.images_per_request,
        max_fields=32,
        max_part_size=_OPTION_BYTES,
    )
    parser.spool_max_size = settings.max_request_bytes  # nothing is written to the disk
    try:
        found = await parser.parse()
        if not parser.ended:
            raise Refusal(400, "bad_form", "The form is cut off: its last boundary is missing.")
        return await _parts(found)
    except (MultiPartException, FormParserError) as error:  # the second one passes through Starlette 1.3 and older
        message = str(error)
        too_many = message.startswith("Too many files")
        hint = " A file needs a filename." if message.startswith("Part exceeded") else ""
        raise Refusal(
            413 if too_many else 400,
            "too_many_images" if too_many else "bad_form",
            printable(message, 300) + hint,
        ) from error
    finally:
        for file in parser._files_to_close_on_error:  # Starlette leaves them open when the client is gone
            file.close()


class _Parser(MultiPartParser):
    ended = False  # without its end, Starlette leaves a part out

    def on_end(self) -> None:
        self.ended = True


async def _parts(form: FormData) -> RequestImages:
    names: list[str] = []
    images: list[bytes] = []
    options: dict[str, Any] = {}
    for field, value in form.multi_items():
        if isinstance(value, UploadFile):
            names.append(printable(value.filename or field, 200))
            images.append(await value.read())
        elif field in options:
            raise Refusal(400, "bad_option", f"An option is given twice: {printable(field, 100)}.")
        else:
            options[field] = value
    return RequestImages(names=names, images=images, options=options)


def _json(body: bytes) -> RequestImages:
    if sum(map(body.count, (b",", b"[", b"{"))) > _JSON_VALUES:
        raise Refusal(400, "bad_json", f"The JSON has more than {_JSON_VALUES} values.")
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "bad_json", f"The body is not JSON ({printable(error, 200)}).") from error
    if not isinstance(values, dict):
        raise Refusal(400, "bad_json", f"The body must be a JSON object. Received: a {type(values).__name__}.")
    items = values.pop("images", None)
    if not isinstance(items, list):
        raise Refusal(400, "no_image", 'The body needs "images": [{"name": "a.jpg", "data": "<base64>"}].')
    names, images = [], []
    for number, item in enumerate(items):
        name, image = _item(item, number)
        names.append(name)
        images.append(image)
    return RequestImages(names=names, images=images, options=values)


def _item(item: Any, number: int) -> tuple[str, bytes]:
    if not isinstance(item, dict) or item.keys() - {"name", "data"} or not isinstance(item.get("data"), str):
        raise Refusal(
            400, "bad_json", 'An image must be {"name": "a.jpg", "data": "<base64>"}, and nothing else. '
            f"Received: {printable(shown(item), 200)}. Paths and addresses are not opened."
        )  # fmt: skip
    name = item.get("name", f"image {number + 1}")
    if not isinstance(name, str):
        raise Refusal(400, "bad_json", "The name of an image must be a text.")
    header, comma, rest = item["data"].partition(",")
    text = rest if comma and header.startswith("data:image/") and header.endswith(";base64") else item["data"]
    try:
        return printable(name, 200), base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(
            400,
            "bad_base64",
            f"The data of image {number + 1} is not base64 ({error}). Paths and addresses are not opened.",
        ) from error
