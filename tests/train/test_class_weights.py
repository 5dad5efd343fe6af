"""Class weights in the loss, against formulas by hand and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from deit.core.errors import UserError
from deit.data.sources import ArraySource, Data
from deit.models.losses import classification_loss
from deit.train.recipes.recipe import Recipe
from deit.train.tasks.class_weights import weights_of_classes

LABELS = np.array([0] * 12 + [1] * 6 + [2] * 2)


def data(labels=LABELS, classes=("a", "b", "c"), problem_type="single_label_classification"):
    images = np.zeros((len(labels), 8, 8), np.uint8)
    source = ArraySource(images, labels, list(classes), problem_type=problem_type)
    return Data(train=source, val=source)


def weights(kind, **options):
    return weights_of_classes(data(**options), Recipe(class_weights=kind))


def test_balanced_weights_are_those_of_scikit_learn():
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    np.testing.assert_allclose(weights("balanced"), expected, rtol=1e-6)
    assert weights("none") is None


def test_square_roots_keep_their_ratio_and_the_mean_over_images_is_one():
    found = weights("sqrt").double().numpy()
    assert found[2] / found[0] == pytest.approx(np.sqrt(6))
    for kind in ("balanced", "sqrt"):
        assert weights(kind).numpy()[LABELS].mean() == pytest.approx(1)


def test_a_class_without_an_image_changes_no_other_weight():
    more = weights("balanced", classes=("a", "b", "c", "none of it"))
    np.testing.assert_allclose(more[:3], weights("balanced"))
    assert more[3] == 1


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dense", [False, True])
def test_the_loss_is_the_mean_over_images_of_the_weighted_terms(smoothing, dense):
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(8, 3)), random.integers(0, 3, 8)
    of_classes = np.array([0.5, 1.0, 3.0])
    wanted = np.eye(3)[labels] * (1 - smoothing) + smoothing / 3
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -(wanted * of_classes * log_p).sum(1).mean()
    targets = torch.tensor(wanted) if dense else torch.tensor(labels)
    loss = classification_loss(
        torch.tensor(logits), targets, label_smoothing=0.0 if dense else smoothing,
        class_weights=torch.tensor(of_classes),
    )  # fmt: skip
    assert loss.item() == pytest.approx(expected)


def test_the_parts_of_a_batch_give_the_loss_of_the_whole():
    logits, labels = torch.randn(12, 3), torch.arange(12) % 3 // 2
    of_classes = torch.tensor([0.2, 1.0, 5.0])
    whole = classification_loss(logits, labels, class_weights=of_classes)
    parts = [
        classification_loss(*each, class_weights=of_classes)
        for each in zip(logits.chunk(3), labels.chunk(3), strict=True)
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_class_weights_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="class_weights must be one of"):
        Recipe(class_weights="heavy")
    with pytest.raises(ValueError, match='class_weights must be "none" with loss "bce"'):
        Recipe(class_weights="balanced", loss="bce")
    several = np.eye(3, dtype=np.float32)[LABELS]
    with pytest.raises(UserError, match="for one class per image"):
        weights("balanced", labels=several, problem_type="multi_label_classification")
