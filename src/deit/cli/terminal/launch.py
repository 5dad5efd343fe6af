"""Runs a command in several processes on this machine, as `torchrun --standalone`, without its error report."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from deit.cli.terminal.console import USER_ERROR, say

SHARING = ("train", "pretrain", "evaluate")  # the commands whose processes share the work

_AFTERWARDS = "The system does so when memory runs out. A training goes on from its newest state with --resume."


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Runs a command in several processes that work together. The first of them prints.

    torchrun adds a traceback and a table to every error. This prints only what the processes print.

    Args:
        processes: How many.
        arguments: Of the `deit` command.

    Returns:
        The exit code: that of the process that ended first with an error, or 128 and the number of the signal.
    """
    if processes < 1:
        say(f"Error: --processes must be at least 1. Received: {processes}.", err=True)
        return USER_ERROR
    if not arguments or arguments[0] not in SHARING:
        say(f"Error: --processes is for {', '.join(SHARING)}. Received: {' '.join(arguments[:1])}.", err=True)
        return USER_ERROR
    try:
        from torch.distributed.elastic.multiprocessing import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch
    except ModuleNotFoundError as error:
        say(f'Error: --processes needs the {error.name!r} package. Install it: pip install "deit[train]"', err=True)
        return USER_ERROR
    logging.disable(logging.CRITICAL)  # of this process, which only waits
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // processes, 1)))
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id="deit", rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0,
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "deit", *arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode < 0:  # it had no time to speak
            name = signal.Signals(-failure.exitcode).name
            say(f"Error: Process {failure.local_rank} of {processes} was ended by {name}. {_AFTERWARDS}", err=True)
            return 128 - failure.exitcode
        return int(failure.exitcode)
    except SignalException as stop:
        return 128 + int(stop.sigval)
    return 0
