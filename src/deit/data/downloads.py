"""Downloads tar shards into the cache, and checks that they are whole."""

from __future__ import annotations

import hashlib
import html
import http.client
import logging
import os
import re
import shutil
import socket
import ssl
import tarfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from deit.core.errors import DamagedFileError, UserError, read_json
from deit.core.files import sha256_of_file, sync_file, write_json_atomically
from deit.core.printable import printable
from deit.data.sources import Progress
from deit.runtime.cache_folder import cache_folder

logger = logging.getLogger(__name__)

MOST_SHARD_BYTES = 2**40  # shards have some GB; larger answers are taken for endless
LEAST_FREE_BYTES = 2**28  # left on the disk for others
SLOWEST_BYTES = 2**16  # in each `_TIMEOUT`; a slower server would block a run for days
_ATTEMPTS = 4  # each resumes the one before
_TIMEOUT = 30.0  # seconds without an answer
_BLOCK = 2**16
_END_MARK = 2 * tarfile.BLOCKSIZE  # of zeros
_TITLE = re.compile(rb"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)


class _NoShardError(UserError):
    """The server returns something other than a shard, so retrying does not help."""


def fetch_shards(addresses: Sequence[str], progress: Progress | None = None) -> list[Path]:
    """Returns the paths of shards. Downloads those on the web into the cache once.

    Resumes partial downloads if the server confirms that the file is unchanged. Downloads a file of the cache again
    unless its length and hash are those recorded. Refuses schemes other than http and https, also in redirects
    (`pipe:` would run a command), and redirects from https to http. Accepts addresses of this machine and of private
    networks, because the caller chooses them.

    Args:
        addresses: Paths and http(s) addresses.
        progress: Called with (shards here, shards in all).

    Raises:
        FileNotFoundError: There is no such file, or the server has none.
        ConnectionError: The server cannot be reached, stops in the middle, is too slow or sends too much.
        UserError: An address has another scheme, leads to one, or returns something other than a tar archive.
        OSError: The disk is full.
    """
    paths = []
    for number, address in enumerate(addresses):
        scheme, found, _ = address.partition("://")
        if address.startswith("pipe:") or (found and scheme.lower() not in ("http", "https")):
            raise UserError(
                f"{_shown(address)} cannot be opened: shards come from http, https or files. Copy it first."
            )
        if found:
            _check_form(address)
        paths.append(_fetched(address) if found else Path(address))
        if progress is not None and found:
            progress(number + 1, len(addresses))
    return paths


def _check_form(address: str) -> None:
    try:
        urllib.parse.urlsplit(address)
    except ValueError as error:
        raise UserError(f"{_shown(address)} is not an address ({error}). Correct it.") from error


# --- the cache ----------------------------------------------------------------------------------------


def _fetched(address: str) -> Path:
    folder = cache_folder() / "shards"
    name = re.sub(r"[^\w.-]", "_", _shown(address).rpartition("/")[2])[-80:] or "shard.tar"
    path = folder / f"{hashlib.sha256(address.encode('utf-8', 'replace')).hexdigest()[:16]}-{name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # other processes that need the same shard wait
            if not _is_whole(path):
                with open(f"{path}.part", "ab") as part:
                    _fetch(address, part)
                sync_file(Path(part.name))
                os.replace(part.name, path)
                _keep_record(path, address)
    except (ConnectionError, FileNotFoundError, PermissionError):
        raise
    except (OSError, NotImplementedError) as error:  # the latter where a file system has no locks
        raise OSError(
            f"{_shown(address)} cannot be saved in {folder} ({getattr(error, 'strerror', '') or error}). Free some "
            "space, or choose another folder with the environment variable DEIT_CACHE."
        ) from error
    return path


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _keep_record(path: Path, address: str) -> None:
    stat = path.stat()
    record = {
        "address": _shown(address),
        "bytes": stat.st_size,
        "sha256": sha256_of_file(path),
        "mtime_ns": stat.st_mtime_ns,
    }
    write_json_atomically(_record_of(path), record)


def _is_whole(path: Path) -> bool:
    """Returns True if a cached file is unchanged. Reads its content only if its time has changed."""
    if not path.is_file():
        return False
    try:
        record = read_json(_record_of(path), "the record of a shard")
    except (FileNotFoundError, DamagedFileError):
        record = {}
    stat = path.stat()
    same_time = record.get("mtime_ns") == stat.st_mtime_ns
    if record.get("bytes") == stat.st_size and (same_time or record.get("sha256") == sha256_of_file(path)):
        return True
    logger.warning("The cached shard %s has changed. It is downloaded again.", path)
    path.unlink()
    return False


# --- the web ------------------------------------------------------------------------------------------


def _not_followed(address: str, there: str) -> _NoShardError:
    return _NoShardError(
        f"{_shown(address)} redirects to {_shown(there)}, which is refused: redirects may lead to http and https, not "
        "from https to http, and not in a circle. Check the address, or copy the file first."
    )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects only to http and https, and never from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = (urllib.parse.urlsplit(address).scheme.lower() for address in (req.full_url, newurl))
        if new not in ("http", "https") or (old == "https" and new == "http"):
            raise _not_followed(req.full_url, newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Hasty:
    """A connection with a time limit for the whole header; urllib limits only the time between reads."""

    _stopped = False

    def getresponse(self) -> http.client.HTTPResponse:
        timer = threading.Timer(2 * _TIMEOUT, self._stop)
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


def _fetch(address: str, part: Any) -> None:
    """Downloads the missing part of a file, in several attempts."""
    version = Path(f"{part.name}.version")  # version of the file that the part belongs to
    problem: Exception = OSError("no answer")
    for _ in range(_ATTEMPTS):
        try:
            if _go_on(address, part, version):
                version.unlink(missing_ok=True)
                return
            problem = OSError("the connection ended early")
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # the part does not belong to the file
                part.truncate(0)
            elif 300 <= error.code < 400:  # redirects that urllib does not follow
                part.truncate(0)
                raise _not_followed(address, error.headers.get("Location", "nowhere")) from None
            elif error.code in (404, 410):
                raise FileNotFoundError(
                    f"There is no {_shown(address)} (error {error.code}). Check the address."
                ) from None
            elif error.code in (401, 403):
                raise PermissionError(f"The server refuses {_shown(address)} (error {error.code}).") from None
            problem = error
        except (urllib.error.URLError, ssl.SSLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
            problem = error
        except _NoShardError:
            part.truncate(0)
            version.unlink(missing_ok=True)
            raise
    have, reason = part.tell(), printable(getattr(problem, "reason", problem), 200)
    raise ConnectionError(
        f"{_shown(address)} cannot be downloaded ({reason}); {have} bytes are saved. "
        "Check the connection and run the command again: it resumes the download."
    )


def _go_on(address: str, part: Any, version: Path) -> bool:
    """Requests the rest of a file and appends it; returns True if the file is complete."""
    have = part.seek(0, os.SEEK_END)
    known = version.read_text(encoding="utf-8") if version.exists() else ""
    if have and not known:  # the rest might belong to another version
        part.truncate(0)
        have = 0
    headers = {"User-Agent": "deit", "Accept-Encoding": "identity"}
    if have:
        headers.update({"Range": f"bytes={have}-", "If-Range": known})
    opener = urllib.request.build_opener(_Redirects, _HTTPHandler, _HTTPSHandler)
    with opener.open(urllib.request.Request(address, headers=headers), timeout=_TIMEOUT) as answer:
        _check_head(answer, address)
        if answer.status != 206 or not str(answer.headers.get("Content-Range")).startswith(f"bytes {have}-"):
            part.truncate(0)
            have = 0
            if answer.status == 206:
                raise ConnectionError("the server sent another part than requested")
            version.write_text(_version_of(answer.headers), encoding="utf-8")
        length = answer.headers.get("Content-Length")
        whole = have + int(length) if length is not None and length.isdecimal() else None
        _check_room(part, address, 0 if whole is None else whole - have, whole or 0)
        try:
            _receive(answer, part, address, whole)
        finally:
            part.flush()
    size = part.seek(0, os.SEEK_END)
    if whole is not None:
        return bool(size == whole)
    return _has_end_mark(part, size)


def _version_of(headers: Any) -> str:
    """Returns a strong ETag or the modification time. A weak ETag does not guarantee equal bytes."""
    etag = headers.get("ETag") or ""
    return str((etag if not etag.startswith("W/") else "") or headers.get("Last-Modified") or "")


def _check_head(answer: Any, address: str) -> None:
    """Refuses an answer whose header shows that it is not a shard."""
    if answer.status not in (200, 206):
        raise ConnectionError(f"the server answers with status {answer.status} instead of the file")
    encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise _NoShardError(f"{_shown(address)} comes packed as {encoding!r}, which was not requested. Copy it first.")
    if answer.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        found = _TITLE.search(answer.read(_BLOCK))
        text = html.unescape(found.group(1).decode("utf-8", "replace")) if found else ""
        title = printable(" ".join(text.split()), 100)
        raise _NoShardError(
            f"{_shown(address)} is a web page{f' ({title!r})' if title else ''}, not a tar archive. Check the "
            "address, and whether it needs a login."
        )


def _check_room(part: Any, address: str, more: int, whole: int) -> None:
    """Refuses files that exceed the size of a shard or the free space."""
    if whole > MOST_SHARD_BYTES:
        raise _NoShardError(f"{_shown(address)} has more than {MOST_SHARD_BYTES} bytes, more than any shard.")
    free = shutil.disk_usage(Path(part.name).parent).free
    if more + LEAST_FREE_BYTES > free:
        if not more:  # the total size is unknown, so the part is not kept
            part.truncate(0)
        raise OSError(f"it needs {more or 'unknown'} bytes more; {free} are free, {LEAST_FREE_BYTES} of them reserved")


def _receive(answer: Any, part: Any, address: str, whole: int | None) -> None:
    """Appends an answer to the part. Refuses one that is too long, too slow or not an archive."""
    size, checked = part.seek(0, os.SEEK_END), False
    since, received = time.monotonic(), 0
    while block := answer.read1(_BLOCK):
        part.write(block)
        size += len(block)
        received += len(block)
        if size > (MOST_SHARD_BYTES if whole is None else whole):
            raise _NoShardError(f"{_shown(address)} sends more bytes than it announced, or an endless answer.")
        if not checked and size >= tarfile.BLOCKSIZE:
            part.flush()
            _check_first_block(Path(part.name), address)
            checked = True
        if received > 2**28:  # at intervals, for answers of unknown length
            _check_room(part, address, 0, size)
            since, received = time.monotonic(), 0
        elif time.monotonic() - since > _TIMEOUT:
            if received < SLOWEST_BYTES:
                raise TimeoutError(f"it sent {received} bytes in {_TIMEOUT:.0f} seconds")
            since, received = time.monotonic(), 0
    if not checked:
        part.flush()
        if whole is None or size >= whole:
            _check_first_block(Path(part.name), address)


def _check_first_block(path: Path, address: str) -> None:
    with path.open("rb") as file:
        block = file.read(tarfile.BLOCKSIZE)
    if len(block) == tarfile.BLOCKSIZE and not block.strip(b"\0"):
        return  # an archive without members
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise _NoShardError(
            f"{_shown(address)} is not a tar archive: it begins with {printable(repr(block[:24]), 120)}. Check the "
            "address. A compressed shard must be unpacked first, because it cannot be read by number."
        ) from error


def _has_end_mark(part: Any, size: int) -> bool:
    """Returns True if an archive of unknown length is complete."""
    if size < _END_MARK or size % tarfile.BLOCKSIZE:
        return False
    with open(part.name, "rb") as file:
        file.seek(size - _END_MARK)
        return not file.read().strip(b"\0")


def _shown(address: str) -> str:
    """Returns an address without parts that may be a key or a password."""
    bare = address.partition("?")[0].partition("#")[0]
    scheme, found, rest = bare.partition("://")
    host, slash, path = rest.partition("/")
    return printable(f"{scheme}{found}{host.rpartition('@')[2]}{slash}{path}" if found else bare, 300)
