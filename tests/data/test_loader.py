"""Batches: which images come when, the same views whoever prepares them, and evaluation in order."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import pytest
import torch

from deit.core.image_processor import evaluation_processor
from deit.data.augment import Augmentation, build_transform
from deit.data.loader import EvaluationBatches, StepOrder, default_workers, training_batches
from deit.data.random_state import seeded
from deit.data.sources import ArraySource

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def source(count: int = 10) -> ArraySource:
    images = np.random.default_rng(0).integers(0, 256, (count, 12, 14, 3), dtype=np.uint8)
    return ArraySource(images, np.arange(count) % 3)


def order(first: int, last: int, *, images: int = 10, batch: int = 3, seed: int = 0) -> list[list[Any]]:
    return list(StepOrder(images, batch, seed, first, last))


# --- StepOrder ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "batch"), [(10, 3), (9, 3), (4, 4), (7, 1)])
def test_the_batches_of_an_epoch_are_disjoint_and_leave_out_less_than_a_batch(images, batch):
    per_epoch = images // batch
    for epoch in range(3):
        steps = order(epoch * per_epoch, (epoch + 1) * per_epoch, images=images, batch=batch)
        assert [len(step) for step in steps] == [batch] * per_epoch
        indices = [index for step in steps for _, _, index in step]
        assert len(set(indices)) == per_epoch * batch
        assert set(indices) <= set(range(images))


def test_every_view_carries_the_seed_its_epoch_and_plain_numbers():
    for step, views in enumerate(order(0, 7, seed=4)):
        assert {(seed, epoch) for seed, epoch, _ in views} == {(4, step // 3)}
        assert all(type(number) is int for view in views for number in view)


def test_another_epoch_and_another_seed_have_another_order():
    def indices(steps: list[list[Any]]) -> list[int]:
        return [index for step in steps for _, _, index in step]

    first = indices(order(0, 3))
    assert first != sorted(first)
    assert indices(order(3, 6)) != first
    assert indices(order(0, 3, seed=1)) != first
    assert indices(order(0, 3)) == first


@pytest.mark.parametrize("start", [0, 1, 3, 4, 6, 8, 9])
def test_starting_at_a_step_gives_the_tail_of_the_whole_run(start):
    """3 steps make an epoch: some starts lie inside of one, some on its border."""
    assert order(start, 9) == order(0, 9)[start:]


def test_the_length_is_the_number_of_steps_left():
    assert len(StepOrder(10, 3, 0, 4, 9)) == 5
    assert StepOrder(10, 3, 0, 4, 9).steps_per_epoch == 3


def test_fewer_images_than_a_batch_needs_are_refused():
    with pytest.raises(ValueError, match=r"There are 3 training images and the batch size is 4. .* at most 3."):
        StepOrder(3, 4, 0, 0, 1)


# --- training_batches ---------------------------------------------------------------------------------


def training(num_workers: int, first: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    transform = build_transform(Augmentation(), (16, 16), MEAN, STD)
    steps = StepOrder(10, 3, 7, first, 6)
    return [tuple(batch) for batch in training_batches(source(), transform, steps, num_workers=num_workers)]


def assert_equal(ones: list[tuple[torch.Tensor, torch.Tensor]], others: list[tuple[torch.Tensor, torch.Tensor]]):
    assert len(ones) == len(others)
    for (pixels, labels), (other_pixels, other_labels) in zip(ones, others, strict=True):
        assert torch.equal(pixels, other_pixels)
        assert torch.equal(labels, other_labels)


def test_batches_hold_the_views_of_the_images_that_the_order_names():
    transform = build_transform(Augmentation(), (16, 16), MEAN, STD)
    images = source()
    for (pixels, labels), views in zip(training(0), order(0, 6, seed=7), strict=True):
        assert labels.tolist() == [index % 3 for _, _, index in views]
        for row, (seed, epoch, index) in zip(pixels, views, strict=True):
            with seeded(seed, 0, epoch, index):
                assert torch.equal(row, transform(images.image(index)))


def test_an_image_looks_different_in_every_epoch():
    views: dict[int, list[bytes]] = {}
    for (pixels, _), step in zip(training(0), order(0, 6, seed=7), strict=True):
        for row, (_, _, index) in zip(pixels, step, strict=True):
            views.setdefault(index, []).append(row.numpy().tobytes())
    twice = [pair for pair in views.values() if len(pair) == 2]
    assert len(twice) >= 8
    assert all(first != second for first, second in twice)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # PyTorch forks its workers
def test_batches_are_the_same_with_and_without_worker_processes():
    assert_equal(training(2), training(0))


def test_batches_do_not_depend_on_the_global_random_state_and_leave_it_alone():
    first = training(0)
    random.seed(11)
    np.random.seed(11)
    torch.manual_seed(11)
    expected = random.random(), np.random.random()
    random.seed(11)
    np.random.seed(11)
    assert_equal(training(0), first)
    assert (random.random(), np.random.random()) == expected


def test_batches_from_the_middle_equal_those_of_the_whole_run():
    assert_equal(training(0, first=4), training(0)[4:])


@pytest.mark.parametrize(("cores", "workers"), [(1, 0), (2, 0), (3, 2), (8, 7), (64, 16)])
def test_small_machines_prepare_images_in_the_main_process_and_large_ones_keep_a_core(monkeypatch, cores, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert default_workers() == workers


# --- EvaluationBatches --------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "sizes"), [(4, [4, 4, 2]), (5, [5, 5]), (10, [10]), (99, [10]), (1, [1] * 10)])
def test_evaluation_shows_every_image_once_in_order_and_the_last_batch_is_smaller(batch, sizes):
    images = source()
    processor = evaluation_processor((8, 8), crop_ratio=0.8, mean=MEAN, std=STD)
    batches = EvaluationBatches(images, processor, batch)
    assert len(batches) == len(sizes)
    for _ in range(2):  # it can be gone through again
        found = list(batches)
        assert [len(pixels) for pixels, _ in found] == sizes
        assert np.concatenate([labels for _, labels in found]).tolist() == images.labels.tolist()
        by_hand = np.stack([processor(images.image(i), return_tensors="np").pixel_values[0] for i in range(10)])
        assert np.array_equal(np.concatenate([pixels for pixels, _ in found]), by_hand)


@pytest.mark.parametrize("batch", [0, -1])
def test_an_evaluation_batch_needs_an_image(batch):
    processor = evaluation_processor((8, 8), crop_ratio=1.0, mean=MEAN, std=STD)
    with pytest.raises(ValueError, match=f"batch_size must be at least 1. Received: {batch}"):
        EvaluationBatches(source(), processor, batch)
