"""Training on several processes: the same weights, one writer, every image counted once."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from deit.runtime.processes import Processes, current_processes
from deit.train.run.state import load_state, state_folder
from deit.train.whole_step import ShareOfStep
from tests.ranks import run_on_ranks
from tests.train import together

REPOSITORY = Path(__file__).parents[2]


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY}",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    return subprocess.run(
        [*command, "-m", *map(str, arguments)],
        capture_output=True, text=True, env=environment, cwd=REPOSITORY, timeout=240, check=False,
    )  # fmt: skip


def test_processes_wait_for_one_that_works_longer_than_pytorch_waits() -> None:
    ran = run_on_ranks("tests.train.patience")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["checked"]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> tuple[Path, dict[str, list[str]]]:
    """Folders of trainings on two processes, and what each printed."""
    folder = tmp_path_factory.mktemp("two")
    kinds = ["adamw", "sgd", "few", "dist", "pseudo", "masked", "convnet"]
    ran = run_on_ranks("tests.train.together", folder, *kinds)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == len(kinds)  # the first process alone printed
    return folder, {kind: line.split() for kind, line in zip(kinds, lines, strict=True)}


@pytest.mark.parametrize("kind", ["adamw", "sgd", "few", "dist", "pseudo", "masked"])
def test_two_processes_give_the_weights_of_one_with_the_whole_batch(tmp_path, two_processes, kind) -> None:
    """Ten steps in fp32 without random augmentation; 13 training and 7 validation images, which 2 does not divide.

    "few": nine of twelve images have no label; "dist": a loss over the whole batch; "pseudo": such images get
    pseudo-labels and are mixed; "masked": masked images.
    """
    folder, printed = two_processes
    assert printed[kind] == ["2", "7", "5"]  # all 7 images were counted, once
    together.run(kind, tmp_path / "one")
    assert_same_weights(folder / kind, tmp_path / "one")
    moved = max(
        float((a - b).abs().max())
        for a, b in zip(weights(tmp_path / "one").values(), load_initial(tmp_path, kind).values(), strict=True)
    )
    assert moved > 1e-3  # the ten steps did something
    one, two = (json.loads((run / "training.json").read_text())["scores"] for run in (tmp_path / "one", folder / kind))
    assert one.keys() == two.keys()
    for head, scores in one.items():
        assert scores == pytest.approx(two[head], abs=1e-5)


def test_batch_norm_is_that_of_the_whole_step(tmp_path, two_processes) -> None:
    """Of a convnet with both kinds of batch norm of timm, with Mixup, CutMix, dropout and drop path at usual rates."""
    assert_same_run(two_processes[0] / "convnet", tmp_path / "one", "convnet")


def test_random_draws_are_those_of_the_whole_step_on_any_number_of_processes(tmp_path) -> None:
    """Mixup, CutMix, dropout and drop path at usual rates."""
    ran = run_on_ranks("tests.train.together", tmp_path / "many", "mixed", processes=4)
    assert ran.returncode == 0, ran.stderr
    assert_same_run(tmp_path / "many" / "mixed", tmp_path / "one", "mixed")


def assert_same_run(received: Path, expected: Path, kind: str) -> None:
    together.run(kind, expected)
    assert_same_weights(received, expected)
    one, many = (load_state(out / "state").tensors for out in (expected, received))
    for name, tensor in one.items():  # the average, the optimizer and the losses of all processes, too
        torch.testing.assert_close(many[name], tensor, atol=1e-5, rtol=0)


def test_random_draws_are_those_of_the_whole_step_in_any_number_of_parts(tmp_path) -> None:
    together.run("mixed", tmp_path / "whole")
    together.run("mixed", tmp_path / "parts", accumulate=3)
    assert_same_weights(tmp_path / "parts", tmp_path / "whole")
    together.run("mixed", tmp_path / "other", seed=1)
    with pytest.raises(AssertionError):  # the comparison can fail
        assert_same_weights(tmp_path / "other", tmp_path / "whole")


def test_what_depends_on_the_number_of_parts_is_said_before_the_first_step(tmp_path, caplog) -> None:
    together.run("convnet", tmp_path / "parts", accumulate=2)
    assert "Batch norm normalizes the 2 parts of accumulate=2 one by one" in caplog.text
    caplog.clear()
    together.run("convnet", tmp_path / "whole")
    assert caplog.text == ""


def test_a_teacher_that_was_trained_by_several_processes_is_an_ordinary_model_afterwards() -> None:
    """Outside of a step, layers that looked at the whole step do what they always did, training mode included."""
    plain, shared = together.NormedConvnet().train(), together.NormedConvnet().train()
    shared.load_state_dict(plain.state_dict())
    ShareOfStep(shared, Processes(rank=1, world_size=2), 1)
    pixels = torch.randn(4, 3, 16, 16)
    torch.manual_seed(0)
    expected = plain(pixels)
    torch.manual_seed(0)
    assert torch.equal(shared(pixels), expected)
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), shared.buffers(), strict=True))


def test_two_trainings_in_two_threads_give_what_each_gives_alone(tmp_path) -> None:
    """All three generators of random numbers belong to the process, and both trainings draw from each of them."""
    for kind in ("mixed", "convnet"):
        together.run(kind, tmp_path / kind)
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(together.run, kind, tmp_path / f"{kind} beside") for kind in ("mixed", "convnet")]
        [training.result() for training in both]
    for kind in ("mixed", "convnet"):
        alone, beside = weights(tmp_path / kind), weights(tmp_path / f"{kind} beside")
        assert all(torch.equal(alone[name], beside[name]) for name in alone)


def test_parts_of_a_partly_labelled_batch_give_the_weights_of_the_whole(tmp_path) -> None:
    """Parts of two views have two labels, one or none; each label must count as much as any other of its step."""
    together.run("few", tmp_path / "whole")
    together.run("few", tmp_path / "parts", accumulate=3)
    assert_same_weights(tmp_path / "parts", tmp_path / "whole")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(received: Path, expected: Path) -> None:
    found = weights(received)
    for name, weight in weights(expected).items():
        torch.testing.assert_close(
            found[name], weight, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def load_initial(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    together.task(kind).student.save_pretrained(folder / "initial")
    return weights(folder / "initial")


@pytest.fixture
def photos(tmp_path) -> Path:
    """Eleven plain pictures in two classes, in one folder."""
    random = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(6 if name == "dark" else 5):
            pixels = np.clip(random.normal(level, 20, (20, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


@pytest.mark.slow
def test_the_command_under_torchrun_prints_once_resumes_and_refuses_once(photos, tmp_path) -> None:
    """As a user would: repeats, Mixup, averaging, drop path; then the same folder again, and with --resume."""
    command = [
        "deit", "train", photos, "--student", "deit-digits-distilled-patch8-32", "--out", tmp_path / "run", "--device",
        "cpu", "--batch-size", 4, "--epochs", 2, "--set", "augment.num_repeats=2", "--set", "ema_decay=0.9",
        "--set", "data.val_fraction=0.3", "--set", "precision=fp32", "--set", "num_workers=0",
    ]  # fmt: skip
    ran = torchrun(*command)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("epoch 2,") == 1
    assert ran.stdout.count("Validation") == 1
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["processes"] == 2
    assert record["scores"]["both"]["images"] == record["data"]["val_images"] == 4
    before = load_state(tmp_path / "run" / "state").tensors
    refused = run_on_ranks(*command)
    assert refused.returncode != 0
    assert refused.stderr.count("holds a run already") == 1
    resumed = run_on_ranks(*command, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    after = load_state(tmp_path / "run" / "state").tensors
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_one_process_that_is_asked_to_stop_stops_all_after_the_same_step_and_the_run_goes_on_to_the_same_bits(
    tmp_path,
) -> None:
    """Each with a teacher cache, repeats, Mixup, drop path and a running average."""
    ran = run_on_ranks("tests.train.stopped_ranks", tmp_path)
    assert ran.returncode == 0, ran.stderr
    said: dict[str, list[str]] = {"0": [], "1": []}
    for line in ran.stdout.splitlines():
        said[line[0]].append(line[2:])
    assert said["0"] == said["1"]
    whole, *others = said["0"]
    assert whole == "whole: 0 5"
    codes = {"SIGTERM": 143, "SIGUSR1": 138, "SIGHUP": 129, "notice": 138}
    for (name, code), stopped, resumed in zip(codes.items(), others[::2], others[1::2], strict=True):
        assert (
            stopped
            == f"{name}: {code} Stopped after step 3 of 5; its state is {state_folder(tmp_path / name / 'state', 3)}."
        )
        assert resumed == f"{name}: 0 5"
        one, two = (load_state(tmp_path / run / "state").tensors for run in ("whole", name))
        assert all(torch.equal(two[each], tensor) for each, tensor in one.items())
        assert all(torch.equal(w, weights(tmp_path / "whole")[k]) for k, w in weights(tmp_path / name).items())


def test_a_process_alone_is_the_first_of_one_and_needs_nobody() -> None:
    alone = current_processes()
    assert alone == Processes(rank=0, world_size=1, local_rank=0)
    assert alone.is_first
    assert alone.sum(np.array([1.0, 2.0])).tolist() == [1.0, 2.0]
    assert alone.any(True, False) == (True, False)
    assert alone.on_first(lambda: "result") == "result"
    alone.barrier()
