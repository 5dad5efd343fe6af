"""Several processes of which one is killed: prints how the others end. See test_watch.py.

Usage: python -m tests.runtime.lost_process CASE...; for each a line: case, exit codes, seconds of the slowest.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time

import torch

from deit.runtime.processes import LostProcessError, process_group

CASES = {  # which of how many dies, and what the others do then
    "in a collective": (1, 2, lambda processes: processes.largest(1)),
    "in the patient group": (0, 2, lambda processes: processes.on_first(lambda: "never")),
    "at work": (2, 3, lambda processes: time.sleep(60)),
    "with a worker that lives on": (1, 2, lambda processes: processes.largest(1)),
}


def one(case: str, rank: int) -> int:
    dies, _, waits = CASES[case]
    try:
        with process_group("cpu") as processes:
            processes.barrier()
            if rank == dies:
                if "worker" in case:
                    multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,)).start()
                    time.sleep(0.2)
                os.kill(os.getpid(), signal.SIGKILL)
            waits(processes)
    except LostProcessError:
        return 3
    return 0


def run(case: str) -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    _, count, _ = CASES[case]
    children = []
    for rank in range(count):
        child = os.fork()
        if not child:
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE=str(count), RANK=str(rank))
            os.environ["LOCAL_RANK"] = str(rank)
            os._exit(one(case, rank))
        children.append(child)
    begun = time.monotonic()
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return f"{case}: {codes} {time.monotonic() - begun:.1f}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in sys.argv[1:] or CASES:
        print(run(each), flush=True)
