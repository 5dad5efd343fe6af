"""Sharded training (FSDP2): what one process computes, on any number of processes; what does not go with it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deit.core.errors import UserError
from deit.models.auto import AutoModelForImageClassification
from deit.runtime.processes import Processes
from deit.train.loop import fit
from deit.train.recipes.recipe import Recipe
from deit.train.run.state import load_state
from deit.train.sharding.fully_sharded import check_sharding
from tests.ranks import run_on_ranks
from tests.train import poisoned, sharded, tiny, together


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Path, dict[str, list[float]]]:
    """Folders of trainings on one process, and the losses of their steps."""
    folder = tmp_path_factory.mktemp("one")
    return folder, {kind: sharded.run(kind, folder / kind) for kind in sharded.KINDS}  # one is "stopped"


@pytest.fixture(scope="module")
def several(tmp_path_factory, alone) -> Path:
    """Folders of the same trainings on 2 and 3 processes; 3 divide no layer of the student evenly.

    Trainings that were stopped go on: that of one process on two, that of two on two and on three.
    """
    folder = tmp_path_factory.mktemp("several")
    for count, names in RUNS.items():
        if count == 2:
            shutil.copytree(alone[0] / "stopped", folder / "2" / "fsdp_of_one-stopped")
        else:
            shutil.copytree(folder / "2" / "left by fsdp-stopped", folder / "3" / "fsdp-stopped")
        ran = run_on_ranks("tests.train.sharded", folder / str(count), *names, processes=count)
        assert ran.returncode == 0, ran.stderr
    return folder


RUNS = {
    2: [
        "none-usual",
        "fsdp-usual",
        "fsdp-parts",
        "fsdp-masked",
        "fsdp-bf16",
        "fsdp-poisoned",
        "fsdp-stopped",
        "fsdp-stopped",
        "fsdp_of_one-stopped",
    ],
    3: ["fsdp-usual", "fsdp-stopped"],
}


@pytest.mark.parametrize("run", ["2/none-usual", "2/fsdp-usual", "3/fsdp-usual", "2/fsdp-parts", "2/fsdp-masked"])
def test_twenty_steps_have_the_losses_and_the_state_of_one_process(run, alone, several) -> None:
    """With Mixup, CutMix, dropout, drop path, average, accumulation, clipping and gradient checkpointing.

    "parts": a frozen block, layer decay and LAMB, whose trust ratio is of whole tensors, with the best weights kept.
    """
    one, losses = alone
    kind, many = run.split("-")[1], several / run
    found = json.loads((many / "losses.json").read_text())
    assert len(found) == (10 if kind == "masked" else 20)
    assert found == pytest.approx(losses[kind], abs=1e-5)
    states = [load_state(folder / "state").tensors for folder in (one / kind, many)]
    models = [load_file(folder / "model.safetensors") for folder in (one / kind, many)]
    for expected, received in (states, models):
        assert expected.keys() == received.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(
                received[name], tensor, atol=1e-5, rtol=0, msg=lambda text, n=name: f"{n}: {text}"
            )


def test_each_process_writes_its_part_of_a_state(several) -> None:
    names = sorted(path.name for path in (several / "3" / "fsdp-usual" / "state" / "step-00000020").iterdir())
    assert names == ["manifest.json", "meta.json", *(f"tensors-0000{i}-of-00003.safetensors" for i in (1, 2, 3))]


def test_a_run_that_goes_on_ends_with_the_same_bits_on_as_many_processes(several) -> None:
    left = several / "2" / "left by fsdp-stopped" / "state"
    assert sorted(path.name for path in left.glob("step-*")) == ["step-00000010", "step-00000012"]
    whole, gone_on = (several / "2" / name for name in ("fsdp-usual", "fsdp-stopped"))
    states = [load_state(folder / "state").tensors for folder in (whole, gone_on)]
    for name, tensor in states[0].items():
        if not name.startswith("losses."):  # each process goes on with their mean, which ends in other bits
            assert torch.equal(states[1][name], tensor), name
    assert (whole / "model.safetensors").read_bytes() == (gone_on / "model.safetensors").read_bytes()


def test_a_state_goes_on_on_any_number_of_processes(tmp_path, alone, several) -> None:
    """Of one process on two, of two on three, and of two on one, which divides nothing."""
    one, losses = alone
    shutil.copytree(several / "2" / "left by fsdp-stopped", tmp_path / "on one")
    last = {"on one": sharded.run("stopped", tmp_path / "on one")}
    for name in ("2/fsdp_of_one-stopped", "3/fsdp-stopped"):
        last[name] = json.loads((several / name / "losses.json").read_text())
    whole = load_file(one / "usual" / "model.safetensors")
    for name, folder in {"on one": tmp_path / "on one", **{n: several / n for n in last if n != "on one"}}.items():
        assert last[name] == pytest.approx(losses["usual"][12:], abs=1e-5)
        for key, tensor in load_file(folder / "model.safetensors").items():
            torch.testing.assert_close(tensor, whole[key], atol=1e-5, rtol=0)


@pytest.mark.parametrize("damage", [lambda part: part.write_bytes(part.read_bytes()[:-1]), lambda part: part.unlink()])
def test_a_state_with_a_damaged_part_is_passed_over(tmp_path, several, damage) -> None:
    shutil.copytree(several / "2" / "left by fsdp-stopped" / "state", tmp_path / "state")
    assert load_state(tmp_path / "state").step == 12
    damage(tmp_path / "state" / "step-00000012" / "tensors-00002-of-00002.safetensors")
    assert load_state(tmp_path / "state").step == 10


def test_the_model_is_a_plain_directory(several) -> None:
    folder = several / "3" / "fsdp-usual"
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["DeiTForImageClassificationWithTeacher"]
    scores = json.loads((folder / "training.json").read_text())["scores"]
    assert scores["both"]["images"] == 7
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert model(torch.zeros(1, 3, tiny.SIDE, tiny.SIDE)).logits.shape == (1, 3)


def test_mixed_precision_keeps_weights_and_sums_of_gradients_in_fp32(alone, several) -> None:
    """A bf16 product has 8 bits: two sums of them in different orders differ by more than 1e-5, and not by 1 %."""
    folder = several / "2" / "fsdp-bf16"
    found = json.loads((folder / "losses.json").read_text())
    assert found == pytest.approx(alone[1]["bf16"], rel=1e-2)
    tensors = load_state(folder / "state").tensors
    assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.float32}


def test_a_step_that_one_process_cannot_take_is_skipped_by_all(tmp_path, several) -> None:
    folder = several / "2" / "fsdp-poisoned"
    assert json.loads((folder / "training.json").read_text())["guard"]["skipped_steps"] == 1
    poisoned.run([4], tmp_path / "one")
    one, two = (load_state(out / "state").tensors for out in (tmp_path / "one", folder))
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["usual", "masked"])
def test_gradient_checkpointing_changes_no_loss(tmp_path, alone, kind) -> None:
    """Drop path and dropout draw the same again, in each accumulated part."""
    found = sharded.run(kind, tmp_path / "run", gradient_checkpointing=True)
    assert found == pytest.approx(alone[1][kind], abs=1e-6)


def test_a_student_that_cannot_forget_its_activations_is_refused(tmp_path) -> None:
    task, data, recipe = together.task("convnet"), together.data("convnet"), together.recipe("convnet")
    with pytest.raises(UserError, match="NormedConvnet has no gradient checkpointing"):
        fit(task, data, recipe, out=tmp_path / "run", device="cpu", gradient_checkpointing=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "count", "said"),
    [
        ({}, 1, "there is one. Start several"),
        ({"compile": True}, 2, "does not go with compile=true"),
        ({"optimizer.name": "muon"}, 2, "does not go with optimizer.name=muon"),
        ({"pseudo_labels.weight": 5.0, "ema_decay": 0.9}, 2, "does not go with pseudo_labels.weight"),
    ],
)
def test_what_cannot_be_sharded_is_refused(settings, count, said) -> None:
    recipe, processes = Recipe().with_settings(settings), Processes(world_size=count)
    with pytest.raises(UserError, match=said):
        check_sharding("fsdp", recipe, processes, detect_anomaly=False)
    check_sharding("none", recipe, processes, detect_anomaly=True)
    with pytest.raises(UserError, match="does not go with detect_anomaly"):
        check_sharding("fsdp", Recipe(), Processes(world_size=2), detect_anomaly=True)
    with pytest.raises(UserError, match="sharding must be one of"):
        check_sharding("fsdp2", Recipe(), Processes(world_size=2), detect_anomaly=False)
