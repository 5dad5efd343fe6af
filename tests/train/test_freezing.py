"""What a frozen training changes and what it does not."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from deit.core.labels import NO_LABEL
from deit.data.augment import Augmentation
from deit.data.few_labels import with_fewer_labels
from deit.train.loop import fit
from deit.train.recipes.sections import Optimizer, Schedule
from deit.train.students.freezing import freeze
from deit.train.tasks.classification import ClassificationTask
from deit.train.tasks.distillation import DistillationTask
from deit.train.teachers.teacher import Teacher
from tests.train import tiny

BLOCK = "deit.trunk.blocks."


def changed_by(student: nn.Module, tmp_path, what: str, **settings: object) -> set[str]:
    before = {name: value.clone() for name, value in student.state_dict().items()}
    task = ClassificationTask(student, tiny.processor(), label_smoothing=0.0)
    fit(
        task, tiny.data(), tiny.recipe(freeze=what, label_smoothing=0.0, **settings), out=tmp_path / "run", device="cpu"
    )
    after = student.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def test_a_linear_probe_changes_the_heads_alone(tmp_path):
    changed = changed_by(tiny.student(), tmp_path, "trunk")
    assert {name.split(".")[0] for name in changed} == {"cls_classifier", "distillation_classifier"}


def test_a_linear_probe_is_the_regression_on_frozen_features(tmp_path):
    """One step of SGD by hand on the features of evaluation mode, though the recipe asks for drop path."""
    student = tiny.student(drop_path_rate=0.5, hidden_dropout_prob=0.3)
    settings = {
        "batch_size": 12, "augment": tiny.PLAIN, "drop_path_rate": 0.5,
        "optimizer": Optimizer(name="sgd", lr=0.5, reference_batch_size=0, weight_decay=0.0, momentum=0.0),
        "schedule": Schedule(epochs=1, warmup_epochs=0),
    }  # fmt: skip
    data, processor = tiny.data(), tiny.processor()
    pixels = processor([data.train.image(i) for i in range(12)], return_tensors="pt").pixel_values
    student.eval()
    with torch.no_grad():
        token = student.deit(pixels).last_hidden_state[:, 0]
        logits = student.cls_classifier(token)
        wrong = logits.softmax(1) - nn.functional.one_hot(torch.from_numpy(data.train.labels), 3)
        expected = student.cls_classifier.weight - 0.5 * 0.5 * wrong.T @ token / 12  # half of the loss is this head's
    changed_by(student, tmp_path, "trunk", **settings)
    torch.testing.assert_close(student.cls_classifier.weight, expected, rtol=1e-4, atol=1e-5)


def test_some_blocks_stay_and_the_others_learn(tmp_path):
    changed = changed_by(tiny.student(), tmp_path, "blocks:1")
    assert not {name for name in changed if name.startswith(f"{BLOCK}0") or "token" in name or "embed" in name}
    assert any(name.startswith(f"{BLOCK}1") for name in changed)
    assert "deit.trunk.norm.weight" in changed


def test_no_block_frozen_still_freezes_the_embeddings(tmp_path):
    changed = changed_by(tiny.student(), tmp_path, "blocks:0")
    assert not {name for name in changed if "token" in name or "embed" in name}
    assert any(name.startswith(f"{BLOCK}0") for name in changed)


def test_a_convnet_of_timm_keeps_weights_and_statistics(tmp_path):
    student = timm.create_model("test_resnet", num_classes=3)
    changed = changed_by(student, tmp_path, "trunk")
    assert changed == {"fc.weight", "fc.bias"}


def test_a_model_with_other_forms_of_classifiers_is_frozen_but_for_them():
    for name in ("test_vit", "test_efficientnet", "test_convnext"):
        model = timm.create_model(name, num_classes=3)
        freeze(model, "trunk")
        own = {id(p) for p in model.get_classifier().parameters()}
        assert {id(p) for p in model.parameters() if p.requires_grad} == own


def test_what_cannot_be_frozen_is_refused():
    with pytest.raises(ValueError, match=r"the model has 2 blocks. Pass fewer"):
        freeze(tiny.student(), "blocks:3")
    with pytest.raises(ValueError, match=r"needs a model whose classifier is known. Received: TinyConvnet"):
        freeze(tiny.TinyConvnet(), "trunk")
    with pytest.raises(ValueError, match=r"needs a DeiT or ViT of this package. Received: TinyConvnet"):
        freeze(tiny.TinyConvnet(), "blocks:1")
    for text in ("blocks:", "blocks:x", "head", "blocks:-1"):
        with pytest.raises(ValueError, match='freeze must be "trunk", "blocks:N" or empty'):
            tiny.recipe(freeze=text)


# --- labels for a few, a teacher for all --------------------------------------------------------------


def taught(student: nn.Module) -> DistillationTask:
    torch.manual_seed(1)
    teacher = Teacher(tiny.TinyConvnet(), mean=(0.1,) * 3, std=(1.0,) * 3, image_size=(8, 8), name="tiny")
    return DistillationTask(student, teacher, tiny.processor())


@pytest.mark.parametrize("mix_rate", [0.0, 1.0])
def test_a_teacher_speaks_of_images_whose_labels_do_not_matter(mix_rate, tmp_path):
    """Two data sets that differ in hidden labels alone give the same student; in a shown label, another one."""

    def run(name: str, change: int | None) -> torch.Tensor:
        data = tiny.data(24)
        few = with_fewer_labels(data, labels_per_class=2, keep_others=True)
        if change is not None:
            few.train.source.labels[change] = (few.train.source.labels[change] + 1) % 3
            few.train.labels[few.train.labelled] = few.train.source.labels[few.train.labelled]
        student = tiny.student()
        augment = Augmentation(rand_augment="", erase_rate=0.0, mix_rate=mix_rate)
        task = taught(student)
        result = fit(task, few, tiny.recipe(augment=augment), out=tmp_path / name, device="cpu")
        assert task.partly_labelled
        assert all(torch.isfinite(p).all() for p in student.parameters())
        assert result.history[-1]["train_distillation_loss"] > 0
        return torch.cat([p.detach().flatten() for p in student.parameters()])

    labels = with_fewer_labels(tiny.data(24), labels_per_class=2, keep_others=True).train.labels
    hidden, shown = int((labels == NO_LABEL).nonzero()[0][0]), int((labels != NO_LABEL).nonzero()[0][0])
    plain = run("plain", None)
    assert torch.equal(run("hidden", hidden), plain)
    assert not torch.equal(run("shown", shown), plain)
