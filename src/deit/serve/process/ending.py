"""Ends a process whose threads do not: a model that is stuck in a call, a decoder in a large image."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time

logger = logging.getLogger(__name__)

_PATIENCE = 1.0
_OURS = ("deit-model", "deit-decode", "deit-explain")


def still_at_work() -> bool:
    """Whether a thread of the server has not ended within a second, so that Python would wait for it."""
    until = time.monotonic() + _PATIENCE
    while left := [thread.name for thread in threading.enumerate() if thread.name.startswith(_OURS)]:
        if time.monotonic() > until:
            logger.error("The process ends although these threads do not: %s.", ", ".join(sorted(left)))
            return True
        time.sleep(0.02)
    return False


def leave_at_once(code: int) -> None:
    """Ends the process without waiting for threads."""
    time.sleep(_PATIENCE / 10)  # for the last lines of the log
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 1)
