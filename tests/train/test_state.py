import json
import os

import pytest
import torch

from deit.core import files
from deit.train.optimization import build_optimizer
from deit.train.recipes.sections import Optimizer
from deit.train.run.state import State, load_state, optimizer_tensors, restore_optimizer, save_state
from tests.train import tiny


def state(step: int) -> State:
    return State(step=step, tensors={"a": torch.full((3,), float(step))}, meta={"teacher": None})


def test_the_newest_state_comes_back_and_two_are_kept(tmp_path) -> None:
    for step in (5, 9, 100):
        save_state(tmp_path, state(step))
    loaded = load_state(tmp_path)
    assert (loaded.step, loaded.meta) == (100, {"teacher": None})
    assert torch.equal(loaded.tensors["a"], torch.full((3,), 100.0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000009", "step-00000100"]


def test_as_many_as_asked_for_are_kept_and_the_good_one_beside_them(tmp_path) -> None:
    for step in range(1, 7):
        save_state(tmp_path, state(step), last=3, good=1 if step < 6 else 5)
        kept = [int(p.name.removeprefix("step-")) for p in sorted(tmp_path.iterdir())]
        assert kept == {4: [1, 2, 3, 4], 5: [1, 3, 4, 5], 6: [4, 5, 6]}.get(step, list(range(1, step + 1)))


def test_a_loaded_state_stays_when_its_file_is_written_over(tmp_path) -> None:
    file = save_state(tmp_path, state(5)) / "tensors.safetensors"
    loaded = load_state(tmp_path)
    with file.open("r+b") as handle:
        handle.write(bytes(file.stat().st_size))
    assert torch.equal(loaded.tensors["a"], torch.full((3,), 5.0))


def test_no_state_is_none(tmp_path) -> None:
    assert load_state(tmp_path) is None


def truncate(path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["tensors.safetensors", "meta.json", "manifest.json"])
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, os.remove])
def test_a_damaged_state_is_passed_over_for_the_one_before(tmp_path, caplog, name, damage) -> None:
    save_state(tmp_path, state(5))
    damage(save_state(tmp_path, state(9)) / name)
    assert load_state(tmp_path).step == 5
    assert "Passed over the training state" in caplog.text


def to_a_pipe(path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("name", ["tensors.safetensors", "meta.json"])
def test_a_pipe_in_a_state_is_not_waited_for(tmp_path, caplog, name) -> None:
    save_state(tmp_path, state(5))
    to_a_pipe(save_state(tmp_path, state(9)) / name)
    assert load_state(tmp_path).step == 5
    assert "a pipe or a device" in caplog.text


def test_when_every_state_is_damaged_the_run_does_not_silently_begin_anew(tmp_path) -> None:
    for step in (5, 9):
        truncate(save_state(tmp_path, state(step)) / "tensors.safetensors")
    with pytest.raises(ValueError, match=r"Every training state in .* is damaged"):
        load_state(tmp_path)


def test_an_interrupted_write_leaves_no_state_and_no_rest(tmp_path, monkeypatch) -> None:
    save_state(tmp_path, state(5))

    def full_disk(path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "sync_file", full_disk)
    with pytest.raises(OSError, match="the disk is full"):
        save_state(tmp_path, state(9))
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000005"]
    assert load_state(tmp_path).step == 5


def test_nothing_in_a_state_is_pickled(tmp_path) -> None:
    folder = save_state(tmp_path, state(5))
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "meta.json", "tensors.safetensors"]
    assert set(json.loads((folder / "manifest.json").read_text())) == {"tensors.safetensors", "meta.json"}


def test_a_restored_optimizer_takes_the_same_next_step() -> None:
    def take_step(model, optimizer, seed) -> None:
        torch.manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()

    one, two = tiny.TinyConvnet(), tiny.TinyConvnet()
    first = build_optimizer(one, Optimizer(), torch.device("cpu"))
    for seed in range(3):
        take_step(one, first, seed)
    two.load_state_dict(one.state_dict())
    second = build_optimizer(two, Optimizer(), torch.device("cpu"))
    restore_optimizer(second, {k: v.clone() for k, v in optimizer_tensors(first).items()})
    take_step(one, first, 9)
    take_step(two, second, 9)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
