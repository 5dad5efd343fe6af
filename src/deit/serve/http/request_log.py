"""Writes the log of the server as lines of JSON: one for each request, and one for each thing that goes wrong."""

from __future__ import annotations

import json
import logging
import logging.handlers
import queue
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any

from starlette.requests import Request

from deit.core.printable import printable

requests_logger = logging.getLogger("deit.serve.requests")

_WAITING_LINES = 10_000  # of a reader that is too slow; then lines are dropped, and requests go on
_PATIENCE = 1.0  # seconds for the last lines


def log_request(facts: Mapping[str, Any]) -> None:
    """Writes the line of a request."""
    requests_logger.info("request", extra={"facts": dict(facts)})


def note(request: Request, **facts: object) -> None:
    """Adds facts to the line of a request: JSON values, of an image no more than its number of bytes."""
    request.state.facts.update(facts)


class JsonLine(logging.Formatter):
    """Formats a record as one line of JSON: time, level, event, message, and the facts of a request."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {"time": f"{moment}.{int(record.msecs):03d}Z", "level": record.levelname.lower()}
        facts = getattr(record, "facts", None)
        if facts is not None:
            line |= {"event": record.getMessage(), **facts}
        else:
            line |= {"event": "message", "logger": record.name, "message": printable(record.getMessage())}
        if record.exc_info and record.exc_info[1] is not None:
            line["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(line)


class _Dropping(logging.handlers.QueueHandler):
    """Drops lines when nobody reads them, since the event loop must not wait."""

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            return

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record  # stays in this process, so it may keep its traceback


@contextmanager
def json_log(stream: IO[str] | None = None) -> Iterator[None]:
    """Writes what the server logs in a block to a stream, in a thread of its own.

    Args:
        stream: Standard output when None.
    """
    lines: queue.Queue[logging.LogRecord | None] = queue.Queue(_WAITING_LINES)
    writer = threading.Thread(target=_write, args=(lines, stream or sys.stdout), name="deit-log", daemon=True)
    handler = _Dropping(lines)
    loggers = [logging.getLogger(name) for name in ("deit", "uvicorn.error", "asyncio", "py.warnings")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
        logger.setLevel(logging.WARNING)
    level = requests_logger.level
    requests_logger.setLevel(logging.INFO)
    writer.start()
    try:
        yield
    finally:
        requests_logger.setLevel(level)
        for logger, (old_level, propagates) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(old_level)
            logger.propagate = propagates
        with suppress(queue.Full):  # nobody reads
            lines.put(None, timeout=_PATIENCE)
        writer.join(_PATIENCE)


def _write(lines: queue.Queue[logging.LogRecord | None], stream: IO[str]) -> None:
    form = JsonLine()
    while (record := lines.get()) is not None:
        try:
            stream.write(form.format(record) + "\n")
            if lines.empty():
                stream.flush()
        except (OSError, ValueError):  # the reader has gone
            return
