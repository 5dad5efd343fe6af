"""The model card: what huggingface_hub reads in it, and that it tells what the record of the run holds."""

from __future__ import annotations

import ast
import json

import pytest
from huggingface_hub import ModelCard
from scipy.stats import binomtest

from deit.core.file_names import CARD_NAME
from deit.core.printable import printable
from deit.data.sources import Data, WithoutLabels
from deit.models.deit import DeiTForMaskedImageModeling
from deit.train.loop import fit
from deit.train.recipes.sections import Masking
from deit.train.run.model_card import model_card
from deit.train.tasks.classification import ClassificationTask
from deit.train.tasks.masked_images import MaskedImageTask
from tests.train import tiny

RECORD = {
    "teacher": None, "weights": "last", "data": {"train_images": 1, "val_images": 1}, "processes": 1, "steps": 1,
    "device": "cpu", "versions": {}, "scores": {"both": {"top1": 1.0}},
    "recipe": {"schedule": {"epochs": 1}, "batch_size": 1, "seed": 0},
}  # fmt: skip


def wilson(percent: float, images: int) -> str:
    """The 95 % interval of a share as SciPy computes it."""
    found = binomtest(round(percent * images / 100), images).proportion_ci(confidence_level=0.95, method="wilson")
    return f"{100 * found.low:.1f} to {100 * found.high:.1f}"


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
        top1, top5 = (f"{scores[name]:.2f} ({wilson(scores[name], scores['images'])})" for name in ("top1", "top5"))
        assert f"| {head} | {top1} | {top5} | {scores['loss']:.3f} |" in text
    assert "It learned from 12 images." in text
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
    assert "It learned from 1000 images, of which 10 have a label, and from the teacher `timm/resnet10t`." in card.text
    assert "with the average of the weights" in card.text
    assert "`bird 9` and 2 more (`config.json`)." in card.text


def test_a_model_of_masked_images_shows_its_reconstructions(tmp_path):
    student = DeiTForMaskedImageModeling(tiny.student().config)
    task = MaskedImageTask(student, tiny.processor())
    images = tiny.data()
    data = Data(train=WithoutLabels(images.train), val=WithoutLabels(images.val))
    out = fit(task, data, tiny.recipe(augment=tiny.PLAIN, masking=Masking(patch=8)), out=tmp_path / "hidden").out
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


STRANGE = [
    "a|b", "`tick`", "``two", "---", "\n---\n", "# heading", "<script>alert(1)</script>", "[link](http://evil.example)",
    "![picture](http://evil.example/a.png)", "http://evil.example", "*bold*", "&lt;", "\x1b[31mred", "\u202egpj", " ",
    "x" * 10_000, "```\ncode", "<!-- ", "$$x$$", "",
]  # fmt: skip


@pytest.mark.parametrize("strange", STRANGE, ids=lambda text: repr(text)[:20])
def test_names_stay_text_wherever_they_stand(run, strange):
    from markdown_it import MarkdownIt

    record = json.loads((run / "training.json").read_text()) | {"teacher": strange or "t", "device": strange}
    card = ModelCard(model_card(strange, tiny.student(), [strange, "dog"], tiny.processor(), record))
    plain = ModelCard(model_card("x", tiny.student(), ["a", "dog"], tiny.processor(), record | {"teacher": "t"}))
    assert card.data.to_dict() == plain.data.to_dict()
    tokens, expected = (MarkdownIt("commonmark").enable("table").parse(each.text) for each in (card, plain))
    assert [token.type for token in tokens] == [token.type for token in expected]
    inside = [child for token in tokens for child in token.children or ()]
    assert {child.type for child in inside} <= {"text", "code_inline", "image", "text_special", "softbreak"}
    images = [child.attrs["src"] for child in inside if child.type == "image"]
    assert images == ["curves.png"]
    shown = {child.content for child in inside if child.type == "code_inline"}
    assert printable(strange, 100) in shown or not strange.strip()
    assert len(card.text) < 5000


@pytest.mark.parametrize("name", ["my model", "$(touch x)", "it's", "-rf", 'a"b', "a;b"])
def test_the_commands_of_a_card_name_one_word(name):
    import shlex

    card = model_card(name, tiny.student(), ["a", "b"], tiny.processor(), RECORD)
    command = card.split("```bash\n")[1].split("\n")[0]
    assert shlex.split(command) == ["deit", "classify", name, "photo.jpg"]
    code = card.split("```python\n")[1].split("```")[0]
    call = next(node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call) and len(node.keywords) == 1)
    assert ast.literal_eval(call.keywords[0].value) == name
