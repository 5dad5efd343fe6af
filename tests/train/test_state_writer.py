"""States are written beside the steps: what a write sees, how many there are, and where its errors go."""

import threading
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

import deit.train.run.state
from deit.core.writing import WritingError
from deit.runtime.processes import Processes
from deit.train.loop import fit
from deit.train.run.state import State, load_state
from deit.train.states.state_writer import StateWriter
from tests.ranks import run_on_ranks
from tests.train import tiny
from tests.train.test_loop import classification_task


class SlowDisk:
    """Holds back the writing of tensors until `go` is set."""

    def __init__(self, monkeypatch) -> None:
        self.go, self.begun, self.writes = threading.Event(), threading.Event(), 0
        real = deit.train.run.state.save_file

        def save_file(*args, **kwargs) -> None:
            self.begun.set()
            assert self.go.wait(60)
            real(*args, **kwargs)
            self.writes += 1

        monkeypatch.setattr(deit.train.run.state, "save_file", save_file)


def test_a_state_is_that_of_its_step_though_the_training_goes_on(tmp_path, monkeypatch) -> None:
    disk, weight = SlowDisk(monkeypatch), torch.zeros(3)
    meta = {"losses": [1.0]}
    with StateWriter(tmp_path, Processes(), last=2) as states:
        folder = states.save(State(step=1, tensors={"weight": weight}, meta=meta))
        assert disk.begun.wait(60)
        weight.add_(1)
        meta["losses"].append(2.0)
        assert not folder.exists()
        assert load_state(tmp_path) is None
        disk.go.set()
    state = load_state(tmp_path)
    assert (state.step, state.meta) == (1, {"losses": [1.0]})
    assert torch.equal(state.tensors["weight"], torch.zeros(3))


def test_one_state_is_written_at_a_time(tmp_path, monkeypatch) -> None:
    disk = SlowDisk(monkeypatch)
    with StateWriter(tmp_path, Processes(), last=2) as states:
        states.save(State(step=1, tensors={"a": torch.zeros(1)}, meta={}))
        second = threading.Thread(target=states.save, args=(State(step=2, tensors={"a": torch.ones(1)}, meta={}),))
        second.start()
        second.join(0.2)
        assert second.is_alive()  # it waits for the first
        disk.go.set()
        second.join(60)
        states.wait()
        assert disk.writes == 2
    assert load_state(tmp_path).step == 2


def fails(monkeypatch, number: int, after: threading.Event | None = None) -> None:
    """Lets the disk be full at the write of this number, from 1, which fails once an event has come."""
    real, written = deit.train.run.state.save_file, []

    def save_file(*args, **kwargs) -> None:
        written.append(1)
        if len(written) == number:
            assert after is None or after.wait(60)
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        real(*args, **kwargs)

    monkeypatch.setattr(deit.train.run.state, "save_file", save_file)


def test_an_error_of_the_writer_is_raised_by_the_next_that_waits(tmp_path, monkeypatch) -> None:
    fails(monkeypatch, 2)
    with StateWriter(tmp_path, Processes(), last=2) as states:
        for step in (1, 2):
            states.save(State(step=step, tensors={"a": torch.zeros(1)}, meta={}))
        with pytest.raises(WritingError, match="step-00000002 cannot be written: the disk is full"):
            states.save(State(step=3, tensors={"a": torch.zeros(1)}, meta={}))
        assert not states.failed  # it was told
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_an_error_of_the_writer_ends_a_run_long_before_its_next_state(tmp_path, monkeypatch) -> None:
    fails(monkeypatch, 1)
    steps = []
    recipe = tiny.recipe(state_steps=1, schedule=tiny.Schedule(epochs=100, warmup_epochs=1), eval_epochs=100)

    def on_step(event) -> None:
        steps.append(event.step)
        for thread in threading.enumerate():
            if thread.name == "state writer":
                thread.join()

    with pytest.raises(WritingError, match="the disk is full"):
        fit(classification_task(), tiny.data(), recipe, out=tmp_path / "run", device="cpu", on_step=on_step)
    assert steps == [1, 2][: len(steps)]
    assert list((tmp_path / "run" / "state").glob("*step*")) == []


def test_a_run_that_ends_by_a_bug_waits_for_its_state_and_tells_if_it_failed(tmp_path, monkeypatch) -> None:
    crashed = threading.Event()
    fails(monkeypatch, 2, crashed)

    def crash(event) -> None:
        if event.step == 3:
            crashed.set()
            raise RuntimeError("a bug")

    def run(out: Path) -> pytest.ExceptionInfo:
        with pytest.raises(RuntimeError, match="a bug") as caught:
            fit(classification_task(), tiny.data(), tiny.recipe(state_steps=2), out=out, device="cpu", on_step=crash)
        return caught

    run(tmp_path / "whole")
    assert load_state(tmp_path / "whole" / "state").step == 2
    notes = " ".join(run(tmp_path / "failed").value.__notes__)
    assert "could not be written" in notes
    assert "the disk is full" in notes


def test_an_error_of_one_process_that_writes_its_part_ends_all_with_one_message(tmp_path) -> None:
    """The second process has a full disk; the first says nothing of its own, and nothing of the state is left."""
    ran = run_on_ranks("tests.train.full_part", tmp_path)
    assert ran.returncode == 0, ran.stderr
    first, second = sorted(ran.stdout.splitlines())
    assert first.startswith("0 FirstProcessError")
    assert second.startswith("1 WritingError")
    assert "step-00000002 cannot be written: the disk is full" in second
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert load_state(tmp_path).tensors["divided"].tolist() == [0.0, 1.0, 2.0]
