"""Fewer labels than images: which are kept, and what happens to the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deit.core.labels import NO_LABEL
from deit.data.augment import Augmentation, BatchMixer
from deit.data.few_labels import choose_labelled, labelled_again, limited, with_fewer_labels, with_fewer_unlabelled
from deit.data.sources import ArraySource, Data, WithoutLabels
from deit.models.losses import classification_loss, label_weights


def data(counts: tuple[int, ...] = (10, 20, 30)) -> Data:
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    source = ArraySource(images, labels, [f"class {i}" for i in range(len(counts))])
    return Data(train=source, val=source)


def counts_of(labels: np.ndarray) -> list[int]:
    return np.bincount(labels[labels != NO_LABEL], minlength=3).tolist()


def test_each_class_keeps_its_number_or_share():
    few = data()
    assert counts_of(few.train.labels[choose_labelled(few.train, labels_per_class=4)]) == [4, 4, 4]
    assert counts_of(few.train.labels[choose_labelled(few.train, label_fraction=0.1)]) == [1, 2, 3]


def test_a_choice_is_fixed_by_its_seed_and_a_smaller_one_is_part_of_a_larger():
    few = data()
    chosen = {n: set(choose_labelled(few.train, labels_per_class=n).tolist()) for n in (2, 5, 10)}
    assert chosen[2] < chosen[5] < chosen[10]
    assert chosen[5] == set(choose_labelled(few.train, labels_per_class=5).tolist())
    assert chosen[5] == set(choose_labelled(data((10, 20)).train, labels_per_class=5).tolist()) | {
        i for i in chosen[5] if i >= 30
    }  # other classes change nothing
    assert chosen[5] != set(choose_labelled(few.train, labels_per_class=5, seed=1).tolist())


def test_without_a_teacher_only_labelled_images_stay_and_with_one_all():
    few = with_fewer_labels(data(), labels_per_class=2)
    assert (len(few.train.labels), counts_of(few.train.labels)) == (6, [2, 2, 2])
    assert len(few.val.labels) == 60
    taught = with_fewer_labels(data(), labels_per_class=2, keep_others=True)
    assert (len(taught.train.labels), counts_of(taught.train.labels)) == (60, [2, 2, 2])
    whole = data()
    kept = np.flatnonzero(taught.train.labels != NO_LABEL)
    assert (taught.train.labels[kept] == whole.train.labels[kept]).all()
    assert all(taught.train.image(i).tobytes() == whole.train.image(i).tobytes() for i in (0, 17, 59))
    other = with_fewer_labels(whole, labels_per_class=3, keep_others=True)
    assert len({each.train.fingerprint() for each in (few, taught, whole, other)}) == 4
    assert with_fewer_labels(whole) is whole


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"label_fraction": 0.02},
            r"2% of the labels leave class 'class 0' without labels: it has 10 .* at least 10%, or",
        ),
        ({"labels_per_class": 11}, r"Class 'class 0' has 10 training image\(s\), fewer than the 11 requested labels"),
    ],
)
def test_a_class_left_without_images_is_an_error(settings, message):
    with pytest.raises(ValueError, match=message):
        with_fewer_labels(data(), **settings)


def test_only_single_classes_can_have_fewer_labels():
    numbers = ArraySource(np.zeros((4, 2, 2, 3), np.uint8), np.ones(4), problem_type="regression")
    with pytest.raises(ValueError, match=r"data.problem_type=regression"):
        with_fewer_labels(Data(train=numbers, val=numbers), labels_per_class=1)


def test_a_limit_takes_some_images_and_always_the_same():
    few = limited(data(), train=7, val=100)
    assert (len(few.train.labels), len(few.val.labels)) == (7, 60)
    assert few.train.fingerprint() == limited(data(), train=7).train.fingerprint()
    assert len(set(few.train.labels.tolist())) > 1


# --- mixed with unlabelled images ---------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["ce", "bce"])
@pytest.mark.parametrize("cut", [False, True])
def test_a_mix_counts_with_its_labelled_share(loss, cut):
    """By hand, image by image: the share of a label times the loss of that label, over the sum of the shares."""
    smoothing = 0.1 if loss == "ce" else 0.0
    alphas = {"mixup_alpha": 0.0, "cutmix_alpha": 1.0} if cut else {"mixup_alpha": 0.8, "cutmix_alpha": 0.0}
    mixer = BatchMixer(Augmentation(rand_augment="", **alphas), 3, smoothing, 0)
    # Partners are 0 and 5 (both labelled), 1 and 4 (one of them), 2 and 3 (none).
    targets = torch.tensor([2, 0, NO_LABEL, NO_LABEL, NO_LABEL, 1])
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    _, mixed = mixer(torch.rand(6, 3, 16, 16), targets, 3)
    _, full = mixer(torch.rand(6, 3, 16, 16), targets.clamp(min=0), 3)
    share = float(full[0].max()) if smoothing == 0 else float((full[0, 2] - 0.1 / 3) / 0.9)
    assert 0 < share < 1
    rows, weights = [], []
    for i, pair in enumerate(zip(targets.tolist(), targets.flip(0).tolist(), strict=True)):
        parts = [(own, part) for own, part in zip(pair, (share, 1 - share), strict=True) if own != NO_LABEL]
        weights.append(sum(part for _, part in parts))
        if loss == "ce":
            rows.append(
                sum(part * F.cross_entropy(logits[i], torch.tensor(own), label_smoothing=0.1) for own, part in parts)
            )
        else:
            present = torch.zeros(3)
            present[[own for own, _ in parts]] = 1.0
            rows.append(weights[-1] * F.binary_cross_entropy_with_logits(logits[i], present))
    received = classification_loss(logits, mixed, loss=loss, weights=label_weights(mixed))
    assert float(received) == pytest.approx(float(sum(rows)) / sum(weights), rel=1e-5)
    assert mixed.sum(1).tolist() == pytest.approx([1.0, share, 0.0, 0.0, 1 - share, 1.0], abs=1e-6)


@pytest.mark.parametrize(("share", "times"), [(0.0, 0), (0.2, 0), (0.5, 2), (0.75, 8)])
def test_labelled_images_come_again_until_they_have_their_share(share, times):
    """12 of 48 images have a label: a quarter, which 0.2 asks no more of. 0.5 needs 36 views of 12 images."""
    few = with_fewer_labels(data((16, 16, 16)), labels_per_class=4, keep_others=True).train
    again = labelled_again(few, share)
    assert sorted(again) == sorted(np.flatnonzero(few.labels != NO_LABEL).tolist() * times)
    assert (12 + len(again)) / (48 + len(again)) >= share


def test_nothing_comes_again_where_all_images_are_labelled_or_none():
    for source in (data().train, WithoutLabels(data().train)):
        assert len(labelled_again(source, 0.5)) == 0


def test_a_batch_without_any_label_has_no_class_loss():
    for target in (torch.full((4,), NO_LABEL), torch.zeros(4, 3)):
        for loss in ("ce", "bce"):
            assert (
                float(classification_loss(torch.randn(4, 3), target, loss=loss, weights=label_weights(target))) == 0.0
            )


def test_fully_labelled_batches_have_the_loss_they_always_had():
    logits, target = torch.randn(8, 3), torch.rand(8, 3).softmax(1)
    for loss in ("ce", "bce"):
        usual = classification_loss(logits, target, loss=loss)
        torch.testing.assert_close(classification_loss(logits, target, loss=loss, weights=label_weights(target)), usual)


def test_fewer_images_without_a_label_leave_those_with_one_as_they_are():
    whole = with_fewer_labels(data(), labels_per_class=2, keep_others=True)
    fewer = with_fewer_unlabelled(whole, 10)
    assert (len(fewer.train.labels), counts_of(fewer.train.labels)) == (16, [2, 2, 2])
    shown = {fewer.train.image(i).tobytes() for i in range(16)}
    assert len(shown) == 16
    assert shown <= {whole.train.image(i).tobytes() for i in range(60)}
    assert fewer.train.fingerprint() == with_fewer_unlabelled(whole, 10).train.fingerprint()
    assert with_fewer_unlabelled(fewer, 10) is fewer  # a plan may do it after the recipe has
    assert with_fewer_unlabelled(whole, 0) is whole
    assert with_fewer_unlabelled(whole, 54) is whole
    assert with_fewer_unlabelled(data(), 1).train.labels.shape == (60,)
