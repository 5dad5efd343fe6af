"""Steps whose loss or gradient is not finite: skipped, counted, undone; losses that stand out; going on exactly."""

import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from deit.data.loader import Batch, training_batches
from deit.runtime.processes import Processes
from deit.runtime.signals import TrainingInterrupted
from deit.train.loop import fit
from deit.train.numerics.guard import Guard
from deit.train.open_images import step_order
from deit.train.recipes.sections import Optimizer
from deit.train.run.ending import NonFiniteLossError
from deit.train.run.state import load_state
from deit.train.step import TrainStep
from deit.train.tasks.classification import ClassificationTask
from deit.train.tasks.pseudo_labels import training_transform
from tests.ranks import run_on_ranks
from tests.train import poisoned, tiny, together

CPU = torch.device("cpu")


def names_of_states(out):
    return sorted(path.name for path in (out / "state").glob("step-*"))


def assert_same_state(one, two) -> None:
    one, two = (load_state(out / "state") for out in (one, two))
    assert one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)
    assert one.meta["guard"] == two.meta["guard"]


def all_finite(out) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in load_state(out / "state").tensors.values())


# --- one step ------------------------------------------------------------------------------------------


def batch(number: int, *, last: float = 0.0) -> Batch:
    """Four images; `last` is added to the last one, so with accumulate=2 the first part has finite numbers alone."""
    pixels = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(number))
    pixels[3] += last
    return Batch(pixels, torch.tensor([0, 1, 2, 0]), (0,))


def take_steps(numbers, student, poison: float = 0.0, **settings) -> dict[str, torch.Tensor]:
    """Takes the steps of these numbers, the third with an image that is not finite if there is a poison."""
    torch.manual_seed(3)
    recipe = tiny.recipe(**{"drop_path_rate": 0.1, **settings})
    task = ClassificationTask(student(), tiny.processor())
    step = TrainStep(task, recipe, CPU, steps_per_epoch=3, num_classes=3, processes=Processes())
    for number in numbers:
        taken = step(batch(number, last=poison if number == 2 else 0.0), number).taken
        assert bool(taken) == (number != 2)
    return {name: tensor.clone() for name, tensor in step.tensors().items() if not name.startswith("scaler.")}


def optimizer(name: str, **more: float) -> dict[str, Optimizer]:
    return {"optimizer": Optimizer(name=name, lr=1e-3, reference_batch_size=0, **more)}


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_step_that_is_not_finite_changes_nothing_but_the_number_of_the_step(poison) -> None:
    """The other run never sees that batch. AdamW alone skips in its kernel."""
    assert_skipped(poison=poison)


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"ema_decay": 0.9},
        {"accumulate": 2, "ema_decay": 0.9},
        {"accumulate": 2, "precision": "bf16"},
        {"freeze": "blocks:1"},
        optimizer("adamw", clip_grad=1.0),
        optimizer("sgd"),
        optimizer("lamb", clip_grad=1.0),
        optimizer("muon"),
    ],
    ids=str,
)
def test_it_changes_nothing_with_any_optimizer_precision_or_number_of_parts(settings) -> None:
    assert_skipped(**settings)


def test_the_statistics_of_batch_norm_are_put_back() -> None:
    assert_skipped(tiny.TinyConvnet, ema_decay=0.9)


def assert_skipped(student=tiny.student, poison: float = math.nan, **settings) -> None:
    after = [] if settings.get("precision") == "fp16" else [3, 4]  # there the scale, and so the rounding, is another
    expected = take_steps([0, 1, *after], student, **settings)
    received = take_steps([0, 1, 2, *after], student, poison, **settings)
    assert expected.keys() == received.keys()
    for name, tensor in expected.items():
        assert torch.equal(received[name], tensor), name


class Spoilt(ClassificationTask):
    """A loss that is infinite though its gradient is not, or the other way round."""

    def __init__(self, *, plus: float = 0.0, slope: float = 1.0) -> None:
        super().__init__(tiny.student(), tiny.processor())
        self.plus, self.slope = plus, slope

    def forward(self, *prepared):
        losses = super().forward(*prepared)
        loss = losses["loss"] + self.plus
        loss.register_hook(lambda gradient: gradient * self.slope)
        return {"loss": loss}


@pytest.mark.parametrize(
    ("spoilt", "taken"),
    [({}, True), ({"plus": math.inf}, False), ({"slope": math.inf}, False), ({"slope": 1e25}, False)],
    ids=["healthy", "infinite loss", "infinite gradient", "gradient whose squares overflow"],
)
def test_loss_and_gradient_are_both_looked_at(spoilt, taken) -> None:
    step = TrainStep(Spoilt(**spoilt), tiny.recipe(), CPU, steps_per_epoch=3, num_classes=3, processes=Processes())
    result = step(batch(0), 0)
    assert bool(result.taken) is taken
    assert step.is_finite()
    assert math.isfinite(result.losses["loss"]) == (spoilt.get("plus", 0) == 0)


# --- a run ---------------------------------------------------------------------------------------------


def test_skipped_steps_are_told_counted_and_left_out_of_the_mean_loss(tmp_path, caplog) -> None:
    losses = []
    result = poisoned.run([1, 6, 7], tmp_path / "run", on_step=lambda event: losses.append(event.loss))
    assert [math.isfinite(loss) for loss in losses] == [i not in (1, 6, 7) for i in range(18)]
    assert [row.get("skipped_steps", 0) for row in result.history] == [1, 0, 2, 0, 0, 0]
    for i, row in enumerate(result.history):
        seen = [loss for loss in losses[3 * i : 3 * i + 3] if math.isfinite(loss)]
        assert row["train_loss"] == pytest.approx(np.mean(seen), rel=1e-6)
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["guard"] == {"skipped_steps": 3}
    assert "3 steps were skipped, as a loss or gradient was infinite or NaN." in result.notes
    told = [line for line in caplog.messages if "is skipped" in line]
    assert told == ["Step 2 is skipped: its loss is nan.", "Step 7 is skipped: its loss is nan."]
    assert all_finite(tmp_path / "run")


def test_a_run_of_finite_numbers_records_nothing(tmp_path) -> None:
    result = poisoned.run([], tmp_path / "run")
    assert "guard" not in json.loads((tmp_path / "run" / "training.json").read_text())
    assert not any("skipped" in text for text in (*result.notes, *result.history[0]))


RETURNS = {"max_skipped_steps": 3, "kept_states": 1, "eval_epochs": 2}  # states after the steps 6, 12 and 18


@pytest.mark.parametrize("stop_after", [7, 8, 10, 14])  # before, in and after the steps that are skipped or undone
def test_a_run_that_skipped_and_went_back_goes_on_with_the_same_bits(tmp_path, stop_after) -> None:
    """The steps 8 to 11 are skipped; the third in a row goes back to the state after step 6."""
    settings, bad = RETURNS, [7, 8, 9, 10]
    seen = {}

    def remember(row) -> None:
        seen[row["step"]] = row.get("skipped_steps", 0)

    whole = poisoned.run(bad, tmp_path / "whole", on_epoch=remember, **settings)
    assert seen == {6: 0, 12: 4, 18: 0}
    guard = json.loads((tmp_path / "whole" / "training.json").read_text())["guard"]
    assert guard == {"skipped_steps": 4, "returns": [{"after_step": 10, "to_state": 6}]}
    assert "the run went back to an earlier state 1 time" in whole.notes[-1]

    def interrupt(event) -> None:
        if event.step == stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingInterrupted):
        poisoned.run(bad, tmp_path / "two", on_step=interrupt, **settings)
    two = poisoned.run(bad, tmp_path / "two", resume=True, **settings)
    assert_same_state(tmp_path / "whole", tmp_path / "two")
    without_time = [[{**row, "seconds": 0} for row in result.history] for result in (whole, two)]
    assert without_time[0] == without_time[1]
    one, two = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_going_back_takes_the_weights_of_the_state_and_the_images_that_come_next(tmp_path) -> None:
    """The oracle: a healthy run of the steps before, and then steps on its state by hand."""
    settings = {**RETURNS, "kept_states": 3}
    poisoned.run([7, 8, 9], tmp_path / "run", **settings)
    state = load_state(tmp_path / "run" / "state")
    poisoned.run([], tmp_path / "healthy", **settings)
    begun = load_file(tmp_path / "healthy" / "state" / "step-00000006" / "tensors.safetensors")
    task, recipe = poisoned.Poisoned(), poisoned.recipe()
    step = TrainStep(task, recipe, CPU, steps_per_epoch=3, num_classes=3, processes=Processes())
    step.restore(begun)
    order = step_order(tiny.data().train, recipe, Processes(), 10, 18)
    batches = training_batches(tiny.data().train, training_transform(recipe, task.processor), order, num_workers=0)
    for number, images in enumerate(batches, start=10):
        step(images, number)
    assert all(torch.equal(state.tensors[name], tensor) for name, tensor in step.tensors().items())


def test_the_state_to_go_back_to_outlives_newer_ones(tmp_path) -> None:
    """State 6 is saved two steps after a skipped step: it is not good, and with kept_states=1 state 3 stays beside."""
    kept = {}
    poisoned.run(
        [3], tmp_path / "run", max_skipped_steps=3, kept_states=1,
        on_epoch=lambda row: kept.update({row["step"]: names_of_states(tmp_path / "run")}),
    )  # fmt: skip
    assert kept[3] == ["step-00000003"]
    assert kept[6] == ["step-00000003", "step-00000006"]
    assert kept[9] == ["step-00000009"]


def test_a_run_that_fails_again_ends_and_leaves_finite_states_to_go_on_from(tmp_path) -> None:
    bad = range(7, 18)
    with pytest.raises(
        NonFiniteLossError,
        match=r"in 3 steps in a row until then, at step 13 .*last good state is .*step-00000006.* --detect-anomaly",
    ):
        poisoned.run(bad, tmp_path / "run", **RETURNS)
    assert names_of_states(tmp_path / "run") == ["step-00000006", "step-00000012"]
    assert all_finite(tmp_path / "run")
    with pytest.raises(NonFiniteLossError, match="at step 13 "):
        poisoned.run(bad, tmp_path / "run", resume=True, **RETURNS)
    poisoned.run([], tmp_path / "run", resume=True, **RETURNS)  # what was wrong is mended
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_without_tolerance_the_first_step_ends_the_run_and_its_weights_are_still_good(tmp_path) -> None:
    with pytest.raises(NonFiniteLossError, match=r"The loss or a gradient was infinite or NaN at step 5 "):
        poisoned.run([4], tmp_path / "run", max_skipped_steps=0)
    poisoned.run([], tmp_path / "run", max_skipped_steps=0, resume=True)
    poisoned.run([], tmp_path / "whole", max_skipped_steps=0)
    assert_same_state(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_learning_rate_that_explodes_ends_the_run_even_if_it_is_short(tmp_path, precision) -> None:
    rates = Optimizer(lr=1e30, reference_batch_size=0)
    with pytest.raises(NonFiniteLossError, match=r"in 4 steps in a row .* No good state was saved before"):
        poisoned.run([], tmp_path / "run", optimizer=rates, precision=precision)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert all_finite(tmp_path / "run")  # of step 3, at which it had begun


def test_masked_images_skip_too(tmp_path) -> None:
    class Blank(type(together.task("masked"))):
        def prepare(self, pixels, targets, place=None):
            pixels, mask = super().prepare(pixels, targets, place)
            return pixels * (math.nan if place.step == 4 else 1), mask

    task = together.task("masked")
    task.__class__ = Blank
    result = fit(task, tiny.data(13, 7), together.recipe("masked"), out=tmp_path / "run", device="cpu")
    assert [row.get("skipped_steps", 0) for row in result.history] == [0, 0, 1, 0, 0]
    assert all_finite(tmp_path / "run")


# --- several processes ---------------------------------------------------------------------------------


def test_infinite_images_on_one_process_are_skipped_by_both_and_named_by_the_first(tmp_path) -> None:
    ran = run_on_ranks("tests.train.poisoned", tmp_path)
    assert ran.returncode == 0, ran.stderr
    counts, named, others, ended = ran.stdout.splitlines()
    assert counts == others == "[0, 4, 0]"
    assert ended == "ended too"
    assert "arose in the images of the batch, before the student, in 1536 of 1536 numbers, at step 5 " in named
    poisoned.run([4], tmp_path / "one")
    one, two = (load_state(tmp_path / run / "state") for run in ("one", "skipped"))
    assert one.meta["guard"]["skipped_steps"] == two.meta["guard"]["skipped_steps"] == 1
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(two.tensors[name], tensor, atol=1e-5, rtol=0, msg=name)


# --- losses that stand out -----------------------------------------------------------------------------


def looked_at(losses, processes: Processes | None = None) -> Guard:
    guard = Guard(20, processes or Processes())
    for step, loss in enumerate(losses, start=1):
        guard.add(step, torch.tensor(loss), torch.tensor(True))
        if step % 7 == 0:  # a GPU is asked now and then
            guard.look()
    guard.look()
    return guard


def test_a_loss_that_stands_out_is_noted_and_others_are_not(caplog) -> None:
    random = np.random.default_rng(0)
    falling = 2 + 5 * np.exp(-np.arange(600) / 200) + random.normal(0, 0.15, 600)
    assert looked_at(falling.tolist()).record() == {}
    falling[[50, 300, 301]] += 4
    record = looked_at(falling.tolist()).record()
    assert [spike["step"] for spike in record["loss_spikes"]] == [51, 301, 302]
    for spike in record["loss_spikes"]:
        number = spike["step"] - 1
        assert spike["loss"] == pytest.approx(falling[number], rel=1e-6)
        assert spike["median"] == pytest.approx(np.median(falling[max(number - 128, 0) : number]), rel=1e-6)
    assert sum("stands out" in line for line in caplog.messages) == 3


def test_a_flat_curve_and_the_first_steps_have_no_spikes() -> None:
    assert looked_at([1.0, 1.1] * 100).record() == {}
    assert looked_at([0.0] * 100).record() == {}
    assert looked_at([*[2.0] * 31, 50.0]).record() == {}
    assert looked_at([*[2.0] * 32, 50.0]).record()["loss_spikes_in_all"] == 1


def test_many_spikes_are_counted_and_the_first_are_told(caplog) -> None:
    losses = ([2.0] * 40 + [9.0]) * 15
    record = looked_at(losses).record()
    assert record["loss_spikes_in_all"] == 15
    assert len(record["loss_spikes"]) == 10
    assert sum("stands out" in line for line in caplog.messages) == 10
