"""Runs several processes on one job: those that this machine starts, that torchrun starts, or that Slurm starts."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from deit.bulk.job import Job, open_job
from deit.bulk.predictions import PartWriter
from deit.bulk.work import Progress, Share, Unfinished, work_through
from deit.core.errors import UserError, WrongStateError

logger = logging.getLogger(__name__)

_LOOK = 0.3  # seconds between two looks at the workers
_USER_ERROR = 2
_STOPS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What started this process together with others.

    Attributes:
        name: The same for all of them, and for no other start; empty for a process alone.
        share: The place of this process.
    """

    name: str = ""
    share: Share = field(default_factory=Share)


def current_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """Returns the place of this process under torchrun (RANK, WORLD_SIZE) or in a Slurm array."""
    if int(environment.get("WORLD_SIZE", "1")) > 1 and "RANK" in environment:
        parts = [environment.get(key, "") for key in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")]
        share = Share(number=int(environment["RANK"]), count=int(environment["WORLD_SIZE"]))
        return Launch(name=f"torchrun {' '.join(parts)}", share=share)
    if "SLURM_ARRAY_TASK_ID" in environment:
        count = int(environment.get("SLURM_ARRAY_TASK_COUNT", "1"))
        first = int(environment.get("SLURM_ARRAY_TASK_MIN", "0"))
        step = max(int(environment.get("SLURM_ARRAY_TASK_STEP", "1")), 1)
        number = (int(environment["SLURM_ARRAY_TASK_ID"]) - first) // step % max(count, 1)
        name = f"slurm {environment.get('SLURM_CLUSTER_NAME', '')} {environment.get('SLURM_ARRAY_JOB_ID', '')}"
        return Launch(name=name, share=Share(number=number, count=max(count, 1)))
    return Launch()


def run_workers(job: Job, count: int, progress: Progress | None = None) -> None:
    """Runs processes on this machine until every unit has its part or a report.

    A process that is killed leaves its unit to the others.

    Args:
        job: The job.
        count: Number of processes.
        progress: Called with (images done, images in all).

    Raises:
        UserError: A worker met one; it is repeated.
        WrongStateError: All workers ended before the job did.
    """
    threads = str(job.manifest.opening["threads"])
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "LOCAL_WORLD_SIZE": str(count)}
    words = [sys.executable, "-m", "deit.bulk.workers", str(job.folder), str(count)]
    workers = [
        subprocess.Popen([*words, str(number)], env=environment, stdout=subprocess.PIPE, text=True)
        for number in range(count)
    ]
    told: set[int] = set()
    unfinished = Unfinished(job)
    try:
        while any(worker.poll() is None for worker in workers):
            time.sleep(_LOOK)
            if progress is not None:
                for number in job.done():
                    unfinished.settle(number)
                progress(unfinished.images, job.manifest.images)
            for number, worker in enumerate(workers):
                if worker.poll() is not None and worker.returncode < 0 and number not in told:
                    told.add(number)
                    name = signal.Signals(-worker.returncode).name
                    logger.warning("Worker %d of %d was ended by %s. The others do its work.", number, count, name)
    finally:
        for worker in workers:
            worker.terminate()
        outputs = [worker.communicate()[0] for worker in workers]
    for worker, output in zip(workers, outputs, strict=True):
        if worker.returncode == _USER_ERROR and output.strip():
            raise UserError(str(json.loads(output.strip().splitlines()[-1])))
    if all(worker.returncode for worker in workers):
        codes = ", ".join(str(worker.returncode) for worker in workers)
        raise WrongStateError(f"All workers ended before the job did (exit codes {codes}). Go on with resume.")


def _main(folder: str, count: str, number: str) -> int:
    """Runs one worker. A user's error is the last line of standard output, as JSON."""
    import torch

    for stop in _STOPS:
        if signal.getsignal(stop) != signal.SIG_IGN:
            signal.signal(stop, _end)
    job, device = open_job(Path(folder)), ""
    if job.manifest.identity["engine"]["device"] == "cuda":
        device = f"cuda:{int(number) % max(torch.cuda.device_count(), 1)}"
    try:
        work_through(job, PartWriter(job, device=device).write, Share(number=int(number), count=int(count)))
    except (UserError, OSError) as error:
        print(json.dumps(str(error)))
        return _USER_ERROR
    return 0


def _end(number: int, frame: FrameType | None) -> None:
    """Ends a worker by an exception, so that it gives its claims back and removes its temporary file."""
    for each in _STOPS:  # a terminal sends one to all processes, and the process that started this one another
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    from deit.runtime.threads import prepare_threads

    prepare_threads()
    logging.basicConfig(level=logging.WARNING, format="Note: %(message)s")
    sys.exit(_main(*sys.argv[1:]))
