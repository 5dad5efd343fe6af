"""Pseudo-labels against the rules of Semi-ViT in numpy, whole trainings, and what is refused."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from deit.core.labels import NO_LABEL
from deit.data.augment import Augmentation, build_transform
from deit.data.few_labels import with_fewer_labels
from deit.data.loader import StepOrder, training_batches
from deit.data.sources import Data
from deit.models.losses import classification_loss
from deit.runtime.processes import Processes
from deit.runtime.signals import TrainingInterrupted
from deit.train.loop import fit
from deit.train.open_images import open_images
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.sections import Distillation, PseudoLabels, Schedule
from deit.train.tasks.classification import ClassificationTask
from deit.train.tasks.distillation import DistillationTask
from deit.train.tasks.pseudo_labels import PseudoLabeller, training_transform
from deit.train.teachers.teacher import Teacher
from tests.train import tiny

STRONG = Augmentation(crop="padded", mixup_alpha=0.0, mix_rate=0.5)
USED = PseudoLabels(weight=5.0, threshold=0.4)


def recipe(**settings: object) -> Recipe:
    return tiny.recipe(**{"pseudo_labels": USED, "ema_decay": 0.9, "augment": STRONG, **settings})


def few(train_images: int = 12) -> Data:
    return with_fewer_labels(tiny.data(train_images, 6), labels_per_class=1, keep_others=True)


class Saying(nn.Module):
    """Stands for the average: its logits are the first values of the pixels it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        assert not self.training
        self.seen.append(pixels)
        return pixels[:, 0, 0, :3]


def by_hand(pixels, targets, logits, *, threshold: float, smoothing: float, weight: float):
    """Section 3 of the paper: pairs of unlabeled images, each in proportion to its confidence."""
    guessed = [i for i, target in enumerate(targets) if target == NO_LABEL]
    shown, dense, weights = pixels.copy(), np.zeros((len(pixels), 3)), np.zeros(len(pixels))
    odds = np.exp(logits)
    probabilities = odds / odds.sum(1, keepdims=True)
    smooth = np.eye(3) * (1 - smoothing) + smoothing / 3
    for place, i in enumerate(guessed):
        j = guessed[len(guessed) - 1 - place]
        own, other = probabilities[i].max(), probabilities[j].max()
        share = own / (own + other)
        shown[i] = share * pixels[i] + (1 - share) * pixels[j]
        if max(own, other) >= threshold:
            dense[i] = share * smooth[probabilities[i].argmax()] + (1 - share) * smooth[probabilities[j].argmax()]
        weights[i] = weight * len(pixels) / len(guessed)
    for i, target in enumerate(targets):
        if target != NO_LABEL:
            dense[i], weights[i] = smooth[target], len(pixels) / (len(pixels) - len(guessed))
    return shown, dense, weights


@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.0])
def test_labels_mixing_and_weights_are_those_of_the_paper(threshold) -> None:
    draw = np.random.default_rng(0)
    pixels, weak = (draw.normal(0, 1, (6, 3, 4, 4)).astype(np.float32) for _ in range(2))
    targets = np.array([NO_LABEL, 2, NO_LABEL, NO_LABEL, 0, NO_LABEL])
    settings = recipe(
        augment=tiny.PLAIN, label_smoothing=0.1, pseudo_labels=PseudoLabels(weight=5.0, threshold=threshold)
    )
    average = Saying().train()
    labeller = PseudoLabeller(average, settings, 3, Processes())
    found = labeller(torch.tensor(pixels), torch.tensor(targets), torch.tensor(weak), 0)
    expected = by_hand(pixels, targets, weak[:, 0, 0, :3], threshold=threshold, smoothing=0.1, weight=5.0)
    for tensor, array in zip(found, expected, strict=True):
        np.testing.assert_allclose(tensor, array, atol=1e-6)
    assert average.training  # as before
    assert [len(seen) for seen in average.seen] == [4]  # the unlabeled images alone, in their weak views


def test_the_loss_of_a_step_is_that_of_the_labelled_plus_the_weighted_one_of_the_others() -> None:
    logits = torch.randn(4, 3)
    targets = torch.tensor([1, NO_LABEL, NO_LABEL, 0])
    weak = torch.zeros(4, 3, 4, 4)
    weak[1, 0, 0, 2] = 9.0  # sure of class 2; the image after it is not sure of anything
    settings = recipe(
        augment=tiny.PLAIN, label_smoothing=0.0, pseudo_labels=PseudoLabels(weight=5.0, threshold=0.9, mixup=False)
    )
    labelled = PseudoLabeller(Saying(), settings, 3, Processes())(torch.zeros_like(weak), targets, weak, 0)
    logs = logits.log_softmax(1)
    expected = -(logs[0, 1] + logs[3, 0]) / 2 - 5.0 * logs[1, 2] / 2
    found = classification_loss(logits, labelled.targets, weights=labelled.weights)
    torch.testing.assert_close(found, expected)


def test_labelled_images_are_mixed_among_themselves() -> None:
    settings = recipe(augment=dataclasses.replace(tiny.PLAIN, mix_rate=1.0, cutmix_alpha=0.0, mixup_alpha=1.0))
    pixels = torch.arange(5.0)[:, None, None, None].expand(5, 3, 4, 4).contiguous()
    targets = torch.tensor([0, 1, 2, NO_LABEL, NO_LABEL])
    found = PseudoLabeller(Saying(), settings, 3, Processes())(pixels, targets, torch.zeros(5, 3, 4, 4), 3)
    assert found.pixels[:3].max() <= 2.0
    assert not torch.equal(found.pixels[:3], pixels[:3])
    torch.testing.assert_close(found.pixels[3:], torch.full((2, 3, 4, 4), 3.5))
    torch.testing.assert_close(found.targets[:3].sum(1), torch.ones(3))


def test_a_weak_view_is_cropped_and_flipped_alone_and_leaves_the_strong_one_as_it_was() -> None:
    settings, source = recipe(), few().train
    order = StepOrder(12, 4, 0, 0, 3)
    plain = training_batches(
        source, build_transform(STRONG, (16, 16), tiny.MEAN, tiny.STD), order, num_workers=0
    )  # fmt: skip
    both = training_batches(source, training_transform(settings, tiny.processor()), order, num_workers=0)
    lowest = ((0.0 - torch.tensor(tiny.MEAN)) / torch.tensor(tiny.STD)).view(3, 1, 1)
    for one, two, again in zip(plain, both, both, strict=True):
        assert one.weak is None
        assert one.checksums == two.checksums
        assert torch.equal(one.pixels, two.pixels)
        assert torch.equal(two.weak, again.weak)
        numbers = (two.weak * torch.tensor(tiny.STD).view(3, 1, 1) + torch.tensor(tiny.MEAN).view(3, 1, 1)) * 255
        torch.testing.assert_close(numbers, numbers.round(), atol=1e-3, rtol=0)  # pixels of the image, or padding
        assert not torch.equal(two.weak, two.pixels)
        assert bool((two.weak >= lowest - 1e-4).all())


def student_task(teacher: bool = False):
    if not teacher:
        return ClassificationTask(tiny.student(), tiny.processor())
    torch.manual_seed(1)
    convnet = Teacher(tiny.TinyConvnet(), mean=(0.1, 0.1, 0.1), std=(1.0, 1.0, 1.0), image_size=(8, 8), name="tiny")
    return DistillationTask(tiny.student(), convnet, tiny.processor(), distillation=Distillation(kind="soft"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Path, two: Path) -> bool:
    first, second = weights(one), weights(two)
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("teacher", [False, True], ids=["alone", "with a teacher"])
def test_a_run_goes_on_exactly_and_differs_from_one_without(tmp_path, teacher) -> None:
    settings = recipe(
        distillation=Distillation(kind="soft"), schedule=Schedule(epochs=4, warmup_epochs=1),
        pseudo_labels=dataclasses.replace(USED, threshold=0.34),
    )  # fmt: skip
    fit(student_task(teacher), few(), settings, out=tmp_path / "whole", device="cpu")

    def stop(event: object) -> None:
        if event.step == 7:  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingInterrupted):
        fit(student_task(teacher), few(), settings, out=tmp_path / "parts", device="cpu", on_step=stop)
    fit(student_task(teacher), few(), settings, out=tmp_path / "parts", device="cpu", resume=True)
    assert same(tmp_path / "whole", tmp_path / "parts")
    other = dataclasses.replace(settings, pseudo_labels=dataclasses.replace(settings.pseudo_labels, threshold=1.0))
    fit(student_task(teacher), few(), other, out=tmp_path / "unsure", device="cpu")
    assert not same(tmp_path / "whole", tmp_path / "unsure")


def test_parts_of_a_step_give_the_weights_of_the_whole(tmp_path) -> None:
    settings = recipe(augment=tiny.PLAIN)
    for name, parts in (("whole", 1), ("parts", 2)):
        its = dataclasses.replace(settings, accumulate=parts)
        fit(student_task(), few(), its, out=tmp_path / name, device="cpu")
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0)


def test_a_cache_serves_where_nothing_is_mixed_by_confidence(tmp_path) -> None:
    unmixed = recipe(distillation=Distillation(kind="soft"), pseudo_labels=dataclasses.replace(USED, mixup=False))
    for name in ("first", "second"):
        fit(
            student_task(True), few(), unmixed, out=tmp_path / name, device="cpu", teacher_cache=tmp_path / "cache"
        )  # fmt: skip
    assert same(tmp_path / "first", tmp_path / "second")
    with pytest.raises(ValueError, match=r"images depend on the student.*mixup=false"):
        fit(
            student_task(True), few(), recipe(distillation=Distillation(kind="soft")), out=tmp_path / "mixed",
            device="cpu", teacher_cache=tmp_path / "other",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tiny.data(12, 6), "12 with one, 0 without"),
        (with_fewer_labels(tiny.data(12, 6), labels_per_class=2), "6 with one, 0 without"),
    ],
)
def test_data_without_unlabelled_images_is_refused(tmp_path, data, message) -> None:
    with pytest.raises(ValueError, match=message):
        fit(student_task(), data, recipe(), out=tmp_path / "run", device="cpu")


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ema_decay must be above 0 .*Received: 0"):
        tiny.recipe(pseudo_labels=USED)
    with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\]. Received: 1.5"):
        PseudoLabels(threshold=1.5)
    with pytest.raises(ValueError, match=r"weight must be at least 0. Received: -1"):
        PseudoLabels(weight=-1)
    changed = Recipe().with_settings({"pseudo_labels.weight": "5", "ema_decay": 0.999})
    assert Recipe.from_dict(changed.to_dict()) == changed
    old = {key: value for key, value in changed.to_dict().items() if key != "pseudo_labels"}
    assert Recipe.from_dict(old).pseudo_labels == PseudoLabels()


def test_images_without_labels_are_kept_where_pseudo_labels_use_them(tmp_path) -> None:
    from PIL import Image

    for name, level in (("dark", 40), ("light", 200)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (20, 20), (level + i, 0, 0)).save(tmp_path / "photos" / name / f"{i}.png")
    settings = recipe().with_settings({"data.labels_per_class": 1})
    opened = open_images(tmp_path / "photos", settings, labelled=True, taught=False)
    assert (opened.train.labels == NO_LABEL).sum() == len(opened.train.labels) - 2 > 0
