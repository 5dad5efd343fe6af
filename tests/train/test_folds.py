"""K-fold trainings: who answers which image, which epoch is chosen, and what is written."""

import csv
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import StratifiedKFold

from deit.core.errors import DamagedFileError
from deit.core.labels import NO_LABEL
from deit.core.scores.out_of_fold import OutOfFold
from deit.data.sources import ArraySource, Data, HeldOut, Subset
from deit.runtime.signals import TrainingInterrupted
from deit.train.folds.division import fold_numbers
from deit.train.folds.epoch_choice import choose_epoch
from deit.train.folds.fit_folds import fit_folds
from deit.train.loop import fit
from deit.train.recipes.sections import Schedule
from deit.train.tasks.classification import ClassificationTask
from tests.train import tiny

CLASSES = ["a", "b", "c"]


# --- who is in which fold -----------------------------------------------------------------------------


def test_classes_are_in_all_folds_in_equal_shares() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [23, 11, 6]))
    numbers = fold_numbers(labels, CLASSES, 5, seed=3)
    counts = np.array([[((numbers == fold) & (labels == c)).sum() for c in range(3)] for fold in range(5)])
    assert (np.ptp(counts, axis=0) <= 1).all()
    assert np.ptp(counts.sum(1)) <= 1
    theirs = StratifiedKFold(5).split(np.zeros(len(labels)), labels)
    sizes = sorted(tuple(np.bincount(labels[held_out], minlength=3)) for _, held_out in theirs)
    assert np.ptp(np.array(sizes), axis=0).tolist() == np.ptp(counts, axis=0).tolist()
    assert (fold_numbers(labels, CLASSES, 5, seed=3) == numbers).all()
    assert (fold_numbers(labels, CLASSES, 5, seed=4) != numbers).any()


def test_copies_are_in_one_fold_and_images_without_a_label_in_none() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1, 0, 1, NO_LABEL, NO_LABEL])
    contents = np.array([1, 2, 3, 4, 5, 6, 1, 4, 2, 9], np.uint64)
    numbers = fold_numbers(labels, CLASSES[:2], 3, seed=0, contents=contents)
    assert numbers[0] == numbers[6]
    assert numbers[3] == numbers[7]
    assert sorted(numbers[:3]) == sorted(numbers[3:6]) == [0, 1, 2]
    assert numbers[8:].tolist() == [-1, -1]


def test_several_classes_and_numbers_are_spread() -> None:
    random = np.random.default_rng(0)
    several = (random.random((60, 4)) < [0.5, 0.3, 0.15, 0.1]).astype(np.float32)
    numbers = fold_numbers(several, ["w", "x", "y", "z"], 4, seed=0)
    counts = np.array([several[numbers == fold].sum(0) for fold in range(4)])
    assert (counts >= 1).all()
    assert (np.ptp(counts, axis=0) <= 4).all()
    assert np.ptp(np.bincount(numbers)) <= 4
    heights = random.normal(size=50).astype(np.float32)
    numbers = fold_numbers(heights, ["value"], 5, seed=0)
    ranks = np.argsort(np.argsort(heights))
    assert all(sorted(numbers[ranks // 5 == group]) == [0, 1, 2, 3, 4] for group in range(10))


@pytest.mark.parametrize(
    ("labels", "folds", "message"),
    [
        ([0, 0, 1, 1], 1, "folds must be at least 2"),
        ([0, 0, 0, 1, 1], 3, r"Class 'b' has 2 different image\(s\), fewer than the 3 folds.* Pass folds=2 or fewer"),
        ([0, 0, 0, 1], 2, r"Class 'b' has 1 different image\(s\).* leave the class out"),
        ([0, 1], 5, "2 different images cannot be divided into 5 folds"),
    ],
)
def test_too_few_images_are_refused(labels, folds, message) -> None:
    with pytest.raises(ValueError, match=message):
        fold_numbers(np.array(labels), CLASSES, folds, seed=0)


# --- which epoch --------------------------------------------------------------------------------------


def rows(*top1: float) -> list[dict]:
    return [{"epoch": i + 1, "step": 10 * (i + 1), "val_top1": v, "val_loss": 1.0} for i, v in enumerate(top1)]


def test_each_fold_is_answered_after_the_epoch_that_the_others_chose() -> None:
    """Means of all: 40, 50, 46.7; without the first: 45, 50, 65; the second: 45, 60, 50; the third: 30, 40, 25."""
    folds = [rows(30, 50, 10), rows(30, 30, 40), rows(60, 70, 90)]
    choice = choose_epoch(folds, [10, 10, 10], "top1", "val")
    assert (choice.epoch, choice.value, choice.of_fold) == (2, 50.0, (2, 1, 1))
    assert choose_epoch(folds, [10, 10, 1000], "top1", "val").epoch == 3
    assert choose_epoch([rows(float("nan"), 1), rows(5, 1)], [1, 1], "top1", "val").epoch == 2
    with pytest.raises(ValueError, match="other epochs"):
        choose_epoch([rows(1, 2), rows(1)], [1, 1], "top1", "val")
    with pytest.raises(ValueError, match="No evaluation of the folds has a top1"):
        choose_epoch([rows(float("nan"))] * 2, [1, 1], "top1", "val")


# --- trainings ----------------------------------------------------------------------------------------


def build(data=None, folder=None) -> ClassificationTask:
    return ClassificationTask(tiny.student(), tiny.processor())


def whole(train: int = 9, val: int = 6) -> Data:
    """Data as `open_data` divides it."""
    found = tiny.data(train, val)
    return Data(train=found.train, val=found.val, held_out=HeldOut(val_fraction=0.4, seed=0))


def recipe(epochs: int = 2, **settings):
    return tiny.recipe(schedule=Schedule(epochs=epochs, warmup_epochs=0), **settings)


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three folds of 15 images, of which the best epoch is kept."""
    out = tmp_path_factory.mktemp("folds") / "run"
    return out, fit_folds(build, whole(), recipe(keep="best"), out=out, folds=3, device="cpu")


def test_each_image_is_answered_by_the_model_that_did_not_learn_from_it(trained) -> None:
    """The models of the folds are trained here once more, by `fit` alone, and asked by a plain loop."""
    out, result = trained
    data = whole()
    images = [data.train.image(i) for i in range(9)] + [data.val.image(i) for i in range(6)]
    labels = np.concatenate([data.train.labels, data.val.labels])
    pixels = np.stack([np.asarray(image) for image in images])
    source = ArraySource(pixels, labels, data.train.classes)
    answers = OutOfFold.read(out)
    assert np.array_equal(answers.labels, labels)
    assert sorted(np.bincount(answers.folds)[1:]) == [5, 5, 5]
    fold = int(answers.folds[0])
    own = np.flatnonzero(answers.folds == fold)
    step = [row["step"] for row in json_rows(out / "folds" / str(fold))][result.choice.of_fold[fold - 1]]
    alone = Data(train=Subset(source, np.flatnonzero(answers.folds != fold)), val=Subset(source, own))
    ends = {2: 1, 4: 2}[step]  # 10 images in batches of 4: two steps an epoch
    task = build()
    short = tiny.recipe(schedule=Schedule(epochs=2, warmup_epochs=0, stop_epoch=ends))
    fit(task, alone, short, out=out.parent / "alone", device="cpu")
    ready = task.processor(images=[images[i] for i in own], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = task.student.eval()(ready).logits.softmax(1)
    assert np.allclose(answers.probabilities[own], expected.numpy(), atol=1e-5)


def json_rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_last_model_learns_from_all_images_and_ends_where_the_folds_chose(trained) -> None:
    out, result = trained
    record = json.loads((out / "training.json").read_text())
    assert record["data"]["train_images"] == 15
    assert record["data"]["val_images"] == 0
    assert record["scores"] == {}
    assert record["recipe"]["schedule"]["stop_epoch"] == result.choice.epoch == json_rows(out)[-1]["epoch"]
    assert record["recipe"]["keep"] == "last"
    assert record["out_of_fold"]["top1"] == result.scores.scores.top1
    assert "Out-of-fold, by 3 models" in (out / "README.md").read_text()
    assert not (out / "folds" / "1" / "state").exists()


def test_the_scores_are_those_of_the_answers(trained) -> None:
    out, result = trained
    answers, found = OutOfFold.read(out), json.loads((out / "out_of_fold.json").read_text())
    said = answers.probabilities.argmax(1)
    assert np.array_equal(found["confusion"], confusion_matrix(answers.labels, said, labels=[0, 1, 2]))
    assert found["scores"]["top1"] == pytest.approx(100 * (said == answers.labels).mean())
    true = answers.probabilities[np.arange(15), answers.labels]
    assert found["scores"]["loss"] == pytest.approx(-np.log(true).mean(), rel=1e-5)
    assert [row["images"] for row in found["per_class"]] == [5, 5, 5]
    assert any("plus or minus" in note for note in result.scores.notes(3))
    table = list(csv.DictReader((out / "out_of_fold.csv").read_text().splitlines()))
    assert [row["answer"] for row in table] == [answers.classes[i] for i in said]
    assert float(table[4]["probability of class 1"]) == pytest.approx(answers.probabilities[4, 1], rel=1e-4)


def test_a_stopped_training_goes_on_to_the_same_bits(trained, tmp_path) -> None:
    out, _ = trained
    steps = iter(range(1000))

    def stopping(stop_at):
        def fit_one(*arguments, **options):
            def stop(event) -> None:
                if next(steps) == stop_at:
                    raise KeyboardInterrupt

            return fit(*arguments, on_step=stop, **options)

        return fit_one

    options = {"out": tmp_path / "run", "folds": 3, "device": "cpu"}
    with pytest.raises((KeyboardInterrupt, TrainingInterrupted)):
        fit_folds(build, whole(), recipe(keep="best"), fit_one=stopping(6), **options)
    with pytest.raises(FileExistsError, match="holds a run already"):
        fit_folds(build, whole(), recipe(keep="best"), **options)
    with pytest.raises(ValueError, match=r"has 3 folds\. Received: 2"):
        fit_folds(build, whole(), recipe(keep="best"), resume=True, **{**options, "folds": 2})
    with pytest.raises(ValueError, match=r"other settings: .*seed"):
        fit_folds(build, whole(), recipe(keep="best", seed=1), resume=True, **options)
    fit_folds(build, whole(), recipe(keep="best"), resume=True, **options)
    assert all(torch.equal(tensor, weights(out)[name]) for name, tensor in weights(tmp_path / "run").items())
    one, two = OutOfFold.read(out), OutOfFold.read(tmp_path / "run")
    assert np.array_equal(one.probabilities, two.probabilities)


def test_a_training_that_goes_on_after_its_end_trains_nothing(trained) -> None:
    out, result = trained
    asked = []
    again = fit_folds(
        build, whole(), recipe(keep="best"), out=out, folds=3, device="cpu", resume=True,
        on_fold=lambda number, data: asked.append(number),
    )  # fmt: skip
    assert asked == [0]
    assert again.final.steps == result.final.steps


def test_data_that_came_divided_keeps_its_validation_images_apart(tmp_path) -> None:
    result = fit_folds(build, tiny.data(9, 6), recipe(1), out=tmp_path / "run", folds=2, device="cpu")
    assert result.choice is None
    assert result.final.scores["both"].images == 6
    assert len(result.answers.names) == 9


# --- the file -----------------------------------------------------------------------------------------


def test_answers_are_read_as_they_were_written(tmp_path) -> None:
    answers = OutOfFold(
        names=np.array(["=1+1.png", "zweite é.png"]), labels=np.array([0, 1]),
        probabilities=np.array([[0.25, 0.75], [np.nan, np.nan]], np.float32), classes=["cat", "dog"],
        folds=np.array([1, 2]), contents=np.array([5, 2**64 - 1], np.uint64),
    )  # fmt: skip
    answers.write(tmp_path)
    found = OutOfFold.read(tmp_path)
    for name in ("names", "labels", "folds", "contents"):
        assert np.array_equal(getattr(found, name), getattr(answers, name))
    assert np.array_equal(found.probabilities, answers.probabilities, equal_nan=True)
    assert (found.classes, found.problem_type) == (["cat", "dog"], "single_label_classification")
    table = list(csv.reader((tmp_path / "out_of_fold.csv").read_text().splitlines()))
    assert table[1] == ["'=1+1.png", "cat", "1", "dog", "0.25", "0.75"]
    assert table[2][3] == ""


def test_other_files_are_refused(tmp_path) -> None:
    file = tmp_path / "out_of_fold.npz"
    with pytest.raises(FileNotFoundError, match="--folds 5"):
        OutOfFold.read(tmp_path)
    file.write_bytes(b"no archive")
    with pytest.raises(DamagedFileError):
        OutOfFold.read(file)
    good = {
        "names": np.array(["x"]), "labels": np.array([0]), "probabilities": np.ones((1, 2), np.float32),
        "classes": np.array(["a", "b"]), "folds": np.array([1]),
        "problem_type": np.array("single_label_classification"),
    }  # fmt: skip
    for name, value in {
        "labels": np.array([2]), "probabilities": np.ones((2, 2), np.float32), "names": np.array([1]),
        "problem_type": np.array("other"), "classes": np.array([], str),
    }.items():  # fmt: skip
        np.savez(file, **{**good, name: value})
        with pytest.raises(DamagedFileError, match="do not fit"):
            OutOfFold.read(file)
    np.savez(file, **{**good, "names": np.array([object()])})
    with pytest.raises(DamagedFileError):
        OutOfFold.read(file)
