import csv
import json
import os
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from deit.core.file_names import CURVES_NAME
from deit.core.processing.image_processor import evaluation_processor
from deit.data.augment import Augmentation
from deit.inference.predictor import Predictor
from deit.runtime.signals import TrainingInterrupted
from deit.train.loop import fit
from deit.train.optimization import learning_rate
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.sections import Distillation, Optimizer, Schedule
from deit.train.run import history
from deit.train.run.curves import draw_curves
from deit.train.run.ending import NonFiniteLossError
from deit.train.run.history import History
from deit.train.run.state import load_state
from deit.train.tasks.classification import ClassificationTask
from deit.train.tasks.distillation import DistillationTask
from deit.train.teachers.teacher import Teacher
from tests.train import tiny

HOW = Distillation(kind="soft", temperature=1.0, weight=0.5)


def distillation_task(**fields: object) -> DistillationTask:
    torch.manual_seed(1)
    teacher = Teacher(tiny.TinyConvnet(), mean=(0.1, 0.1, 0.1), std=(1.0, 1.0, 1.0), image_size=(8, 8), name="tiny")
    return DistillationTask(tiny.student(**fields), teacher, tiny.processor(), distillation=HOW)


def classification_task(**fields: object) -> ClassificationTask:
    return ClassificationTask(tiny.student(**fields), tiny.processor())


def test_twenty_steps_equal_a_plain_loop_written_here(tmp_path) -> None:
    """The oracle shares only the student, torch's AdamW and the order of images; no loop, loss or schedule of ours."""
    recipe = tiny.recipe(
        distillation=HOW, schedule=Schedule(epochs=7, warmup_epochs=2), augment=tiny.PLAIN, label_smoothing=0.1,
        optimizer=Optimizer(lr=1e-3, reference_batch_size=0, weight_decay=0.1, clip_grad=0.5),
    )  # fmt: skip
    task, data = distillation_task(), tiny.data()
    reference, convnet = tiny.student(), task.teacher.model
    weights = dict(reference.named_parameters())
    plain = [
        p for n, p in weights.items() if p.ndim == 1 or n.split(".")[-1] in ("cls_token", "dist_token", "pos_embed")
    ]
    ids = {id(p) for p in plain}
    matrices = [p for p in weights.values() if id(p) not in ids]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}])
    mean, std = torch.tensor(tiny.MEAN).view(3, 1, 1), torch.tensor(tiny.STD).view(3, 1, 1)
    pictures = [torch.tensor(np.array(data.train.image(i))).permute(2, 0, 1) / 255 for i in range(12)]
    for step in range(21):
        epoch, position = divmod(step, 3)
        chosen = np.random.default_rng((0, epoch)).permutation(12)[4 * position : 4 * position + 4]
        pixels = torch.stack([(pictures[i] - mean) / std for i in chosen])
        labels = torch.tensor([int(data.train.labels[i]) for i in chosen])
        output = reference(pixels)
        resized = F.interpolate((pixels * std + mean - 0.1) / 1.0, size=(8, 8), mode="bicubic", antialias=True)
        with torch.no_grad():
            soft = convnet(resized).softmax(1)
        divergence = (soft * (soft.log() - output.distillation_logits.log_softmax(1))).sum(1).mean()
        targets = F.one_hot(labels, 3) * 0.9 + 0.1 / 3
        loss = 0.5 * -(targets * output.cls_logits.log_softmax(1)).sum(1).mean() + 0.5 * divergence
        for group in optimizer.param_groups:
            if step < 6:
                group["lr"] = 1e-6 + (1e-3 - 1e-6) * step / 6
            else:
                group["lr"] = 1e-5 + (1e-3 - 1e-5) * 0.5 * (1 + np.cos(np.pi * step / 21))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.sqrt(sum((p.grad**2).sum() for p in weights.values()))
        for p in weights.values():
            p.grad *= min(1.0, 0.5 / (norm + 1e-6))
        optimizer.step()
    fit(task, data, recipe, out=tmp_path / "run", device="cpu")
    for name, parameter in task.student.named_parameters():
        torch.testing.assert_close(parameter, weights[name], atol=1e-5, rtol=1e-4)


def test_a_run_leaves_a_model_directory_that_classifies(tmp_path) -> None:
    recipe = tiny.recipe(distillation=HOW, augment=tiny.PLAIN, schedule=Schedule(epochs=15, warmup_epochs=1))
    result = fit(classification_task(), tiny.data(24, 9), recipe, out=tmp_path / "run", device="cpu")
    assert result.scores["both"].top1 > 60  # brightness of three levels; chance is 33
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        ".lock", "README.md", "config.json", "curves.png", "images.npy", "metrics.csv", "metrics.jsonl",
        "model.safetensors", "preprocessor_config.json", "recipe.yaml", "state", "training.json",
    ]  # fmt: skip
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["scores"]["both"]["top1"] == result.scores["both"].top1
    assert record["recipe"]["batch_size"] == 4
    assert (record["teacher"], record["steps"]) == (None, 90)
    assert Recipe.load(tmp_path / "run" / "recipe.yaml") == recipe
    predictor = Predictor.open(tmp_path / "run")
    data = tiny.data(24, 9)
    said = [answer[0].label for answer in predictor.classify([data.val.image(i) for i in range(9)])]
    right = sum(name == data.val.classes[label] for name, label in zip(said, data.val.labels, strict=True))
    assert 100 * right / 9 == pytest.approx(result.scores["both"].top1)


def test_the_metrics_are_written_as_lines_table_and_picture(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(history, "draw_curves", draw_curves)  # as outside of the tests
    recipe = tiny.recipe(distillation=HOW)
    result = fit(distillation_task(), tiny.data(), recipe, out=tmp_path / "run", device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    with (tmp_path / "run" / "metrics.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert lines == result.history
    assert [int(row["epoch"]) for row in rows] == [line["epoch"] for line in lines] == [1, 2, 3]
    assert [float(row["val_top1"]) for row in rows] == [line["val_top1"] for line in lines]
    assert lines[-1]["lr"] == pytest.approx(learning_rate(8, steps_per_epoch=3, recipe=recipe))
    parts = 0.5 * lines[0]["train_class_loss"] + 0.5 * lines[0]["train_distillation_loss"]
    assert lines[0]["train_loss"] == pytest.approx(parts, rel=1e-5)
    with Image.open(tmp_path / "run" / CURVES_NAME) as picture:
        assert picture.format == "PNG"
        assert np.asarray(picture.convert("L")).std() > 10  # not an empty canvas


STRONG = Augmentation(mixup_alpha=0.8, cutmix_alpha=1.0)


@pytest.mark.parametrize("stop_after", [1, 4, 6])  # within the first epoch, within the second, at an epoch's end
def test_an_interrupted_and_resumed_run_ends_with_the_same_bits(tmp_path, stop_after) -> None:
    """Dropout, drop path, augmentation, mixing, EMA and optimizer state all go on where they were."""
    recipe = tiny.recipe(distillation=HOW, augment=STRONG, ema_decay=0.9, drop_path_rate=0.2)
    noise = {"hidden_dropout_prob": 0.1}
    fit(distillation_task(**noise), tiny.data(), recipe, out=tmp_path / "whole", device="cpu")

    def interrupt(event) -> None:
        if event.step == stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingInterrupted, match=f"Stopped after step {stop_after} of 9"):
        fit(distillation_task(**noise), tiny.data(), recipe, out=tmp_path / "two", device="cpu", on_step=interrupt)
    assert not (tmp_path / "two" / "model.safetensors").exists()
    torch.manual_seed(12345)  # whatever happened in between
    steps = []
    fit(
        distillation_task(**noise), tiny.data(), recipe, out=tmp_path / "two", device="cpu", resume=True,
        on_step=lambda event: steps.append(event.step),
    )  # fmt: skip
    assert steps == list(range(stop_after + 1, 10))
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    whole, resumed = (load_state(tmp_path / name / "state") for name in ("whole", "two"))
    assert all(torch.equal(whole.tensors[name], resumed.tensors[name]) for name in whole.tensors)
    history = [json.loads(line)["epoch"] for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert history == [1, 2, 3]


def test_a_state_every_few_steps_is_all_that_a_crash_needs(tmp_path) -> None:
    """Three steps in an epoch; states after the steps 2, 3, 4, 6, 8 and 9."""
    recipe, seen = tiny.recipe(state_steps=2, ema_decay=0.9), []

    def crash(event) -> None:
        seen.append(sorted(int(path.name[5:]) for path in (tmp_path / "two" / "state").glob("step-*")))
        if event.step == 6:
            raise RuntimeError("a bug")

    whole = fit(classification_task(), tiny.data(), recipe, out=tmp_path / "whole", device="cpu")
    with pytest.raises(RuntimeError, match="a bug"):
        fit(classification_task(), tiny.data(), recipe, out=tmp_path / "two", device="cpu", on_step=crash)
    assert all(max(steps, default=0) < step for step, steps in enumerate(seen, 1))  # written while steps are done
    assert sorted(int(path.name[5:]) for path in (tmp_path / "two" / "state").glob("step-*")) == [3, 4]
    two = fit(classification_task(), tiny.data(), recipe, out=tmp_path / "two", device="cpu", resume=True)
    assert [{**row, "seconds": 0} for row in whole.history] == [{**row, "seconds": 0} for row in two.history]
    states = [load_state(tmp_path / run / "state").tensors for run in ("whole", "two")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_signal_handlers_are_put_back(tmp_path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    fit(classification_task(), tiny.data(), tiny.recipe(), out=tmp_path / "run", device="cpu")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_the_average_is_evaluated_and_saved(tmp_path) -> None:
    task = classification_task()
    result = fit(task, tiny.data(), tiny.recipe(ema_decay=0.9), out=tmp_path / "run", device="cpu")
    assert {"val_top1", "ema_top1"} <= set(result.history[-1])
    saved = load_file(tmp_path / "run" / "model.safetensors")["deit.embeddings.position_embeddings"]
    assert not torch.equal(saved, task.student.deit.trunk.pos_embed)
    averaged = load_state(tmp_path / "run" / "state").tensors["average.module.deit.trunk.pos_embed"]
    assert torch.equal(saved, averaged)
    assert json.loads((tmp_path / "run" / "training.json").read_text())["weights"] == "average"


def test_a_nan_stops_a_run_without_tolerance_names_the_step_and_keeps_the_last_good_state(tmp_path) -> None:
    task = classification_task()

    def poison(event) -> None:
        if event.step == 4:
            with torch.no_grad():
                task.student.cls_classifier.weight.fill_(float("nan"))

    recipe = tiny.recipe(max_skipped_steps=0)
    with pytest.raises(NonFiniteLossError, match=r"infinite or NaN at step 5 .*last good state is .*step-00000003"):
        fit(task, tiny.data(), recipe, out=tmp_path / "run", device="cpu", on_step=poison)
    state = load_state(tmp_path / "run" / "state")
    assert state.step == 3
    assert all(torch.isfinite(t).all() for t in state.tensors.values())


def test_weights_that_became_nan_in_the_last_step_of_an_epoch_are_not_saved(tmp_path) -> None:
    task = classification_task()

    def poison(event) -> None:
        if event.step == 6:
            with torch.no_grad():
                task.student.cls_classifier.weight.fill_(float("nan"))

    with pytest.raises(NonFiniteLossError, match="A weight became infinite or NaN at step 6"):
        fit(task, tiny.data(), tiny.recipe(max_skipped_steps=0), out=tmp_path / "run", device="cpu", on_step=poison)
    assert load_state(tmp_path / "run" / "state").step == 3
    task, begun = classification_task(), load_state(tmp_path / "run" / "state").tensors
    seen = []

    def remember(row) -> None:
        seen.append(torch.equal(task.student.cls_classifier.weight, begun["student.cls_classifier.weight"]))

    fit(task, tiny.data(), tiny.recipe(), out=tmp_path / "back", device="cpu", on_step=poison, on_epoch=remember)
    assert seen == [True, True, False]  # after step 6 the weights are again those after step 3
    record = json.loads((tmp_path / "back" / "training.json").read_text())
    assert record["guard"] == {"returns": [{"after_step": 6, "to_state": 3}]}


def test_a_folder_that_holds_a_run_is_refused(tmp_path) -> None:
    fit(classification_task(), tiny.data(), tiny.recipe(), out=tmp_path / "run", device="cpu")
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="holds a run already"):
        fit(classification_task(), tiny.data(), tiny.recipe(), out=tmp_path / "run", device="cpu")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


def test_a_folder_with_other_files_is_refused(tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds other files already"):
        fit(classification_task(), tiny.data(), tiny.recipe(), out=tmp_path, device="cpu")


def test_resuming_with_other_settings_data_or_teacher_is_refused(tmp_path) -> None:
    fit(classification_task(), tiny.data(), tiny.recipe(), out=tmp_path / "run", device="cpu")
    with pytest.raises(ValueError, match="other settings: seed"):
        fit(classification_task(), tiny.data(), tiny.recipe(seed=1), out=tmp_path / "run", device="cpu", resume=True)
    with pytest.raises(ValueError, match="another training images"):
        fit(classification_task(), tiny.data(15), tiny.recipe(), out=tmp_path / "run", device="cpu", resume=True)
    with pytest.raises(ValueError, match=r"another teacher|other settings: distillation.kind"):
        fit(
            distillation_task(),
            tiny.data(),
            tiny.recipe(distillation=HOW),
            out=tmp_path / "run",
            device="cpu",
            resume=True,
        )


def test_resuming_with_another_architecture_or_preprocessing_is_refused_by_what_differs(tmp_path) -> None:
    """Neither changes the shape of a weight."""

    def again(student=None, processor=None) -> None:
        task = ClassificationTask(student or tiny.student(), processor or tiny.processor())
        fit(task, tiny.data(), tiny.recipe(), out=tmp_path / "run", device="cpu", resume=(tmp_path / "run").exists())

    again()
    again()
    with pytest.raises(ValueError, match=r"another student: {'num_attention_heads': 2}. Received: .* 4}"):
        again(student=tiny.student(num_attention_heads=4))
    other = evaluation_processor((tiny.SIDE, tiny.SIDE), crop_ratio=1.0, mean=(0.1, 0.1, 0.1), std=tiny.STD)
    with pytest.raises(ValueError, match=r"another preprocessing: {'image_mean': \[0.5, 0.4, 0.3\]}"):
        again(processor=other)


def test_a_resumed_epoch_has_the_losses_of_all_its_steps(tmp_path) -> None:
    """Four steps in an epoch, stopped after the sixth."""
    recipe = tiny.recipe(distillation=HOW, batch_size=3, augment=tiny.PLAIN)

    def stop(event) -> None:
        if event.step == 6:
            os.kill(os.getpid(), signal.SIGINT)

    whole = fit(distillation_task(), tiny.data(), recipe, out=tmp_path / "whole", device="cpu")
    with pytest.raises(TrainingInterrupted):
        fit(distillation_task(), tiny.data(), recipe, out=tmp_path / "run", device="cpu", on_step=stop)
    resumed = fit(distillation_task(), tiny.data(), recipe, out=tmp_path / "run", device="cpu", resume=True)
    without_time = [[{k: v for k, v in row.items() if k != "seconds"} for row in r.history] for r in (whole, resumed)]
    assert without_time[0] == without_time[1]


def test_resuming_a_finished_run_writes_the_same_model(tmp_path) -> None:
    fit(classification_task(), tiny.data(), tiny.recipe(), out=tmp_path / "run", device="cpu")
    before = load_file(tmp_path / "run" / "model.safetensors")
    result = fit(classification_task(), tiny.data(), tiny.recipe(), out=tmp_path / "run", device="cpu", resume=True)
    after = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert result.steps == 9


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no run to resume"):
        fit(classification_task(), tiny.data(), tiny.recipe(), out=tmp_path, device="cpu", resume=True)


def test_a_batch_larger_than_the_data_is_refused_before_anything_is_written(tmp_path) -> None:
    with pytest.raises(ValueError, match="12 training images and the batch size is 64"):
        fit(classification_task(), tiny.data(), tiny.recipe(batch_size=64), out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_clear_error(tmp_path) -> None:
    with pytest.raises(ValueError, match="PyTorch finds no GPU"):
        fit(classification_task(), tiny.data(), tiny.recipe(), out=tmp_path / "run", device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_on_a_gpu_in_bf16_learns(tmp_path) -> None:
    recipe = tiny.recipe(distillation=HOW, augment=tiny.PLAIN, schedule=Schedule(epochs=15, warmup_epochs=1))
    result = fit(distillation_task(), tiny.data(24, 9), recipe, out=tmp_path / "run", device="cuda")
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]


def test_bf16_on_the_cpu_stays_close_to_fp32(tmp_path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        recipe = tiny.recipe(augment=tiny.PLAIN, precision=precision)
        losses[precision] = fit(
            classification_task(), tiny.data(), recipe, out=tmp_path / precision, device="cpu"
        ).history[-1]["train_loss"]
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)


def test_history_forgets_what_a_resumed_run_does_again(tmp_path) -> None:
    history = History(tmp_path)
    for epoch in (1, 2, 3):
        history.epochs.append({"epoch": epoch, "step": 10 * epoch})
        history.write()
    assert [row["epoch"] for row in History(tmp_path, until_step=20).epochs] == [1, 2]
