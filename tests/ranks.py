"""Runs a module on several processes as torchrun does, but for one thing: the imports are done once, before they part.

torchrun imports PyTorch itself and then everything again in each process, which takes several times as long as what
the tests do there. What the `deit` command is under the real torchrun, test_distributed.py and test_endings.py see.

Usage: python -m tests.ranks PROCESSES MODULE ARGUMENTS...; exit code 1 if any of them failed.
"""

from __future__ import annotations

import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path

from tests.blank_curves import blank_curves

ROOT = Path(__file__).parents[1]
# Of what the `deit` command imports once it knows what is asked for.
IMPORTED = ("deit.cli", "deit.train.loop", "deit.inference.predictor")


PATIENCE = 5.0  # seconds, with those that have not ended when one has failed


def run_on_ranks(
    module: str, *arguments: object, processes: int = 2, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a module on processes that find each other; when one fails, the others are ended soon."""
    return subprocess.run(
        [sys.executable, "-m", "tests.ranks", str(processes), module, *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT, timeout=240, check=False,
        env={
            **os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore",
            **environment,
        },
    )  # fmt: skip


def main(count: int, module: str, *arguments: str) -> int:
    """Starts the processes and waits for them; returns 1 if one failed."""
    for name in (*IMPORTED, module):
        import_module(name)
    sys.modules.pop(module, None)  # it is run below, as a script is
    blank_curves()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    living = set()
    for rank in range(count):
        child = os.fork()
        if not child:
            os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank))
            sys.argv = [module, *arguments]
            os._exit(_run(module))
        living.add(child)
    failed = 0.0  # when the first did
    while living:
        child, status = os.waitpid(-1, os.WNOHANG if failed else 0)
        living.discard(child)
        if status and not failed:
            failed = time.monotonic()
        if failed and time.monotonic() > failed + PATIENCE:
            for other in living:
                os.kill(other, signal.SIGKILL)
        if not child:
            time.sleep(0.05)
    return int(failed > 0)


def _run(module: str) -> int:
    """Runs a module as a script and returns the exit code."""
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  # as the interpreter does
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], *sys.argv[3:]))
