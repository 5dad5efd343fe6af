"""Handing out units on Ray, with a cluster that is made up: what is lost goes to another predictor."""

from __future__ import annotations

import os
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from deit.bulk import on_ray
from deit.bulk.job import open_job
from deit.bulk.on_ray import _Pool
from deit.core.errors import UserError
from tests.bulk.conftest import COUNT, parts, rows


class LostError(Exception):
    """Stands for what Ray raises for a lost actor."""


class TaskError(Exception):
    """Stands for what Ray raises for an error of a task; `cause` is that error."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class MadeUpRay:
    """As much of Ray as a pool asks for; each call is made at once, when its result is asked for.

    Args:
        loses: Returns whether a unit costs its predictor this time.
        cpus: CPUs of each node.
    """

    exceptions = SimpleNamespace(
        RayTaskError=TaskError, RayActorError=LostError, NodeDiedError=LostError, OutOfMemoryError=LostError,
        WorkerCrashedError=LostError,
    )  # fmt: skip

    def __init__(self, loses: Any = lambda number: False, cpus: tuple[int, ...] = (1, 1)) -> None:
        self.loses, self.cpus = loses, cpus
        self.started = self.killed = 0

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": count}} for count in self.cpus]

    def remote(self, kind: type) -> Any:
        def start(*arguments: Any) -> Any:
            self.started += 1
            actor = kind(*arguments)
            return SimpleNamespace(
                open=SimpleNamespace(remote=lambda: (actor.open, ())),
                write=SimpleNamespace(remote=lambda number: (actor.write, (number,))),
            )

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=start))

    def wait(self, references: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return references[:1], references[1:]

    def get(self, reference: Any) -> Any:
        function, arguments = reference
        if arguments and self.loses(*arguments):
            raise LostError
        try:
            return function(*arguments)
        except UserError as error:
            raise TaskError(error) from error

    def kill(self, actor: Any) -> None:
        self.killed += 1


@pytest.fixture
def begun(sources, bulk, tmp_path):
    """A job that has all parts, and one from which they were removed."""
    out = tmp_path / "predictions"
    assert bulk(sources["folder"], "--out", f"{out}/").exit_code == 0
    before = parts(out)
    for path in out.glob("part-*"):
        path.unlink()
    return open_job(out), before


def test_units_of_lost_predictors_go_to_others_and_the_bytes_stay(begun):
    job, before = begun
    asked: Counter[int] = Counter()

    def loses(number: int) -> bool:
        asked[number] += 1
        return number in (1, 4) and asked[number] <= 2

    ray, told = MadeUpRay(loses), []
    _Pool(ray, job, None, lambda done, total: told.append((done, total))).run()
    assert parts(job.folder) == before
    assert asked == Counter({0: 1, 1: 3, 2: 1, 3: 1, 4: 3, 5: 1})
    assert ray.started == 2 + 4
    assert told[-1] == (COUNT, COUNT)
    assert os.listdir(job.folder / "_claims") == []


def test_a_unit_that_costs_five_predictors_ends_the_job_with_its_number(begun):
    job, _ = begun
    with pytest.raises(UserError, match="Unit 3 has cost 5 predictors"):
        _Pool(MadeUpRay(lambda number: number == 3), job, 1, None).run()
    _Pool(MadeUpRay(), job, 1, None).run()
    assert len(rows(job.folder)) == COUNT


def test_errors_of_the_user_come_back_and_a_cluster_without_room_is_told(begun, monkeypatch):
    job, _ = begun
    with pytest.raises(UserError, match="The Ray cluster has no CPUs"):
        _Pool(MadeUpRay(cpus=(0,)), job, None, None)
    pool = _Pool(MadeUpRay(), job, None, None)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(on_ray.Path, "is_dir", lambda path: False)
        with pytest.raises(UserError, match="Use a folder that all nodes share"):
            pool.run()
