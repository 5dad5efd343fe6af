"""The model card: what huggingface_hub reads in it, and that it tells what the record of the run holds."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import ModelCard

from deit.data.sources import Data
from deit.data.unlabelled import WithoutLabels
from deit.models.deit import DeiTForMaskedImageModeling
from deit.train.loop import fit
from deit.train.masked_images import MaskedImageTask
from deit.train.model_card import CARD_NAME, model_card
from deit.train.recipe import Masking
from deit.train.tasks import ClassificationTask
from tests.train import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a classifier that learnt from labels."""
    task = ClassificationTask(tiny.student(), tiny.processor())
    return fit(task, tiny.data(), tiny.recipe(), out=tmp_path_factory.mktemp("run") / "bright", device="cpu").out


def test_the_hub_reads_its_metadata(run):
    data = ModelCard.load(run / CARD_NAME).data.to_dict()
    assert data == {
        "library_name": "transformers", "tags": ["deit"], "pipeline_tag": "image-classification",
        "metrics": ["accuracy"],
    }  # fmt: skip


def test_it_tells_the_scores_and_how_they_came_about(run):
    text = ModelCard.load(run / CARD_NAME).text
    record = json.loads((run / "training.json").read_text())
    assert text.strip().startswith("# bright\n")
    assert "| head | top-1 % | top-5 % | loss |" in text
    for head, scores in record["scores"].items():
        assert f"| {head} | {scores['top1']:.2f} | {scores['top5']:.2f} | {scores['loss']:.3f} |" in text
    assert "It learnt from 12 images." in text
    assert "Measured on 6 images that it did not learn from, with the last weights." in text
    assert "3 classes: `class 0`, `class 1`, `class 2`." in text
    assert f"{record['steps']} steps of 4 images" in text
    for name in ("curves.png", "recipe.yaml", "metrics.csv", "training.json"):
        assert name in text
        assert (run / name).is_file()


def test_a_teacher_missing_labels_an_average_and_many_classes_are_told(run):
    record = json.loads((run / "training.json").read_text())
    record |= {"teacher": "timm/resnet10t", "weights": "average"}
    record["data"] |= {"train_images": 1000, "train_labels": 10}
    names = [f"bird {i}" for i in range(12)]
    card = ModelCard(model_card("x", tiny.student(), names, tiny.processor(), record))
    assert card.data.tags == ["deit", "distillation"]
    assert "It learnt from 1000 images, of which 10 have a label, and from the teacher `timm/resnet10t`." in card.text
    assert "with the average of the weights" in card.text
    assert "`bird 9` and 2 more (`config.json`)." in card.text


def test_a_model_of_masked_images_shows_its_reconstructions(tmp_path):
    student = DeiTForMaskedImageModeling(tiny.student().config)
    task = MaskedImageTask(student, tiny.processor(), masking=Masking(patch=8))
    images = tiny.data()
    data = Data(train=WithoutLabels(images.train), val=WithoutLabels(images.val))
    out = fit(task, data, tiny.recipe(augment=tiny.PLAIN), out=tmp_path / "hidden", device="cpu").out
    card = ModelCard.load(out / CARD_NAME)
    assert card.data.to_dict() == {"library_name": "transformers", "tags": ["deit", "simmim"]}
    assert "12 images without labels" in card.text
    assert "| head | loss |" in card.text
    assert "(reconstruction.png)" in card.text
    assert "deit train DATA --init hidden" in card.text


def test_a_card_that_was_edited_stays(run):
    (run / CARD_NAME).write_text("mine")
    task = ClassificationTask(tiny.student(), tiny.processor())
    fit(task, tiny.data(), tiny.recipe(), out=run, device="cpu", resume=True)
    assert (run / CARD_NAME).read_text() == "mine"
