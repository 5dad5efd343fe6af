"""One optimizer step: accumulation, precisions, the average, and what a recipe may ask of a student."""

import errno
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import deit.train.run.state
from deit.core.images.reading import ImageError
from deit.data.augment import Augmentation
from deit.data.loader import StepOrder
from deit.data.sources import ArraySource, Data
from deit.runtime.devices import autocast_type
from deit.runtime.processes import Processes
from deit.train.loop import fit
from deit.train.recipes.sections import DataOptions, Optimizer
from deit.train.run.state import load_state
from deit.train.step import TrainStep, check_division
from deit.train.tasks.classification import ClassificationTask
from tests.train import tiny

CPU = torch.device("cpu")
PLAIN = Augmentation(mix_rate=0)
MIXED = Augmentation(mixup_alpha=0.8, cutmix_alpha=1.0)


def task(**fields: object) -> ClassificationTask:
    return ClassificationTask(tiny.student(**fields), tiny.processor())


def train(out, images: Data | None = None, **settings: object) -> dict[str, torch.Tensor]:
    fit(task(), images or tiny.data(), tiny.recipe(**settings), out=out, device="cpu")
    return load_file(out / "model.safetensors")


def largest_difference(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - two[name]).abs().max()) for name in one)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb"])
def test_accumulation_gives_the_weights_of_the_large_batch_with_mixing_too(tmp_path, optimizer) -> None:
    settings = {
        "augment": MIXED, "batch_size": 6, "ema_decay": 0.9,
        "optimizer": Optimizer(name=optimizer, lr=1e-3, reference_batch_size=0, clip_grad=1.0),
    }  # fmt: skip
    whole = train(tmp_path / "whole", **settings)
    parts = train(tmp_path / "parts", accumulate=3, **settings)
    assert largest_difference(whole, parts) < 1e-5
    another = train(tmp_path / "another", **{**settings, "batch_size": 4})
    assert largest_difference(whole, another) > 1e-4  # the comparison can fail


def test_a_batch_that_cannot_be_shared_is_refused_with_one_that_can() -> None:
    recipe = tiny.recipe(batch_size=12, accumulate=2)
    with pytest.raises(ValueError, match=r"12 images cannot be shared by 5 process.* batch_size=10 or 20"):
        TrainStep(task(), recipe, CPU, steps_per_epoch=1, num_classes=3, processes=Processes(world_size=5))


@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 5])
@pytest.mark.parametrize("images", [1, 3, 9, 31, 97])
def test_the_batch_that_is_advised_for_few_images_is_not_refused_afterwards(images, world_size, accumulate, mixes):
    def attempt(batch_size: int) -> None:
        recipe = tiny.recipe(batch_size=batch_size, accumulate=accumulate, augment=MIXED if mixes else PLAIN)
        processes = Processes(world_size=world_size)
        check_division(recipe, processes)
        multiple = recipe.batch_multiple(world_size)
        StepOrder(images, batch_size, 0, 0, 0, multiple=multiple, world_size=world_size)

    with pytest.raises(ValueError, match=f"There are {images} training images") as refused:
        attempt(120)
    advised = re.search(r"Pass a batch size of at most (\d+)", str(refused.value))
    if advised:
        attempt(int(advised[1]))
    else:
        needed = re.search(r"A step needs (\d+) or more", str(refused.value))
        assert needed
        assert int(needed[1]) > images


def test_fp16_trains_and_goes_on_with_the_same_scale(tmp_path) -> None:
    recipe = tiny.recipe(precision="fp16", ema_decay=0.9)
    result = fit(task(), tiny.data(), recipe, out=tmp_path / "whole", device="cpu")
    state = load_state(tmp_path / "whole" / "state")
    assert float(state.tensors["scaler.scale"]) > 0
    assert int(state.tensors["scaler.growth_tracker"]) > 0
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    stopped = fit(task(), tiny.data(), recipe, out=tmp_path / "whole", device="cpu", resume=True)
    assert stopped.steps == 9
    fp32 = train(tmp_path / "fp32", ema_decay=0.9)
    assert largest_difference(fp32, load_file(tmp_path / "whole" / "model.safetensors")) < 5e-3


def test_an_fp16_step_whose_gradients_overflow_changes_neither_weights_nor_average() -> None:
    recipe = tiny.recipe(precision="fp16", ema_decay=0.5, optimizer=Optimizer(lr=1e-2, reference_batch_size=0))
    step = TrainStep(task(), recipe, CPU, steps_per_epoch=3, num_classes=3, processes=Processes())
    torch.manual_seed(0)

    def batch(level: float):
        from deit.data.loader import Batch

        return Batch(torch.randn(4, 3, 16, 16) * level, torch.tensor([0, 1, 2, 0]), 0)

    assert step(batch(1.0), 4).taken
    before = {name: tensor.clone() for name, tensor in step.tensors().items()}
    step.scaler.update(2.0**40)  # every gradient becomes infinite
    assert not step(batch(1.0), 5).taken
    after = step.tensors()
    assert all(torch.equal(before[n], after[n]) for n in before if not n.startswith("scaler."))
    assert step.scaler.get_scale() == 2.0**39
    assert step(batch(1.0), 6).taken == (step.scaler.get_scale() == 2.0**39)


def test_automatic_precision_is_bf16_where_the_hardware_multiplies_it(monkeypatch) -> None:
    monkeypatch.setattr("deit.runtime.devices.bf16_instructions", lambda: "AMX")
    assert autocast_type("auto", CPU) is torch.bfloat16
    monkeypatch.setattr("deit.runtime.devices.bf16_instructions", lambda: "")
    assert autocast_type("auto", CPU) is None
    assert autocast_type("auto", torch.device("cuda")) is torch.bfloat16
    assert [autocast_type(name, CPU) for name in ("fp32", "bf16", "fp16")] == [None, torch.bfloat16, torch.float16]


def test_an_average_that_is_kept_is_stored_and_never_used(tmp_path) -> None:
    """The original's behaviour: it trains an average, saves it, and neither evaluates nor publishes it."""
    kept = train(tmp_path / "kept", ema_decay=0.9, ema_use="keep")
    without = train(tmp_path / "without")
    assert largest_difference(kept, without) == 0
    state = load_state(tmp_path / "kept" / "state").tensors
    assert any(name.startswith("average.") for name in state)
    assert "ema" not in (tmp_path / "kept" / "metrics.csv").read_text()


def test_a_student_in_evaluation_mode_has_neither_dropout_nor_drop_path_and_learns(tmp_path) -> None:
    still = train(tmp_path / "still", student_mode="eval", drop_path_rate=0.5)
    plain = train(tmp_path / "plain")
    assert largest_difference(still, plain) == 0
    dropped = train(tmp_path / "dropped", drop_path_rate=0.5)
    assert largest_difference(dropped, plain) > 1e-4


def test_the_drop_path_of_the_recipe_reaches_any_student(tmp_path) -> None:
    for shape, rates in (("linear", [0.0, 0.3]), ("constant", [0.3, 0.3])):
        own = task(drop_path_rate=0.9)
        recipe = tiny.recipe(drop_path_rate=0.3, drop_path_shape=shape)
        fit(own, tiny.data(), recipe, out=tmp_path / shape, device="cpu")
        found = [float(block.drop_path.rate) for block in own.student.deit.trunk.blocks]
        assert found == pytest.approx(rates)


@pytest.mark.slow
def test_a_compiled_run_learns_what_the_plain_one_learns(tmp_path) -> None:
    plain = train(tmp_path / "plain", augment=MIXED)
    compiled = train(tmp_path / "compiled", augment=MIXED, compile=True)
    assert set(plain) == set(compiled)
    assert largest_difference(plain, compiled) < 1e-5


def test_bce_and_several_labels_and_values_can_be_learnt(tmp_path) -> None:
    train(tmp_path / "bce", loss="bce", label_smoothing=0.0, augment=MIXED)


class Fragile(ArraySource):
    """Images of which one can no longer be read from its second reading on."""

    readings = 0

    def image(self, index: int) -> Image.Image:
        self.readings += index == 2
        if index == 2 and self.readings > 1:
            raise ImageError("photos/0.jpg is damaged.")
        return super().image(index)


def test_an_image_that_breaks_in_the_middle_of_an_epoch_ends_a_strict_run_with_its_state_saved(tmp_path) -> None:
    strict = tiny.recipe(data=DataOptions(strict=True))
    data = tiny.data()
    images = np.stack([np.asarray(data.train.image(i)) for i in range(12)])
    fragile = Data(train=Fragile(images, data.train.labels, data.train.classes), val=data.val)
    with pytest.raises(ImageError, match=r"photos/0.jpg is damaged. The state after step [124578] is saved") as caught:
        fit(task(), fragile, strict, out=tmp_path / "broken", device="cpu")
    state = load_state(tmp_path / "broken" / "state")
    assert f"after step {state.step} " in str(caught.value)
    mended = Data(train=ArraySource(images, data.train.labels, data.train.classes), val=data.val)
    fit(task(), mended, strict, out=tmp_path / "broken", device="cpu", resume=True)
    whole = train(tmp_path / "whole", mended, data=DataOptions(strict=True))
    assert largest_difference(whole, load_file(tmp_path / "broken" / "model.safetensors")) == 0


def test_a_full_disk_while_saving_keeps_the_last_state_and_says_so(tmp_path, monkeypatch) -> None:
    real = deit.train.run.state.save_file
    saved = []

    def save(tensors, path, metadata=None) -> None:
        if saved:
            path.write_bytes(b"half of")
            raise OSError(errno.ENOSPC, "No space left on device")
        saved.append(path)
        real(tensors, path)

    monkeypatch.setattr(deit.train.run.state, "save_file", save)
    with pytest.raises(OSError, match=r"(?s)step-00000006 .*the disk is full.*last good state is .*step-00000003"):
        train(tmp_path / "run")
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "run" / "state").glob("step-*")] == ["step-00000003"]
    assert load_state(tmp_path / "run" / "state").step == 3
    fit(task(), tiny.data(), tiny.recipe(), out=tmp_path / "run", device="cpu", resume=True)
    whole = train(tmp_path / "whole")
    assert largest_difference(whole, load_file(tmp_path / "run" / "model.safetensors")) == 0
