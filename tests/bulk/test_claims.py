"""Claims of units, shares of processes, and several processes in one folder."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from deit.bulk import claims as claims_module, workers
from deit.bulk.claims import Claims
from deit.bulk.job import Job, open_job
from deit.bulk.on_ray import _connect
from deit.bulk.predictions import PartWriter
from deit.bulk.work import Share, work_through
from deit.bulk.workers import current_launch
from deit.core.errors import UserError
from deit.core.files import replaced_file
from tests.bulk.conftest import COUNT, parts
from tests.cli.conftest import deit, succeeds


def ended_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_one_process_gets_a_claim_and_the_next_one_when_it_is_given_back(tmp_path):
    first, second = Claims(tmp_path), Claims(tmp_path)
    assert first.take("1")
    assert not second.take("1")
    assert second.take("2")
    assert f"process {os.getpid()} on" in second.owner("1")
    first.release("1")
    assert second.take("1")
    second.close()
    assert os.listdir(tmp_path) == []


def test_the_claim_of_a_process_that_ended_is_taken_over(tmp_path):
    first, second = Claims(tmp_path), Claims(tmp_path)
    assert first.take("1")
    change(tmp_path / "1.0", process=ended_process())
    assert second.take("1")
    assert os.listdir(tmp_path) == ["1.1"]
    change(tmp_path / "1.1", started="another process of this number")
    assert Claims(tmp_path).take("1")


def test_the_claim_of_another_machine_is_taken_over_after_a_lease_without_a_sign_of_life(tmp_path):
    first, second = Claims(tmp_path), Claims(tmp_path, lease=100)
    assert first.take("1")
    change(tmp_path / "1.0", where="elsewhere", process=ended_process())
    assert not second.take("1")
    os.utime(tmp_path / "1.0", (time.time() - 99, time.time() - 99))
    assert not second.take("1")
    os.utime(tmp_path / "1.0", (time.time() - 101, time.time() - 101))
    assert second.take("1")


def test_a_claim_shows_signs_of_life(tmp_path):
    claims = Claims(tmp_path, lease=0.2)
    assert claims.take("1")
    os.utime(tmp_path / "1.0", (0, 0))
    limit = time.monotonic() + 10
    while os.stat(tmp_path / "1.0").st_mtime == 0 and time.monotonic() < limit:
        time.sleep(0.01)
    assert os.stat(tmp_path / "1.0").st_mtime > 0
    claims.close()


def test_a_claim_that_cannot_be_written_is_none(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    claims = Claims(tmp_path)
    monkeypatch.setattr(claims_module.json, "dump", full)
    with pytest.raises(OSError, match="No space left"):
        claims.take("1")
    assert os.listdir(tmp_path) == []


def test_a_claim_that_is_being_written_is_respected(tmp_path):
    (tmp_path / "1.0").touch()
    assert not Claims(tmp_path).take("1")
    assert Claims(tmp_path).owner("1") == ""


@pytest.fixture
def begun(sources, bulk, tmp_path) -> Job:
    """A job whose units have no parts yet."""
    out = tmp_path / "predictions"
    assert bulk(sources["folder"], "--out", f"{out}/").exit_code == 0
    for path in out.glob("part-*"):
        path.unlink()
    return open_job(out)


def test_processes_share_the_units_and_each_is_done_once(begun):
    written: Counter[int] = Counter()
    told = []

    def write(number: int, following: Callable[[], int | None]) -> None:
        written[number] += 1
        time.sleep(0.02)
        following()
        begun.part(number).write_bytes(b"")

    threads = [
        threading.Thread(target=work_through, args=(begun, write, Share(number=i, count=3)), daemon=True)
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    work_through(begun, write, Share(number=0, count=3), lambda done, total: told.append((done, total)))
    for thread in threads:
        thread.join(20)
    assert written == Counter(range(6))
    assert told[-1] == (COUNT, COUNT)


def test_a_process_begins_with_its_own_units_and_then_takes_those_of_the_others():
    assert list(Share(number=1, count=3).order(7)) == [1, 4, 2, 5, 0, 3, 6]


def test_the_place_under_torchrun_and_slurm():
    torchrun = {"RANK": "1", "WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "x", "MASTER_ADDR": "m", "MASTER_PORT": "1"}
    assert current_launch(torchrun).share == Share(number=1, count=4)
    slurm = {"SLURM_ARRAY_TASK_ID": "14", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_JOB_ID": "7"}
    slurm |= {"SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_STEP": "2"}
    assert current_launch(slurm).share == Share(number=2, count=3)
    assert current_launch(slurm).name != current_launch({**slurm, "SLURM_ARRAY_JOB_ID": "8"}).name
    assert current_launch({}).name == ""


def test_the_tasks_of_one_array_join_its_job_and_another_array_does_not(sources, bulk, tmp_path, monkeypatch):
    for name, value in {"TASK_ID": "0", "TASK_COUNT": "2", "JOB_ID": "7", "TASK_MIN": "0"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_{name}", value)
    out = f"{tmp_path}/predictions/"
    assert bulk(sources["folder"], "--out", out).exit_code == 0
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    joined = bulk(sources["folder"], "--out", out)
    assert (joined.exit_code, joined.output) == (0, "")  # the first one speaks
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "8")
    assert "holds a bulk job" in bulk(sources["folder"], "--out", out).stderr


@pytest.mark.slow
def test_workers_give_the_bytes_of_one_process(sources, bulk, tmp_path):
    assert bulk(sources["shards"], "--out", f"{tmp_path}/one/").exit_code == 0
    result = bulk(sources["shards"], "--out", f"{tmp_path}/two/", "--workers", 2)
    assert (result.exit_code, "Note" in result.stderr) == (0, False)
    assert parts(tmp_path / "one") == parts(tmp_path / "two")
    succeeds("classify", "--audit", f"{tmp_path}/two")


def test_a_worker_that_is_stopped_leaves_nothing(begun, monkeypatch):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stopped(self, number, following):
        with replaced_file(begun.part(number)):
            following()
            assert len(os.listdir(begun.folder / "_claims")) == 2
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(PartWriter, "write", stopped)
    try:
        with pytest.raises(SystemExit) as ended:
            workers._main(str(begun.folder), "1", "0")
        os.kill(os.getpid(), signal.SIGINT)  # ignored: the first one is being answered
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ended.value.code == 143
    assert os.listdir(begun.folder / "_claims") == []
    assert not [name for name in os.listdir(begun.folder) if "part" in name]


def test_a_process_that_ends_leaves_the_unit_that_it_read_ahead_to_others(begun):
    taken: list[int] = []

    def fails(number: int, following: Callable[[], int | None]) -> None:
        taken.extend([number, following(), following()])
        raise UserError("the disk is full")

    with pytest.raises(UserError):
        work_through(begun, fails)
    assert taken == [0, 1, 1]  # one unit ahead, and no more
    assert os.listdir(begun.folder / "_claims") == []


def test_a_cluster_that_cannot_be_reached_is_told_in_one_line():
    with pytest.raises(UserError, match=r"No Ray cluster can be reached at 127.0.0.1:9 .*ray start --head"):
        _connect(None, "127.0.0.1:9")


def test_without_its_package_ray_names_its_extra(sources, bulk, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    result = bulk(sources["folder"], "--out", f"{tmp_path}/predictions/", "--on", "ray")
    assert (result.exit_code, 'pip install "deit[ray]"' in result.stderr) == (2, True)
    assert deit("classify", "--audit", f"{tmp_path}/predictions").exit_code == 3
