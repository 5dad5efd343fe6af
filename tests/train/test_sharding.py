"""Sharded training (FSDP2): what one process computes, on any number of processes; what does not go with it."""

import json
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
    return folder, {kind: sharded.run(kind, folder / kind) for kind in sharded.KINDS}


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> Path:
    """Folders of the same trainings on 2 and 3 processes; 3 divide no layer of the student evenly."""
    folder = tmp_path_factory.mktemp("several")
    for count, names in RUNS.items():
        ran = run_on_ranks("tests.train.sharded", folder / str(count), *names, processes=count)
        assert ran.returncode == 0, ran.stderr
    return folder


RUNS = {
    2: ["none-usual", "fsdp-usual", "fsdp-parts", "fsdp-masked", "fsdp-bf16", "fsdp-poisoned"],
    3: ["fsdp-usual"],
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
