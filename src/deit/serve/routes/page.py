"""The page at `/`, where people ask the model about an image: fixed files, and the examples of the settings."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from deit.core.errors import UserError
from deit.core.printable import printable
from deit.serve.refusals import Refusal

_log = logging.getLogger(__name__)

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Of examples: formats that browsers show.
_PICTURES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".avif": "image/avif",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
}
_MOST_EXAMPLES = 24

# Of every answer here, beside those that all answers of the server have. Browsers keep a file and ask by its ETag
# whether it is still right, so a page never runs scripts of two releases.
_HEADERS = {
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# The page loads its own files, sends images to its own server and shows those of the user. Nothing else: no inline
# script or style, no other site, no frame around it, no text that becomes HTML.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_UNUSED = ("display-capture", "geolocation", "microphone", "payment", "usb")
_ALLOWED = ("camera", "clipboard-read", "clipboard-write")
_PAGE_HEADERS = _HEADERS | {
    "Content-Security-Policy": _POLICY,
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": ", ".join([*(f"{name}=(self)" for name in _ALLOWED), *(f"{name}=()" for name in _UNUSED)]),
}
_EXAMPLE_HEADERS = _HEADERS | {
    "Cache-Control": "private, no-cache",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}


def routes(state: Any) -> list[BaseRoute]:
    """Returns the routes of the page, its files and its examples.

    Raises:
        FileNotFoundError: The folder of examples is not there.
        UserError: It holds no image that browsers show.
    """
    settings = state.settings
    examples = find_examples(Path(settings.examples), settings.max_image_bytes) if settings.examples else {}
    return [
        *(Route(path, _file(content, kind), methods=["GET"]) for path, content, kind in _files()),
        Route("/v1/examples", _names(examples), methods=["GET"]),
        Route("/v1/examples/{name}", _example(examples), methods=["GET"]),
    ]


def find_examples(folder: Path, max_bytes: int) -> dict[str, Path]:
    """Returns name -> path of the first images in a folder that browsers show, by name; its subfolders are left aside.

    Args:
        folder: Where they are.
        max_bytes: Larger files are left out, because the server would not take them.

    Raises:
        FileNotFoundError: The folder is not there.
        UserError: It holds no such image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"The folder of examples is not there: {printable(folder)}. Pass a folder of images.")
    shown = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in _PICTURES and not p.name.startswith(".")]
    found = {p.name: p for p in shown if p.is_file() and p.name.isprintable() and p.stat().st_size <= max_bytes}
    if not found:
        raise UserError(
            f"The folder of examples holds no image of at most {max_bytes:,} bytes that browsers show "
            f"({', '.join(_PICTURES)}): {printable(folder)}. Add some, or leave the option out."
        )
    if len(found) > _MOST_EXAMPLES:
        _log.warning("The page shows the first %d of %d examples.", _MOST_EXAMPLES, len(found))
    return dict(list(found.items())[:_MOST_EXAMPLES])


Endpoint = Callable[[Request], Awaitable[Response]]


def _files() -> Iterable[tuple[str, bytes, str]]:
    for file in resources.files("deit.serve").joinpath("page").iterdir():
        kind = _TYPES.get(Path(file.name).suffix)
        if kind is not None:
            yield ("/" if file.name == "index.html" else f"/page/{file.name}"), file.read_bytes(), kind


def _file(content: bytes, kind: str) -> Endpoint:
    tag = _tag(content)

    async def answer(request: Request) -> Response:
        return _unless_known(request, content, tag, _PAGE_HEADERS | {"Content-Type": kind})

    return answer


def _names(examples: dict[str, Path]) -> Endpoint:
    async def answer(request: Request) -> Response:
        return JSONResponse({"examples": list(examples)}, headers=_HEADERS)

    return answer


def _example(examples: dict[str, Path]) -> Endpoint:
    async def answer(request: Request) -> Response:
        path = examples.get(request.path_params["name"])  # the only names that lead to files
        if path is None:
            raise Refusal(404, "unknown_example", "There is no such example. GET /v1/examples names them.")
        try:
            content = await run_in_threadpool(path.read_bytes)
        except OSError as error:
            _log.warning("Cannot read the example %s: %s", printable(path), error)
            raise Refusal(404, "unknown_example", "This example cannot be read any more.") from error
        kind = _PICTURES[path.suffix.lower()]
        return _unless_known(request, content, _tag(content), _EXAMPLE_HEADERS | {"Content-Type": kind})

    return answer


def _tag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def _unless_known(request: Request, content: bytes, tag: str, headers: dict[str, str]) -> Response:
    """Returns the content, or 304 to a browser that has it (RFC 9110, 13.1.2)."""
    headers = headers | {"ETag": tag}
    known = [entry.strip().removeprefix("W/") for entry in request.headers.get("if-none-match", "").split(",")]
    if tag in known or known == ["*"]:
        headers.pop("Content-Type")
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers)
