"""Hands out the units of a job to predictors on a Ray cluster. The folder must be one that all nodes share."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deit.bulk.claims import CLAIMS_NAME, Claims
from deit.bulk.job import Job, open_job
from deit.bulk.predictions import PartWriter
from deit.bulk.work import Progress, Unfinished, claim_of
from deit.core.errors import UserError
from deit.runtime.packages import require_packages

logger = logging.getLogger(__name__)

RAY_THREADS = 4  # of a predictor on CPUs, at most

_REACH_SECONDS = 10.0  # for a connection to the cluster
_PLACE_SECONDS = 300.0  # without a single predictor that could be started
_MOST_LOSSES = 5  # of predictors that one unit may cost; then it is likely the unit's fault
_TURN = 1.0  # seconds


def run_on_ray(job: Job, address: str, workers: int | None, progress: Progress | None = None) -> None:
    """Runs a job on a cluster until every unit has its part or a report.

    Each predictor is an actor with the model, on a GPU where the job began on one, else on as many CPUs as the job has
    threads. A predictor that is lost with its node leaves its unit to the others, and another one is started where
    there is room.

    Args:
        job: The job.
        address: Of the cluster; empty takes RAY_ADDRESS of the environment, or the cluster of this machine.
        workers: Number of predictors; None takes as many as the cluster holds.
        progress: Called with (images done, images in all).

    Raises:
        MissingPackageError: Ray is not installed.
        UserError: The cluster cannot be reached, has no room for a predictor, or loses one unit again and again; or a
            predictor met an error of the user.
    """
    require_packages("Running on Ray", "ray", extra="ray")
    import ray

    mine = not ray.is_initialized()
    if mine:
        _connect(ray, address or os.environ.get("RAY_ADDRESS", "") or "auto")
    try:
        _Pool(ray, job, workers, progress).run()
    finally:
        if mine:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    host, found, port = address.rpartition("://")[2].rpartition(":")
    try:
        if found and port.isdigit():  # Ray itself tries for minutes, and tells it in many lines
            socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
        where = "on this machine" if address == "auto" else f"at {address}"
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"No Ray cluster can be reached {where} ({reason}). Start one with 'ray start --head', or "
            "name another one as ray:HOST:PORT or in RAY_ADDRESS."
        ) from error


class _Predictions:
    """An actor: one opened model."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._writer: PartWriter | None = None

    def open(self) -> str:
        """Opens the model. Returns the name of the machine."""
        if not self._folder.is_dir():
            raise UserError(
                f"{self._folder} is not there on {socket.gethostname()}. Use a folder that all nodes share, and the "
                "same for the model and the inputs."
            )
        self._writer = PartWriter(open_job(self._folder))
        return socket.gethostname()

    def write(self, number: int) -> None:
        """Predicts a unit."""
        assert self._writer is not None
        self._writer.write(number)


class _Pool:
    """The predictors of a job, and what they are doing."""

    def __init__(self, ray: Any, job: Job, workers: int | None, progress: Progress | None) -> None:
        self._ray, self._job, self._progress = ray, job, progress
        self._claims = Claims(job.folder / CLAIMS_NAME)
        self._unfinished = Unfinished(job)
        self._actor, self._wanted = self._kind(workers)
        self._opening: dict[Any, Any] = {}  # what to wait for -> actor
        self._busy: dict[Any, tuple[Any, int]] = {}  # what to wait for -> actor, unit
        self._idle: deque[Any] = deque()
        self._again: deque[int] = deque()  # units of lost predictors
        self._losses: Counter[int] = Counter()

    def run(self) -> None:
        """Hands out units until all are done."""
        wanted = min(self._wanted, max(len(self._job.units), 1))
        for _ in range(wanted if self._unfinished else 0):
            self._start()
        alone_since = time.monotonic()
        units = self._units()
        try:
            while self._unfinished or self._busy:
                while self._idle and (number := next(units)) is not None:
                    actor = self._idle.popleft()
                    self._busy[actor.write.remote(number)] = actor, number
                self._collect()
                if self._idle or self._busy:
                    alone_since = time.monotonic()
                elif time.monotonic() - alone_since > _PLACE_SECONDS:
                    raise UserError(
                        f"The Ray cluster has started no predictor for {_PLACE_SECONDS:.0f} s. Free CPUs or GPUs "
                        "on it, or pass fewer workers."
                    )
        finally:
            self._claims.close()
            for actor in [*self._opening.values(), *(actor for actor, _ in self._busy.values()), *self._idle]:
                self._ray.kill(actor)

    def _units(self) -> Iterator[int | None]:
        """Yields units to predict, which are claimed then; None when there is none at the moment."""
        while True:
            for number in range(len(self._job.units)):
                while self._again:
                    yield self._again.popleft()
                if number in self._unfinished and self._claims.take(claim_of(number)):
                    if number in self._unfinished:
                        yield number
                    else:
                        self._claims.release(claim_of(number))
            yield self._again.popleft() if self._again else None

    def _collect(self) -> None:
        waiting = [*self._opening, *self._busy]
        if not waiting:
            time.sleep(_TURN)
            return
        ready, _ = self._ray.wait(waiting, num_returns=1, timeout=_TURN)
        for reference in ready:
            if reference in self._opening:
                actor = self._opening.pop(reference)
                if self._answered(reference):
                    self._idle.append(actor)
                else:
                    self._start()
                continue
            actor, number = self._busy.pop(reference)
            if self._answered(reference):
                self._idle.append(actor)
                self._claims.release(claim_of(number))
                self._unfinished.settle(number)
                if self._progress is not None:
                    self._progress(self._unfinished.images, self._job.manifest.images)
            else:
                self._lost(number)

    def _answered(self, reference: Any) -> bool:
        """Takes an answer. Returns False if its predictor is lost."""
        errors = self._ray.exceptions
        try:
            self._ray.get(reference)
        except errors.RayTaskError as error:
            if isinstance(error.cause, (UserError, OSError)):
                raise error.cause from error
            raise
        except (errors.RayActorError, errors.NodeDiedError, errors.OutOfMemoryError, errors.WorkerCrashedError):
            return False
        return True

    def _lost(self, number: int) -> None:
        self._losses[number] += 1
        if self._losses[number] >= _MOST_LOSSES:
            raise UserError(
                f"Unit {number} has cost {_MOST_LOSSES} predictors, so it is likely too large for them. Pass a smaller "
                "batch size."
            )
        logger.warning("A predictor was lost with its node or process. Unit %d goes to another one.", number)
        self._again.append(number)
        self._start()

    def _start(self) -> None:
        actor = self._actor()
        self._opening[actor.open.remote()] = actor

    def _kind(self, workers: int | None) -> tuple[Callable[[], Any], int]:
        """Returns what starts a predictor, and how many there shall be."""
        ray, threads = self._ray, int(self._job.manifest.opening["threads"])
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        on_gpu = self._job.manifest.identity["engine"]["device"] == "cuda"
        if on_gpu:
            needs: dict[str, float] = {"num_gpus": 1, "num_cpus": 1}
            room = int(sum(node.get("GPU", 0) for node in nodes))
        else:
            cpus = [int(node.get("CPU", 0)) for node in nodes]
            needs = {"num_cpus": max(min([threads, *(count for count in cpus if count)]), 1)}
            room = sum(count // int(needs["num_cpus"]) for count in cpus)
        if not room:
            raise UserError(f"The Ray cluster has no {'GPU, on which the job began' if on_gpu else 'CPUs'}.")
        environment = {"env_vars": {"OMP_NUM_THREADS": str(threads)}}
        remote = ray.remote(_Predictions).options(
            **needs, max_restarts=0, scheduling_strategy="SPREAD", runtime_env=environment
        )
        return (lambda: remote.remote(str(self._job.folder.resolve()))), min(workers or room, room)
