"""Asks web servers for parts of files."""

from __future__ import annotations

import base64
import contextlib
import html
import http.client
import io
import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import IO, Any

from deit.core.errors import UnreachableError, UserError
from deit.core.printable import printable
from deit.data.streams.addresses import WEB, shown
from deit.data.streams.remote import CHANGED, HEAD_BYTES, Described
from deit.data.streams.retrying import LOST, PASSING, PassingError

TIMEOUT = 30.0  # seconds without an answer
SLOWEST_BYTES = 2**16  # in each `TIMEOUT`; a slower server would block a run for days
_BLOCK = 2**16
_TITLE = re.compile(rb"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class WebFile:
    """A file on a web server.

    Accepts addresses of this machine and of private networks, because the caller chooses them. Follows redirects only
    to http and https, and never from https to http. A user and password in the address are sent as HTTP's basic
    authorization, and not to where a redirect leads.

    Args:
        address: An http or https address.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def describe(self) -> Described:
        """Asks for the first bytes, and so for size, version and whether the server sends parts."""
        with self._answer(0, HEAD_BYTES) as answer:
            self._refuse_pages(answer)
            found = _RANGE.fullmatch(answer.headers.get("Content-Range", "")) if answer.status == 206 else None
            length = answer.headers.get("Content-Length", "")
            if found is None and not length.isdecimal():
                raise UserError(f"{shown(self.address)} cannot be read: its server tells no length. Copy it first.")
            size = int(found.group(3)) if found else int(length)
            return Described(
                size=size,
                version=_version_of(answer.headers),
                head=_begin(answer, min(HEAD_BYTES, size)),
                has_parts=found is not None or answer.headers.get("Accept-Ranges", "").lower() == "bytes",
            )

    def append(self, start: int, stop: int, sink: IO[bytes], known: Described) -> None:
        """Appends the bytes from `start` to `stop` of the file that `describe` found.

        Raises:
            PassingError: The connection ended early, or the server failed; `sink` has what came.
            UserError: The file has changed, or it is refused.
        """
        with self._answer(start, stop) as answer:
            version = _version_of(answer.headers)
            if known.version and version != known.version:
                raise UserError(CHANGED.format(shown(self.address)))
            begins, size = 0, answer.headers.get("Content-Length")
            if answer.status == 206:
                found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
                if found is None or int(found.group(1)) != start or int(found.group(2)) >= stop:
                    raise PassingError("it sent another part than requested")
                begins, size = start, found.group(3)
            if size is not None and int(size) != known.size:
                raise UserError(CHANGED.format(shown(self.address)))
            _receive(answer, start - begins, stop - start, sink)

    def _answer(self, start: int, stop: int) -> Any:
        try:
            answer = _opener().open(_request(self.address, start, stop), timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            error.close()
            raise self._refusal(error) from None
        except LOST as error:
            reason = getattr(error, "reason", error)
            if start == 0 and isinstance(reason, socket.gaierror) and reason.errno == socket.EAI_NONAME:
                raise UnreachableError(
                    f"{shown(self.address)} cannot be read: there is no server of this name. Check the address."
                ) from None
            raise PassingError(reason) from error
        if answer.status not in (200, 206):
            answer.close()
            raise PassingError(f"it answers with status {answer.status} instead of the file")
        encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            answer.close()
            raise UserError(
                f"{shown(self.address)} comes packed as {encoding!r}, which was not requested. Copy it first."
            )
        return answer

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        where = shown(self.address)
        if error.code in PASSING:
            asked = error.headers.get("Retry-After", "")
            return PassingError(f"error {error.code}", wait=float(asked) if asked.isdecimal() else 0.0)
        if 300 <= error.code < 400:  # redirects that urllib does not follow
            return _not_followed(self.address, error.headers.get("Location", "nowhere"))
        if error.code in (404, 410):
            return FileNotFoundError(f"There is no {where} (error {error.code}). Check the address.")
        if error.code in (401, 403):
            return PermissionError(f"The server refuses {where} (error {error.code}). Check the address and its keys.")
        if error.code == 416:  # no bytes at all
            return UserError(f"{where} is empty. Check the address.")
        return UserError(f"The server answers {where} with error {error.code}. Check the address.")

    def _refuse_pages(self, answer: Any) -> None:
        if answer.headers.get_content_type() not in ("text/html", "application/xhtml+xml"):
            return
        sink = io.BytesIO()
        with contextlib.suppress(PassingError):  # it is shorter
            _receive(answer, 0, _BLOCK, sink)
        found = _TITLE.search(sink.getvalue())
        text = html.unescape(found.group(1).decode("utf-8", "replace")) if found else ""
        title = printable(" ".join(text.split()), 100)
        raise UserError(
            f"{shown(self.address)} is a web page{f' ({title!r})' if title else ''}, not a shard. Check the "
            "address, and whether it needs a login."
        )


def _begin(answer: Any, size: int) -> bytes:
    sink = io.BytesIO()
    _receive(answer, 0, size, sink)
    return sink.getvalue()


def _request(address: str, start: int, stop: int) -> urllib.request.Request:
    parts = urllib.parse.urlsplit(address)
    user, found, host = parts.netloc.rpartition("@")
    headers = {"User-Agent": "deit", "Accept-Encoding": "identity", "Range": f"bytes={start}-{stop - 1}"}
    plain = urllib.parse.urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
    request = urllib.request.Request(plain, headers=headers)
    if found:
        token = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


def _version_of(headers: Any) -> str:
    """Returns a strong ETag or the modification time. A weak ETag does not guarantee equal bytes."""
    etag = headers.get("ETag") or ""
    return str((etag if not etag.startswith("W/") else "") or headers.get("Last-Modified") or "")


def _receive(answer: Any, skip: int, want: int, sink: IO[bytes]) -> None:
    """Appends a part of an answer. Raises `PassingError` if it ends early, or is too slow."""
    since, received, block = time.monotonic(), 0, b"-"
    while want and block:
        try:
            block = answer.read1(min(_BLOCK, skip or want))
        except LOST as error:
            raise PassingError(error) from error
        received += len(block)
        if skip:
            skip -= len(block)
        else:
            sink.write(block)
            want -= len(block)
        if time.monotonic() - since > TIMEOUT:
            if received < SLOWEST_BYTES:
                raise PassingError(f"it sent {received} bytes in {TIMEOUT:.0f} seconds")
            since, received = time.monotonic(), 0
    if want:
        raise PassingError("the connection ended early")


# --- connections --------------------------------------------------------------------------------------


def _not_followed(address: str, there: str) -> UserError:
    return UserError(
        f"{shown(address)} redirects to {shown(there)}, which is refused: redirects may lead to http and https, not "
        "from https to http, and not in a circle. Check the address, or copy the file first."
    )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects only to http and https, and never from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = (urllib.parse.urlsplit(address).scheme.lower() for address in (req.full_url, newurl))
        if new not in WEB or (old == "https" and new == "http"):
            raise _not_followed(req.full_url, newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Hasty:
    """A connection with a time limit for the whole header; urllib limits only the time between reads."""

    _stopped = False

    def getresponse(self) -> http.client.HTTPResponse:
        timer = threading.Timer(2 * TIMEOUT, self._stop)
        timer.daemon = True
        timer.start()
        try:
            answer = super().getresponse()  # type: ignore[misc]
        finally:
            timer.cancel()
        if self._stopped:  # http.client takes the end of the connection for the end of the header
            answer.close()
            raise TimeoutError("its header did not end")
        return answer

    def _stop(self) -> None:
        self._stopped = True
        held = getattr(self, "sock", None)
        if held is not None:
            held.shutdown(socket.SHUT_RDWR)


class _HTTPConnection(_Hasty, http.client.HTTPConnection):
    pass


class _HTTPSConnection(_Hasty, http.client.HTTPSConnection):
    pass


class _HTTPHandler(urllib.request.HTTPHandler):
    def http_open(self, req: Any) -> Any:
        return self.do_open(_HTTPConnection, req)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: Any) -> Any:
        return self.do_open(_HTTPSConnection, req)


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Redirects, _HTTPHandler, _HTTPSHandler)
