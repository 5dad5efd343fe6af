"""Keeping the best weights and stopping early, against scores that are written down here."""

import json
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from deit.core.scores.metrics import Scores
from deit.data.sources import Data, Subset
from deit.runtime.processes import Processes
from deit.runtime.signals import TrainingInterrupted
from deit.train.loop import fit
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.sections import Schedule
from deit.train.run.state import load_state
from deit.train.selection.kept_weights import STUDENT, KeptWeights
from deit.train.tasks.classification import ClassificationTask
from tests.train import tiny

# What the student and its average score after each epoch; the first number is top-1, the second the loss.
UP_AND_DOWN = [(30.0, 2.0), (60.0, 1.0), (50.0, 1.1), (60.0, 0.9), (60.0, 0.95), (40.0, 3.0)]


class Scripted(ClassificationTask):
    """Answers with scores that are written down, whatever the weights are, and remembers those."""

    def __init__(self, scores, average=None, *, done: int = 0) -> None:
        super().__init__(tiny.student(), tiny.processor())
        self.script, self.of_average, self.epoch = scores, average, done
        self.seen = []

    def score(self, student, data, device, **options):
        if student is self.student:
            self.epoch += 1
        pair = (self.script if student is self.student else self.of_average)[min(self.epoch, len(self.script)) - 1]
        self.seen.append({name: tensor.clone() for name, tensor in student.state_dict().items()})
        return {"both": Scores(top1=pair[0], top5=100.0, loss=pair[1], images=6)}


def recipe(epochs: int = 6, *, patience: int = 0, **settings) -> Recipe:
    return tiny.recipe(schedule=Schedule(epochs=epochs, warmup_epochs=1, patience=patience), **settings)


def run(task, out, chosen, *, data=None, resume=False, **options):
    return fit(task, data or tiny.data(4), chosen, out=out, device="cpu", resume=resume, **options)


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one, two) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def record(folder) -> dict:
    return json.loads((folder / "training.json").read_text())


def test_the_best_of_scripted_scores_becomes_the_model_and_the_last_one_stays_reachable(tmp_path) -> None:
    task = Scripted(UP_AND_DOWN)
    result = run(task, tmp_path / "best", recipe(keep="best"))
    run(Scripted(UP_AND_DOWN), tmp_path / "plain", recipe())
    kept = record(tmp_path / "best")["kept"]
    assert kept == {
        "epoch": 4, "step": 4, "weights": "student", "score": "top1", "value": 60.0, "loss": 0.9, "images": 6,
        "evaluations": 6,
    }  # fmt: skip
    pos = "deit.trunk.pos_embed"
    assert torch.equal(weights(tmp_path / "best")["deit.embeddings.position_embeddings"], task.seen[3][pos])
    assert same(weights(tmp_path / "best" / "last"), weights(tmp_path / "plain"))
    assert record(tmp_path / "best" / "last")["weights"] == record(tmp_path / "plain")["weights"] == "last"
    assert any("Kept the weights after epoch 4, the best of 6 evaluations: top-1 60.00 %" in n for n in result.notes)
    assert any("optimistic" in note for note in result.notes)
    card = (tmp_path / "best" / "README.md").read_text()
    assert all(words in card for words in ("With 6 images top-1 is known to plus or minus", "optimistic"))
    assert result.student is task.student


def test_the_average_is_a_candidate_and_the_chosen_score_decides(tmp_path) -> None:
    average = [(10.0, 5.0), (20.0, 4.0), (70.0, 3.0), (10.0, 0.5), (0.0, 9.0), (0.0, 9.0)]
    for score, expected in {
        "": (3, "average", 70.0),
        "loss": (4, "average", 0.5),
        "top5": (4, "average", 100.0),
    }.items():
        out = tmp_path / (score or "main")
        task = Scripted(UP_AND_DOWN, average)
        run(task, out, recipe(keep="best", keep_score=score, ema_decay=0.9))
        kept = record(out)["kept"]
        assert (kept["epoch"], kept["weights"], kept["value"]) == expected
        position = weights(out)["deit.embeddings.position_embeddings"]
        assert torch.equal(position, task.seen[2 * expected[0] - 1]["deit.trunk.pos_embed"])
        averaged = load_state(out / "state").tensors["average.module.deit.trunk.pos_embed"]
        assert torch.equal(weights(out / "last")["deit.embeddings.position_embeddings"], averaged)


def test_patience_ends_the_run_and_going_on_finds_it_finished(tmp_path, caplog) -> None:
    result = run(Scripted(UP_AND_DOWN), tmp_path / "run", recipe(patience=1))
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    assert "Stopped early after epoch 3 of 6: 1 evaluations without a better top-1 %" in caplog.text
    assert record(tmp_path / "run")["stopped_early"] == {"patience": 1, "after_evaluations": 3}
    assert record(tmp_path / "run")["weights"] == "last"
    before = weights(tmp_path / "run")
    again = run(Scripted(UP_AND_DOWN, done=2), tmp_path / "run", recipe(patience=1), resume=True)
    assert "has ended. Stopped early after epoch 3" in caplog.text
    assert again.steps == 3
    assert same(before, weights(tmp_path / "run"))
    longer = run(Scripted(UP_AND_DOWN, done=3), tmp_path / "run", recipe(patience=2), resume=True)
    assert [row["epoch"] for row in longer.history] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]  # epoch 4 is better: an equal score, less loss


def test_a_run_stopped_anywhere_keeps_the_same_bits(tmp_path) -> None:
    chosen = recipe(5, patience=3, keep="best", ema_decay=0.8)
    data = tiny.data(12, 9)
    plain = lambda: ClassificationTask(tiny.student(), tiny.processor())  # noqa: E731
    whole = run(plain(), tmp_path / "whole", chosen, data=data)
    for stop_at in (2, 3, 7, 12):  # within an epoch, at an evaluation, without saving a state, at an evaluation

        def stop(event, at=stop_at) -> None:
            if event.step == at == 7:
                raise KeyboardInterrupt
            if event.step == at:
                signal.raise_signal(signal.SIGINT)

        out = tmp_path / str(stop_at)
        try:
            run(plain(), out, chosen, data=data, on_step=stop)
        except (TrainingInterrupted, KeyboardInterrupt):
            run(plain(), out, chosen, data=data, resume=True)
        assert same(weights(out), weights(tmp_path / "whole"))
        assert same(weights(out / "last"), weights(tmp_path / "whole" / "last"))
        assert record(out)["kept"] == record(tmp_path / "whole")["kept"]
        one, two = (load_state(folder / "state") for folder in (out, tmp_path / "whole"))
        assert same(one.tensors, two.tensors)
    assert whole.scores["both"].top1 == record(tmp_path / "whole")["kept"]["value"]


def test_a_longer_run_goes_on_with_what_was_kept(tmp_path) -> None:
    task = Scripted(UP_AND_DOWN)
    run(task, tmp_path / "run", recipe(3, keep="best"))
    assert record(tmp_path / "run")["kept"]["epoch"] == 2
    run(Scripted(UP_AND_DOWN[:3] + [(1.0, 9.0)] * 2, done=3), tmp_path / "run", recipe(5, keep="best"), resume=True)
    kept = record(tmp_path / "run")["kept"]
    assert (kept["epoch"], kept["evaluations"]) == (2, 5)
    position = weights(tmp_path / "run")["deit.embeddings.position_embeddings"]
    assert torch.equal(position, task.seen[1]["deit.trunk.pos_embed"])


def test_a_score_that_is_no_number_is_never_the_best() -> None:
    kept = KeptWeights(Recipe(keep="best"), ("top1", "loss"), Processes())
    for step, value in enumerate([float("nan"), 5.0, float("nan"), 4.0], start=1):
        row = {"step": step, "epoch": step, "val_top1": value, "val_loss": 1.0}
        kept.compare(row, {STUDENT: torch.nn.Linear(1, 1)})
    assert kept.best is not None
    assert (kept.best["epoch"], kept.since, kept.evaluations) == (2, 2, 4)


def test_a_run_without_validation_images_trains_and_says_so(tmp_path) -> None:
    data = tiny.data(8)
    alone = Data(train=data.train, val=Subset(data.val, np.zeros(0, np.int64)))
    task = ClassificationTask(tiny.student(), tiny.processor())
    result = run(task, tmp_path / "run", recipe(2), data=alone)
    assert result.scores == {}
    assert "No images were held out" in (tmp_path / "run" / "README.md").read_text()
    again = run(
        ClassificationTask(tiny.student(), tiny.processor()), tmp_path / "run", recipe(2), data=alone, resume=True
    )
    assert again.steps == result.steps
    for settings in ({"keep": "best"}, {"patience": 2}):
        with pytest.raises(ValueError, match="chooses by the scores of validation images, and there are none"):
            run(task, tmp_path / "other", recipe(2, **settings), data=alone)


def test_wrong_settings_are_refused_before_anything_is_written(tmp_path) -> None:
    with pytest.raises(ValueError, match="keep must be one of"):
        Recipe(keep="first")
    with pytest.raises(ValueError, match=r"keep_score must be one of .* Did you mean 'top1'"):
        Recipe(keep_score="top-1")
    with pytest.raises(ValueError, match="patience must be at least 0"):
        Schedule(patience=-1)
    with pytest.raises(ValueError, match="stop_epoch must lie in"):
        Schedule(epochs=3, warmup_epochs=0, stop_epoch=4)
    task = ClassificationTask(tiny.student(), tiny.processor())
    with pytest.raises(
        ValueError, match="keep_score=micro_f1 is no score of this training, which has top1, top5, loss"
    ):
        run(task, tmp_path / "run", recipe(keep="best", keep_score="micro_f1"))
    assert not (tmp_path / "run").exists()
    run(task, tmp_path / "run", recipe(2))
    with pytest.raises(ValueError, match="other settings: keep"):
        run(task, tmp_path / "run", recipe(2, keep="best"), resume=True)


def test_a_run_that_ends_before_its_schedule_does_is_the_beginning_of_the_whole_one(tmp_path) -> None:
    plain = lambda: ClassificationTask(tiny.student(), tiny.processor())  # noqa: E731
    short = tiny.recipe(schedule=Schedule(epochs=4, warmup_epochs=1, stop_epoch=2))
    run(plain(), tmp_path / "short", short, data=tiny.data())
    run(plain(), tmp_path / "whole", recipe(4), data=tiny.data())
    at_two = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()][1]
    ended = [json.loads(line) for line in (tmp_path / "short" / "metrics.jsonl").read_text().splitlines()]
    assert len(ended) == 2
    assert {k: v for k, v in ended[1].items() if k != "seconds"} == {k: v for k, v in at_two.items() if k != "seconds"}
