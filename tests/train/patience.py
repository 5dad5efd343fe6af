"""One process keeps the other waiting for longer than PyTorch allows; see test_distributed.py."""

from __future__ import annotations

import time
from datetime import timedelta

from torch import distributed

from deit.runtime.processes import current_processes

LIMIT = 1.0  # seconds


def long_work() -> str:
    time.sleep(2.5 * LIMIT)
    return "checked"


if __name__ == "__main__":
    distributed.init_process_group("gloo", timeout=timedelta(seconds=LIMIT))
    processes = current_processes()
    found = processes.on_first(long_work)
    processes.on_each(lambda: long_work() if processes.is_first else "")
    if processes.is_first:
        time.sleep(2.5 * LIMIT)
    processes.barrier()
    if processes.is_first:
        print(found)
    distributed.destroy_process_group()
