"""Batches: which images come when, the same views whoever prepares them, and evaluation in order."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from timm.data.distributed_sampler import RepeatAugSampler

from deit.core.images.reading import ImageError
from deit.core.processing.image_processor import evaluation_processor
from deit.data.augment import Augmentation, build_transform
from deit.data.loader import Batch, EvaluationBatches, StepOrder, default_workers, training_batches, view_key
from deit.data.sources import ArraySource
from deit.runtime.random_state import seeded

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def source(count: int = 10) -> ArraySource:
    images = np.random.default_rng(0).integers(0, 256, (count, 12, 14, 3), dtype=np.uint8)
    return ArraySource(images, np.arange(count) % 3)


def order(first: int, last: int, *, images: int = 10, batch: int = 3, seed: int = 0, **others: Any) -> list[list[Any]]:
    return list(StepOrder(images, batch, seed, first, last, **others))


class Images:
    """A source made of what a test says."""

    def __init__(self, labels: npt.NDArray[Any], image: Callable[[int], Image.Image] | None = None) -> None:
        self.classes = ["a", "b", "c"]
        self.labels = labels
        self.problem_type = "single_label_classification"
        self.image = image or source(len(labels)).image

    def fingerprint(self) -> str:
        return ""


# --- StepOrder ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "batch"), [(10, 3), (9, 3), (4, 4), (7, 1)])
def test_the_batches_of_an_epoch_are_disjoint_and_leave_out_less_than_a_batch(images, batch):
    per_epoch = images // batch
    for epoch in range(3):
        steps = order(epoch * per_epoch, (epoch + 1) * per_epoch, images=images, batch=batch)
        assert [len(step) for step in steps] == [batch] * per_epoch
        indices = [index for step in steps for _, _, index, _ in step]
        assert len(set(indices)) == per_epoch * batch
        assert set(indices) <= set(range(images))


def test_every_view_carries_the_seed_its_epoch_and_plain_numbers():
    for step, views in enumerate(order(0, 7, seed=4)):
        assert {(seed, epoch, repeat) for seed, epoch, _, repeat in views} == {(4, step // 3, 0)}
        assert all(type(number) is int for view in views for number in view)


def test_another_epoch_and_another_seed_have_another_order():
    def indices(steps: list[list[Any]]) -> list[int]:
        return [index for step in steps for _, _, index, _ in step]

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


# --- StepOrder: repeated augmentation and several processes -------------------------------------------


def numbers(steps: list[list[Any]]) -> list[tuple[int, int]]:
    """Number and repeat of every view."""
    return [(index, repeat) for step in steps for _, _, index, repeat in step]


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("num_repeats", [1, 3])
def test_every_process_sees_the_images_of_the_papers_sampler_in_its_order(monkeypatch, world_size, num_repeats):
    """timm's copy of it, under our permutation. It stops at a multiple of 256 images, and ours at whole batches."""
    permutation = np.random.default_rng((5, 2)).permutation(600)
    monkeypatch.setattr(torch, "randperm", lambda count, generator: torch.from_numpy(permutation))
    for rank in range(world_size):
        sampler: Any = RepeatAugSampler(range(600), world_size, rank, num_repeats=num_repeats)
        theirs = list(sampler)
        assert len(theirs) == 512 // world_size
        steps = order(24, 36, images=600, batch=48, seed=5, num_repeats=num_repeats, rank=rank, world_size=world_size)
        ours = [index for index, _ in numbers(steps)]
        assert len(ours) == 12 * 48 // world_size
        assert ours[: len(theirs)] == theirs


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_the_entries_of_every_process_follow_the_formula_worked_out_by_hand(world_size):
    """Entry e of the epoch is repeat e % 3 of image permutation[e // 3]; process r has r, r + W, r + 2 W, ..."""
    permutation = np.random.default_rng((0, 1)).permutation(50).tolist()
    for rank in range(world_size):
        steps = order(6, 12, images=50, batch=8, num_repeats=3, rank=rank, world_size=world_size)
        expected = [(permutation[e // 3], e % 3) for e in range(rank, 48, world_size)]
        assert numbers(steps) == expected


@pytest.mark.parametrize(("num_repeats", "world_size"), [(1, 2), (3, 2), (3, 4), (4, 12), (12, 3)])
def test_the_views_of_a_step_do_not_depend_on_the_number_of_processes(num_repeats, world_size):
    alone = order(0, 8, images=30, batch=12, num_repeats=num_repeats)
    parts = [
        order(0, 8, images=30, batch=12, num_repeats=num_repeats, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for step, views in enumerate(alone):
        assert sorted(view for part in parts for view in part[step]) == sorted(views)
        assert [part[step] for part in parts] == [views[rank::world_size] for rank in range(world_size)]


def test_the_repeats_of_an_image_lie_on_different_processes():
    parts = [order(0, 4, images=40, batch=8, num_repeats=3, rank=rank, world_size=4) for rank in range(4)]
    for step in range(4):
        for part in parts:
            shown = [index for _, _, index, _ in part[step]]
            assert len(set(shown)) == len(shown)


def test_an_epoch_of_repeats_keeps_its_length_and_shows_a_third_of_the_images():
    steps = order(0, 12, images=50, batch=4, num_repeats=3)
    assert StepOrder(50, 4, 0, 0, 0, num_repeats=3).steps_per_epoch == 12
    counts = np.unique([index for index, _ in numbers(steps)], return_counts=True)[1]
    assert counts.tolist() == [3] * 16
    assert len(set(numbers(steps))) == 48


@pytest.mark.parametrize("num_repeats", [1, 3])
def test_images_that_come_again_are_other_views_in_an_epoch_of_the_same_length(num_repeats):
    """Image 4 stands in the permutation a hundred times beside 8 others, which share the rest of the views."""
    options = {"images": 9, "batch": 3, "again": [4] * 99, "num_repeats": num_repeats}
    assert StepOrder(9, 3, 0, 0, 0, again=[4] * 99).steps_per_epoch == 3
    views = [view for step in order(0, 3000, **options) for view in step]
    assert len(set(views)) == len(views) == 9000
    counts = np.bincount([index for _, _, index, _ in views], minlength=9)
    assert counts[4] / 9000 == pytest.approx(100 / 108, abs=0.01)
    assert counts[[0, 1, 2, 3, 5, 6, 7, 8]] / 9000 == pytest.approx(np.full(8, 1 / 108), abs=0.005)
    assert order(2, 6, **options) == order(0, 6, **options)[2:]


@pytest.mark.parametrize(("images", "batch"), [(8, 8), (5, 4), (3, 2), (1, 1)])
def test_a_small_data_set_is_repeated_too(images, batch):
    """The paper's sampler gives nothing below 256 images."""
    (first, *_) = order(0, 1, images=images, batch=batch, num_repeats=3)
    assert len(first) == batch
    assert [repeat for _, _, _, repeat in first] == [i % 3 for i in range(batch)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch_size must be at least 1. Received: 0"),
        ({"batch": 6, "world_size": 4}, "4 processes cannot share a batch of 6 evenly. Pass .* a multiple of 4"),
        ({"num_repeats": 0}, "num_repeats must be at least 1. Received: 0"),
        ({"rank": 2, "world_size": 2}, r"rank must lie in \[0, world_size\). Received: 2 of 2"),
        ({"rank": -1}, "Received: -1 of 1"),
    ],
)
def test_an_order_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        order(0, 1, **options)


# --- training_batches ---------------------------------------------------------------------------------


def training(num_workers: int, first: int = 0, images: Any = None, **options: int) -> list[Batch]:
    transform = build_transform(Augmentation(), (16, 16), MEAN, STD)
    steps = StepOrder(10, 3, 7, first, 6, **options)
    return list(training_batches(images or source(), transform, steps, num_workers=num_workers))


def assert_equal(ones: list[Batch], others: list[Batch]) -> None:
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.targets, other.targets)
        assert one.checksums == other.checksums


def test_batches_hold_the_views_of_the_images_that_the_order_names():
    transform = build_transform(Augmentation(), (16, 16), MEAN, STD)
    images = source()
    for (pixels, labels, *_), views in zip(training(0), order(0, 6, seed=7), strict=True):
        assert labels.tolist() == [index % 3 for _, _, index, _ in views]
        for row, (seed, epoch, index, _) in zip(pixels, views, strict=True):
            with seeded(seed, 0, epoch, index):
                assert torch.equal(row, transform(images.image(index)))


def test_an_image_looks_different_in_every_epoch():
    views: dict[int, list[bytes]] = {}
    for (pixels, *_), step in zip(training(0), order(0, 6, seed=7), strict=True):
        for row, (_, _, index, _) in zip(pixels, step, strict=True):
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


def test_every_repeat_of_an_image_is_another_view():
    (batch, *_) = training(0, num_repeats=3)
    ((index, _), *_) = numbers(order(0, 1, seed=7, num_repeats=3))
    assert batch.targets.tolist() == [index % 3] * 3
    transform = build_transform(Augmentation(), (16, 16), MEAN, STD)
    for repeat, row in enumerate(batch.pixels):
        with seeded(*view_key(7, 0, index, repeat)):
            assert torch.equal(row, transform(source().image(index)))
    assert len({row.numpy().tobytes() for row in batch.pixels}) == 3


def test_processes_show_the_views_that_one_alone_shows():
    whole = training(0)
    parts = [training(0, rank=rank, world_size=3) for rank in range(3)]
    for step, batch in enumerate(whole):
        for rank in range(3):
            assert torch.equal(parts[rank][step].pixels, batch.pixels[rank::3])
            assert torch.equal(parts[rank][step].targets, batch.targets[rank::3])


@pytest.mark.parametrize(
    "labels",
    [np.random.default_rng(0).integers(0, 2, (10, 3)).astype(np.float32), np.linspace(-1, 1, 10, dtype=np.float32)],
    ids=["several labels", "values"],
)
def test_targets_of_every_kind_pass_through(labels):
    for batch, views in zip(training(0, images=Images(labels)), order(0, 6, seed=7), strict=True):
        assert batch.targets.dtype == torch.float32
        assert np.array_equal(batch.targets.numpy(), labels[[index for _, _, index, _ in views]])


def test_the_checksum_is_the_crc_of_a_sample_of_the_pixels_the_targets_and_the_views():
    transform = build_transform(Augmentation(), (224, 224), MEAN, STD)
    (batch,) = training_batches(source(), transform, StepOrder(10, 2, 7, 3, 4), num_workers=0)
    (views,) = order(3, 4, batch=2, seed=7)
    data = np.ascontiguousarray(batch.pixels.numpy()[:, :, ::16, ::16]).tobytes()
    data += batch.targets.numpy().tobytes() + np.array(views, np.int64).tobytes()
    assert batch.checksums == (zlib.crc32(data),)


def test_the_checksum_tells_other_pixels_targets_and_views_apart():
    changed = Images(source().labels, lambda i: Image.eval(source().image(i), lambda value: value // 2))
    relabelled = Images((source().labels + 1) % 3)
    batches = [training(0)[0], training(0, images=changed)[0], training(0, images=relabelled)[0]]
    batches += [training(0, first=1)[0], training(0, num_repeats=3)[0], training(0, rank=1, world_size=3)[0]]
    assert len({batch.checksums for batch in batches}) == len(batches)


def an_image_that_breaks(error: Exception) -> Images:
    """The eighth image that the order of seed 7 shows cannot be read."""
    broken = numbers(order(0, 3, seed=7))[7][0]

    def image(index: int) -> Image.Image:
        if index == broken:
            raise error
        return source().image(index)

    return Images(source().labels, image)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # PyTorch forks its workers
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ImageError("red/7.jpg cannot be read as an image. It may be truncated."),
            "red/7.jpg cannot be read as an image. ",
        ),
        (FileNotFoundError(2, "No such file", "red/7.jpg"), "A training image can no longer be read .*'red/7.jpg'"),
    ],
)
def test_in_place_of_a_broken_image_stands_the_next_one_of_its_batch_as_another_view(num_workers, error, message):
    """And a run that goes on at that step, with another number of workers, sees the same."""
    transform = build_transform(Augmentation(), (16, 16), MEAN, STD)
    images, steps = an_image_that_breaks(error), StepOrder(10, 3, 7, 0, 3)
    batches = list(training_batches(images, transform, steps, num_workers=num_workers))
    whole = training(0)[:3]
    assert_equal(batches[:2], whole[:2])
    first, broken, last = (index for index, _ in numbers(order(0, 3, seed=7))[6:9])
    ((number, reason),) = batches[2].left_out
    assert number == broken
    assert re.match(message, reason)
    assert "\n" not in reason
    assert batches[2].targets.tolist() == [source().labels[i] for i in (first, last, last)]
    for place in (0, 2):
        assert torch.equal(batches[2].pixels[place], whole[2].pixels[place])
    with seeded(*view_key(7, 0, last, 2 * (1 << 20))):
        assert torch.equal(batches[2].pixels[1], transform(source().image(last)))
    (again,) = training_batches(images, transform, StepOrder(10, 3, 7, 2, 3), num_workers=0)
    assert torch.equal(again.pixels, batches[2].pixels)
    assert again.checksums == batches[2].checksums != whole[2].checksums


def test_a_batch_of_which_nothing_can_be_read_says_why():
    def image(index: int) -> Image.Image:
        raise ImageError(f"{index}.png is gone.")

    transform = build_transform(Augmentation(), (16, 16), MEAN, STD)
    with pytest.raises(ImageError, match=r"^\d.png is gone.$"):
        list(training_batches(Images(source().labels, image), transform, StepOrder(10, 3, 7, 0, 3), num_workers=0))


@pytest.mark.parametrize(
    ("cores", "without_gpu", "with_gpu"), [(1, 0, 1), (2, 0, 2), (3, 2, 2), (8, 7, 7), (64, 16, 16)]
)
def test_small_machines_prepare_images_beside_a_gpu_alone_and_large_ones_keep_a_core(
    monkeypatch, cores, without_gpu, with_gpu
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert default_workers() == without_gpu
    assert default_workers(gpu=True) == with_gpu


@pytest.mark.parametrize(("processes", "workers"), [("1", 16), ("8", 7), ("32", 0), ("999", 0)])
def test_the_processes_of_torchrun_share_the_cores(monkeypatch, processes, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
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


@pytest.mark.parametrize(("images", "world_size"), [(10, 1), (10, 3), (9, 3), (2, 4)])
def test_processes_together_evaluate_every_image_once_without_padding(images, world_size):
    processor = evaluation_processor((8, 8), crop_ratio=0.8, mean=MEAN, std=STD)
    whole = EvaluationBatches(source(images), processor, images)
    ((pixels, labels),) = whole
    for rank in range(world_size):
        part = EvaluationBatches(source(images), processor, 2, rank=rank, world_size=world_size)
        found = list(part)
        assert len(found) == len(part)
        own = pixels[rank::world_size]
        assert sum(len(p) for p, _ in found) == len(own)
        if found:
            assert np.array_equal(np.concatenate([p for p, _ in found]), own)
            assert np.array_equal(np.concatenate([t for _, t in found]), labels[rank::world_size])


@pytest.mark.parametrize("cores", [1, 4])
def test_evaluation_does_not_depend_on_the_number_of_threads_and_leaves_the_filters_of_warnings(monkeypatch, cores):
    processor = evaluation_processor((8, 8), crop_ratio=0.8, mean=MEAN, std=STD)
    expected = np.concatenate([pixels for pixels, _ in EvaluationBatches(source(50), processor, 50)])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    before = list(warnings.filters)
    found = np.concatenate([pixels for pixels, _ in EvaluationBatches(source(50), processor, 7)])
    assert np.array_equal(found, expected)
    assert warnings.filters == before


def test_images_that_are_padded_to_their_neighbours_are_prepared_together():
    processor = evaluation_processor((8, 8), crop_ratio=0.8, mean=MEAN, std=STD)
    processor.do_pad = True
    ((pixels, _),) = EvaluationBatches(source(4), processor, 4)
    images = [source(4).image(i) for i in range(4)]
    assert np.array_equal(pixels, processor(images, return_tensors="np").pixel_values)


def test_targets_of_an_evaluation_keep_their_kind():
    labels = np.linspace(-1, 1, 5, dtype=np.float32)
    processor = evaluation_processor((8, 8), crop_ratio=0.8, mean=MEAN, std=STD)
    found = [targets for _, targets in EvaluationBatches(Images(labels), processor, 2)]
    assert all(targets.dtype == np.float32 for targets in found)
    assert np.array_equal(np.concatenate(found), labels)


@pytest.mark.parametrize("pads", [False, True])
def test_a_broken_image_is_left_out_of_an_evaluation_and_told(pads):
    images = an_image_that_breaks(ImageError("it is gone"))
    broken = numbers(order(0, 3, seed=7))[7][0]
    processor = evaluation_processor((8, 8), crop_ratio=0.8, mean=MEAN, std=STD)
    processor.do_pad = pads
    batches, seen, targets = EvaluationBatches(images, processor, 4), [], []
    for pixels, labels in batches:
        assert len(pixels) == len(labels) == len(batches.numbers)
        seen += batches.numbers
        targets += labels.tolist()
    assert batches.left_out == {broken: "it is gone"}
    assert seen == [i for i in range(10) if i != broken]
    assert targets == [source().labels[i] for i in seen]


@pytest.mark.parametrize(("rank", "world_size"), [(1, 1), (-1, 2), (0, 0)])
def test_a_process_outside_of_the_group_is_refused(rank, world_size):
    processor = evaluation_processor((8, 8), crop_ratio=1.0, mean=MEAN, std=STD)
    with pytest.raises(ValueError, match="rank must lie in"):
        EvaluationBatches(source(), processor, 4, rank=rank, world_size=world_size)


def test_evaluation_does_without_timm():
    code = "import sys; sys.modules['timm'] = None; from deit.data.loader import EvaluationBatches"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
