"""The variations of training images: timm's own, with the paper's arguments, is the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import Mixup, create_transform

from deit.core.variants import IMAGENET_MEAN, IMAGENET_STD
from deit.data.augment import Augmentation, BatchMixer, build_transform
from deit.data.random_state import seeded
from tests.data.pictures import COLOURS, picture

PLAIN = {"flip_rate": 0.0, "rand_augment": "", "erase_rate": 0.0}


def timm_pipeline(image_size: int) -> Any:
    """timm's transform as main.py of the paper's code calls it."""
    return create_transform(
        input_size=image_size,
        is_training=True,
        color_jitter=0.3,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
    )


def let_posterize_reach_0_bits(pipeline: Any) -> list[int]:
    """Brings back what Pillow did before version 13 for 0 bits, every bit cleared; returns the bits asked for."""
    asked: list[int] = []
    (operation,) = [step for step in pipeline.transforms[2].ops if step.name == "PosterizeIncreasing"]
    original = operation.aug_fn

    def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
        asked.append(bits)
        return original(image, bits) if bits else Image.new("RGB", image.size)

    operation.aug_fn = posterize
    return asked


def test_every_view_equals_timms_with_the_papers_arguments():
    ours = build_transform(Augmentation(), (48, 48), IMAGENET_MEAN, IMAGENET_STD)
    oracle = timm_pipeline(48)
    asked = let_posterize_reach_0_bits(oracle)
    seen = set()
    for view in range(300, 420):
        image = picture(COLOURS[view % 3], view, height=50, width=70)
        with seeded(0, view):
            pixels = ours(image)
        with seeded(0, view):
            assert torch.equal(pixels, oracle(image)), view
        assert pixels.dtype == torch.float32
        assert pixels.shape == (3, 48, 48)
        seen.add(pixels.numpy().tobytes())
    assert len(seen) == 120
    assert 0 in asked  # view 355 asks for the largest magnitude


def test_settings_reach_timm():
    """With the random parts off or certain, what is left can be told by hand."""
    image = picture("green", height=24, width=24)
    whole = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}
    mean, std = (0.5, 0.25, 0.125), (0.5, 0.25, 2.0)
    expected = (np.asarray(image).transpose(2, 0, 1) / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    plain = build_transform(Augmentation(**PLAIN, **whole), (24, 24), mean, std)(image)
    assert np.allclose(plain.numpy(), expected, atol=1e-6)
    mirrored = build_transform(Augmentation(**{**PLAIN, "flip_rate": 1.0}, **whole), (24, 24), mean, std)(image)
    assert torch.equal(mirrored, plain.flip(-1))
    with seeded(0):
        erased = build_transform(Augmentation(**{**PLAIN, "erase_rate": 1.0}, **whole), (24, 24), mean, std)(image)
    rows, columns = np.nonzero((erased != plain).any(0).numpy())
    inside = (slice(None), slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
    assert 0.02 * 24 * 24 <= len(rows) <= 0.34 * 24 * 24
    assert bool((erased[inside] != plain[inside]).all())  # one rectangle, every pixel another


def test_posterize_to_0_bits_gives_a_black_image():
    pipeline: Any = build_transform(Augmentation(), (16, 16), IMAGENET_MEAN, IMAGENET_STD)
    operations = pipeline.transforms[2].ops
    (posterize,) = [operation.aug_fn for operation in operations if operation.name == "PosterizeIncreasing"]
    image = picture()
    assert np.asarray(posterize(image, 0)).max() == 0
    assert np.array_equal(np.asarray(posterize(image, 1)), np.asarray(image) & 0b1000_0000)
    assert np.array_equal(np.asarray(posterize(image, 4)), np.asarray(image) & 0b1111_0000)
    assert np.array_equal(np.asarray(posterize(image, 8)), np.asarray(image))


def test_the_largest_magnitude_asks_for_0_bits_and_works():
    """The reason for the repair; when this pair of versions no longer raises without it, the repair can go."""
    strongest = Augmentation(**{**PLAIN, "rand_augment": "rand-m10-n20-p1.0-inc1"})
    transform = build_transform(strongest, (16, 16), IMAGENET_MEAN, IMAGENET_STD)
    for view in range(20):
        with seeded(view):
            assert bool(torch.isfinite(transform(picture(seed=view))).all())


def test_a_padded_crop_moves_the_whole_image_by_at_most_an_eighth():
    settings = Augmentation(crop="padded", **PLAIN)
    size = (16, 24)  # not square, so that the two sides cannot be mistaken for each other
    transform = build_transform(settings, size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    image = picture(height=16, width=24)
    pixels = np.asarray(image).transpose(2, 0, 1) / np.float32(255)
    padded = np.zeros((3, 16 + 2 * 2, 24 + 2 * 3), np.float32)
    padded[:, 2:-2, 3:-3] = pixels
    places = set()
    for view in range(60):
        with seeded(view):
            shown = transform(image).numpy()
        assert shown.shape == (3, 16, 24)
        found = [
            (top, left)
            for top in range(5)
            for left in range(7)
            if np.array_equal(padded[:, top : top + 16, left : left + 24], shown)
        ]
        assert len(found) == 1
        places.update(found)
    assert {top for top, _ in places} == set(range(5))
    assert {left for _, left in places} == set(range(7))


def test_a_padded_crop_resizes_images_of_another_size_first():
    transform = build_transform(Augmentation(crop="padded", **PLAIN), (16, 16), (0.0,) * 3, (1.0,) * 3)
    shown = transform(picture(height=40, width=60))
    assert shown.shape == (3, 16, 16)
    assert shown[0].mean() > shown[1].mean() + 0.2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": "center"}, "augment.crop must be 'resized' or 'padded'. Received: 'center'"),
        ({"flip_rate": 1.5}, "augment.flip_rate must lie between 0 and 1. Received: 1.5"),
        ({"erase_rate": -0.1}, "augment.erase_rate must lie between 0 and 1. Received: -0.1"),
        ({"mix_rate": 2}, "augment.mix_rate must lie between 0 and 1. Received: 2"),
        ({"mixup_alpha": -1}, "augment.mixup_alpha must be at least 0. Received: -1"),
        ({"cutmix_alpha": -1}, "augment.cutmix_alpha must be at least 0. Received: -1"),
        ({"crop_scale": (0.0, 1.0)}, r"augment.crop_scale must be 0 < low <= high <= 1. Received: \(0.0, 1.0\)"),
        ({"crop_scale": (0.5, 1.1)}, "augment.crop_scale"),
        ({"crop_scale": (0.6, 0.5)}, "augment.crop_scale"),
        ({"crop_ratio": (0.0, 1.0)}, r"augment.crop_ratio must be 0 < low <= high. Received: \(0.0, 1.0\)"),
        ({"crop_ratio": (2.0, 1.0)}, "augment.crop_ratio"),
        ({"rand_augment": "strong"}, "augment.rand_augment must be like 'rand-m9-mstd0.5-inc1', or empty. .* 'strong'"),
        ({"rand_augment": "rand-x9"}, "augment.rand_augment must be like"),
        ({"rand_augment": "rand-m1.5"}, "augment.rand_augment must be like"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**settings)


@pytest.mark.parametrize(
    ("settings", "mixes"),
    [
        ({}, True),
        ({"mixup_alpha": 0}, True),
        ({"cutmix_alpha": 0}, True),
        ({"mixup_alpha": 0, "cutmix_alpha": 0}, False),
        ({"mix_rate": 0}, False),
    ],
)
def test_batches_are_mixed_when_one_of_the_two_ways_is_on(settings, mixes):
    assert Augmentation(**settings).mixes is mixes


# --- BatchMixer ---------------------------------------------------------------------------------------


def batch(size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(size, 3, 8, 8, generator=generator), torch.arange(size) % 3


@pytest.mark.parametrize("settings", [{}, {"mixup_alpha": 0.0}, {"cutmix_alpha": 0.0}, {"mix_rate": 0.5}])
def test_mixing_equals_timms_under_the_same_random_state(settings):
    augmentation = Augmentation(**settings)
    mixer = BatchMixer(augmentation, 3, 0.1, seed=5)
    oracle = Mixup(
        mixup_alpha=augmentation.mixup_alpha,
        cutmix_alpha=augmentation.cutmix_alpha,
        prob=augmentation.mix_rate,
        switch_prob=0.5,
        mode="batch",
        label_smoothing=0.1,
        num_classes=3,
    )
    shares = set()
    for step in range(20):
        pixels, labels = batch()
        mixed, targets = mixer(pixels, labels, step)
        with seeded(5, 1, step):
            expected_pixels, expected_targets = oracle(pixels.clone(), labels)
        assert torch.equal(mixed, expected_pixels)
        assert torch.equal(targets, expected_targets)
        shares.add(round(targets[1].max().item(), 6))
    assert len(shares) > 5  # images 1 and 2 have different labels


def test_mixing_leaves_the_given_batch_alone():
    pixels, labels = batch()
    before = pixels.clone()
    mixed, _ = BatchMixer(Augmentation(), 3, 0.1, seed=0)(pixels, labels, 0)
    assert torch.equal(pixels, before)
    assert not torch.equal(mixed, before)


def test_mixing_depends_on_seed_and_step_alone():
    def mix(seed: int, step: int) -> list[float]:
        return BatchMixer(Augmentation(), 3, 0.1, seed=seed)(*batch(), step)[0].flatten().tolist()

    first = mix(0, 3)
    np.random.seed(99)
    assert mix(0, 3) == first
    assert mix(0, 4) != first
    assert mix(1, 3) != first


def test_unmixed_targets_hold_the_smoothing_worked_out_by_hand():
    """0.3 spread over 3 classes: 0.1 on each, and the other 0.7 on the true one. The batch is never mixed here."""
    pixels, labels = batch()
    mixed, targets = BatchMixer(Augmentation(mix_rate=0.0), 3, 0.3, seed=0)(pixels, labels, 0)
    assert torch.equal(mixed, pixels)
    expected = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]])
    assert torch.allclose(targets, expected, atol=1e-7)
    assert targets.dtype == torch.float32


def test_mixed_targets_share_the_mass_as_the_pixels_are_shared():
    """Two images, one of zeros and one of ones: the first mixed image shows its own share as 1 - brightness."""
    pixels = torch.cat([torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)])
    labels = torch.tensor([0, 1])
    for step in range(10):
        mixed, targets = BatchMixer(Augmentation(), 2, 0.1, seed=0)(pixels, labels, step)
        share = 1 - mixed[0].mean().item()
        # 0.1 over two classes: 0.05 on each, and the other 0.9 divided by the share.
        assert targets[0].tolist() == pytest.approx([0.05 + 0.9 * share, 0.05 + 0.9 * (1 - share)], abs=1e-6)
        assert targets.sum(1).tolist() == pytest.approx([1.0, 1.0], abs=1e-6)
