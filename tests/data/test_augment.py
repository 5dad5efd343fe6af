"""The variations of training images: timm with the paper's arguments, and torchvision's pieces, are the oracles."""

from __future__ import annotations

import inspect
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from timm.data import Mixup, create_transform
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms
from torchvision.transforms import functional as tvf

from deit.core.variants import IMAGENET_MEAN, IMAGENET_STD
from deit.data.augment import _USUAL_RAND_AUGMENT, Augmentation, BatchMixer, build_transform
from deit.runtime.processes import Processes
from deit.runtime.random_state import seeded
from tests.data.pictures import COLOURS, picture

PLAIN = {"flip_rate": 0.0, "rand_augment": "", "erase_rate": 0.0}
WHOLE = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}
THREE: dict[str, Any] = {"three_augment": True, "color_jitter": 0.3, "rand_augment": "", "erase_rate": 0.0}
UNSCALED = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


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
    mean, std = (0.5, 0.25, 0.125), (0.5, 0.25, 2.0)
    expected = (np.asarray(image).transpose(2, 0, 1) / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    plain = build_transform(Augmentation(**PLAIN, **WHOLE), (24, 24), mean, std)(image)
    assert np.allclose(plain.numpy(), expected, atol=1e-6)
    mirrored = build_transform(Augmentation(**{**PLAIN, "flip_rate": 1.0}, **WHOLE), (24, 24), mean, std)(image)
    assert torch.equal(mirrored, plain.flip(-1))
    with seeded(0):
        erased = build_transform(Augmentation(**{**PLAIN, "erase_rate": 1.0}, **WHOLE), (24, 24), mean, std)(image)
    rows, columns = np.nonzero((erased != plain).any(0).numpy())
    inside = (slice(None), slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
    assert 0.02 * 24 * 24 <= len(rows) <= 0.34 * 24 * 24
    assert bool((erased[inside] != plain[inside]).all())  # one rectangle, every pixel another


def test_a_view_can_be_written_into_its_place_in_a_batch():
    transform = build_transform(Augmentation(erase_rate=1.0), (16, 24), IMAGENET_MEAN, IMAGENET_STD)
    batch = torch.full((3, 3, 16, 24), 7.0)
    with seeded(1):
        expected = transform(picture())
    with seeded(1):
        written = transform(picture(), batch[1])
    assert torch.equal(batch[1], expected)
    assert written.data_ptr() == batch[1].data_ptr()
    assert bool((batch[[0, 2]] == 7).all())


@pytest.mark.parametrize("settings", [{}, THREE, {"crop": "simple"}, {"crop": "padded"}])
def test_a_transform_can_be_sent_to_another_process(settings):
    transform = build_transform(Augmentation(**settings), (16, 16), IMAGENET_MEAN, IMAGENET_STD)
    sent = pickle.loads(pickle.dumps(transform))
    for view in range(5):
        with seeded(view):
            expected = transform(picture())
        with seeded(view):
            assert torch.equal(sent(picture()), expected)


def test_random_erasing_equals_timms_on_the_normalized_pixels():
    settings = {**PLAIN, **WHOLE, "erase_rate": 0.25}
    erasing = build_transform(Augmentation(**settings), (32, 32), IMAGENET_MEAN, IMAGENET_STD)
    plain = build_transform(Augmentation(**{**settings, "erase_rate": 0.0}), (32, 32), IMAGENET_MEAN, IMAGENET_STD)
    oracle = RandomErasing(0.25, min_area=0.02, max_area=1 / 3, min_aspect=0.3, mode="pixel", max_count=1, device="cpu")
    image = picture(height=32, width=32)
    erased = 0
    for view in range(100):
        with seeded(view):
            shown = erasing(image)
        with seeded(view):
            expected = plain(image)
            before = expected.clone()
            oracle(expected)  # in place
        assert torch.equal(shown, expected)
        erased += not torch.equal(shown, before)
    assert 10 <= erased <= 42  # 25 expected; 4 standard deviations


def test_posterize_to_0_bits_gives_a_black_image():
    pipeline: Any = build_transform(Augmentation(), (16, 16), IMAGENET_MEAN, IMAGENET_STD)
    operations = pipeline.image_steps[2].ops
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


def test_a_simple_crop_cuts_a_square_of_the_resized_image_with_a_mirrored_border():
    """DeiT III's: the shorter side becomes the model's, and 4 mirrored pixels stand around the image."""
    transform = build_transform(Augmentation(crop="simple", **PLAIN), (16, 16), *UNSCALED)
    image = picture(height=40, width=60)
    resized = np.asarray(image.resize((24, 16), Image.Resampling.BICUBIC))
    padded = np.pad(resized, ((4, 4), (4, 4), (0, 0)), mode="reflect").transpose(2, 0, 1) / np.float32(255)
    places = set()
    for view in range(300):
        with seeded(view):
            shown = transform(image).numpy()
        assert shown.shape == (3, 16, 16)
        windows = [(top, left) for top in range(9) for left in range(17)]
        found = [(t, c) for t, c in windows if np.array_equal(padded[:, t : t + 16, c : c + 16], shown)]
        assert len(found) == 1
        places.update(found)
    assert {top for top, _ in places} == set(range(9))
    assert {left for _, left in places} == set(range(17))


@pytest.mark.parametrize("size", [(16, 24), (24, 16)])
def test_a_simple_crop_fills_a_model_that_is_not_square(size):
    transform = build_transform(Augmentation(crop="simple", **PLAIN), size, *UNSCALED)
    assert transform(picture(height=20, width=20)).shape == (3, *size)


# --- 3-Augment ----------------------------------------------------------------------------------------


def three_augment_by_hand(image: Image.Image) -> torch.Tensor:
    """DeiT III's views of torchvision's pieces, with timm's crop, whose numbers come from Python's generator."""

    def blur(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))

    def solarize(image: Image.Image) -> Image.Image:
        return tvf.solarize(image, 128)

    def grey(image: Image.Image) -> Image.Image:
        return tvf.rgb_to_grayscale(image, num_output_channels=3)

    image = RandomResizedCropAndInterpolation(48, interpolation="bicubic")(image)
    image = transforms.RandomHorizontalFlip()(image)
    image = random.choice([solarize, grey, blur])(image)
    image = transforms.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3)(image)
    return transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)(transforms.ToTensor()(image))


def test_three_augment_equals_the_steps_of_deit_iii_put_together_by_hand():
    transform = build_transform(Augmentation(**THREE), (48, 48), IMAGENET_MEAN, IMAGENET_STD)
    for view in range(60):
        image = picture(COLOURS[view % 3], view, height=50, width=70)
        with seeded(view):
            shown = transform(image)
        with seeded(view):
            assert torch.equal(shown, three_augment_by_hand(image)), view


def test_three_augment_equals_timms_3a():
    ours = build_transform(Augmentation(**THREE), (48, 48), IMAGENET_MEAN, IMAGENET_STD)
    oracle: Any = create_transform(48, is_training=True, auto_augment="3a", color_jitter=0.3, interpolation="bicubic")
    for view in range(30):
        image = picture(COLOURS[view % 3], view, height=70, width=50)
        with seeded(view):
            shown = ours(image)
        with seeded(view):
            assert torch.equal(shown, oracle(image)), view


def test_three_augment_takes_exactly_one_of_the_three_equally_often():
    settings = Augmentation(**{**PLAIN, **WHOLE, "three_augment": True})
    transform = build_transform(settings, (12, 12), *UNSCALED)
    image = picture(height=12, width=12)
    solarized = np.asarray(ImageOps.solarize(image, 128))
    counts = {"grey": 0, "solarized": 0, "blurred": 0}
    for view in range(900):
        with seeded(view):
            shown = (transform(image).numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8)
        if (shown == shown[..., :1]).all():
            assert np.array_equal(shown[..., 0], np.asarray(image.convert("L")))
            counts["grey"] += 1
        elif np.array_equal(shown, solarized):
            counts["solarized"] += 1
        else:
            assert np.abs(shown.mean((0, 1)) - np.asarray(image).mean((0, 1))).max() < 2
            counts["blurred"] += 1
    chi_square = sum((count - 300) ** 2 / 300 for count in counts.values())
    assert chi_square < 13.8, counts  # two degrees of freedom: one in a thousand is larger


def test_colour_jitter_changes_each_of_three_properties_by_the_factor_at_most():
    """On a grey image contrast and saturation do next to nothing, and brightness shows itself."""
    settings = Augmentation(**{**PLAIN, **WHOLE, "color_jitter": 0.3})
    transform = build_transform(settings, (8, 8), *UNSCALED)
    image = Image.new("RGB", (8, 8), (100, 100, 100))
    factors = []
    for view in range(300):
        with seeded(view):
            shown = transform(image)
        assert float(shown.max() - shown.min()) == 0
        factors.append(float(shown[0, 0, 0]) * 255 / 100)
    assert 0.68 <= min(factors) < 0.72
    assert 1.28 < max(factors) <= 1.32
    assert np.mean(factors) == pytest.approx(1, abs=0.04)  # uniform: standard error 0.01


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": "center"}, "augment.crop must be one of resized, padded, simple. Received: 'center'"),
        ({"color_jitter": 1.1, "rand_augment": ""}, "augment.color_jitter must lie between 0 and 1. Received: 1.1"),
        ({"color_jitter": 0.3}, "augment.color_jitter does not combine with augment.rand_augment.* color_jitter=0"),
        ({"three_augment": True}, "three_augment replaces augment.rand_augment.* Pass rand_augment=''"),
        ({"num_repeats": 0}, "augment.num_repeats must be at least 1. Received: 0"),
        ({"mixup_alpha": float("nan")}, "augment.mixup_alpha must be at least 0. Received: nan"),
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


# timm 1.0.31 mixes several labels, and since 1.0.29 the rectangles have odd sides too. Mixing here needs no timm.
OLD_MIXUP = "multi_label" not in inspect.signature(Mixup.__init__).parameters
needs_new_mixup = pytest.mark.skipif(OLD_MIXUP, reason="this version of timm mixes in another way")


def batch(size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(size, 3, 8, 8, generator=generator), torch.arange(size) % 3


@needs_new_mixup
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


class Threads(Processes):
    """Processes that are threads of this one and hand their values over in a dictionary."""

    values: ClassVar[dict[int, torch.Tensor]] = {}
    barrier: ClassVar[Barrier]

    def swap(self, values: torch.Tensor) -> torch.Tensor:
        self.values[self.rank] = values
        self.barrier.wait(10)
        other = self.values[self.world_size - 1 - self.rank].clone()
        self.barrier.wait(10)
        return other


@pytest.mark.parametrize("count", [2, 3, 4])
def test_processes_that_share_a_step_mix_it_as_one_would(count):
    """Share, rectangle and partners are those of the whole step, of which each process has every count-th image."""
    mixer = BatchMixer(Augmentation(), 3, 0.1, seed=5)
    random = torch.Generator().manual_seed(0)
    pixels, labels = torch.rand(12, 3, 8, 8, generator=random), torch.randint(3, (12,), generator=random)
    for step in range(6):
        whole = mixer(pixels, labels, step)
        assert not torch.equal(whole[0], pixels)
        Threads.barrier = Barrier(count)
        with ThreadPoolExecutor(count) as pool:
            places = [Threads(rank=rank, world_size=count) for rank in range(count)]
            shares = [(pixels[rank::count], labels[rank::count]) for rank in range(count)]
            parts = list(pool.map(lambda s, place, step=step: mixer(*s, step, place), shares, places))
        for rank, part in enumerate(parts):
            assert all(torch.equal(mine, every[rank::count]) for mine, every in zip(part, whole, strict=True))


def test_an_odd_batch_cannot_be_mixed():
    with pytest.raises(ValueError, match=r"even number of images in a step. Received: 3. .*mix_rate=0"):
        BatchMixer(Augmentation(), 3, 0.1, seed=0)(*batch(3), 0)


@needs_new_mixup
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_several_labels_are_mixed_as_timm_mixes_them(smoothing):
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]])
    mixer = BatchMixer(Augmentation(), 3, smoothing, seed=5)
    oracle = Mixup(
        mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=smoothing, num_classes=3, multi_label=True, mode="batch"
    )
    for step in range(10):
        pixels, _ = batch()
        mixed, targets = mixer(pixels, labels, step)
        with seeded(5, 1, step):
            expected_pixels, expected_targets = oracle(pixels.clone(), labels)
        assert torch.equal(mixed, expected_pixels)
        assert torch.equal(targets, expected_targets)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_values_are_mixed_as_the_pixels_are_shared_and_never_smoothed(smoothing):
    pixels = torch.cat([torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)])
    values = torch.tensor([10.0, -30.0])
    for step in range(10):
        mixed, targets = BatchMixer(Augmentation(), 1, smoothing, seed=0)(pixels, values, step)
        share = 1 - mixed[0].mean().item()
        assert targets.tolist() == pytest.approx(
            [10 * share - 30 * (1 - share), -30 * share + 10 * (1 - share)], abs=1e-4
        )
        assert targets.dtype == torch.float32


def test_a_rectangle_cut_at_the_border_counts_with_the_area_that_is_left(monkeypatch):
    """A share of 0.36 asks for a side of 0.8: 8 of 10 rows and 16 of 20 columns around the point drawn, (1, 19).

    Of the rows -3 to 4 five are inside, of the columns 11 to 26 nine: 45 of 200 pixels, a share of 0.775.
    """
    draws = iter([1, 19])
    monkeypatch.setattr(np.random, "rand", lambda *size: 0.0)
    monkeypatch.setattr(np.random, "beta", lambda a, b: 0.36)
    monkeypatch.setattr(np.random, "randint", lambda *limits, **_: next(draws))
    pixels = torch.cat([torch.zeros(1, 3, 10, 20), torch.ones(1, 3, 10, 20)])
    mixer = BatchMixer(Augmentation(mixup_alpha=0.0), 2, 0.0, seed=0)
    mixed, targets = mixer(pixels, torch.tensor([0, 1]), 0)
    expected = torch.zeros(10, 20)
    expected[0:5, 11:20] = 1
    assert torch.equal(mixed[0], expected.expand(3, 10, 20))
    assert torch.equal(mixed[1], 1 - expected.expand(3, 10, 20))
    assert targets.flatten().tolist() == pytest.approx([0.775, 0.225, 0.225, 0.775], abs=1e-6)


def test_mixing_happens_as_often_and_as_strongly_as_the_settings_say():
    """Half the mixed batches are cut; Mixup's share has the mean 1/2 and the variance of Beta(0.8, 0.8), 1 / 10.4."""
    mixer = BatchMixer(Augmentation(mix_rate=0.6), 2, 0.0, seed=0)
    pixels = torch.cat([torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)])
    cut, shares = 0, []
    for step in range(1500):
        mixed, targets = mixer(pixels, torch.tensor([0, 1]), step)
        values = mixed[0].unique()
        if len(values) == 2:
            cut += 1
        elif 0 < values[0] < 1:
            shares.append(float(targets[0, 0]))
    # A rectangle may be empty or hold everything: of 450 expected some do not show.
    assert 350 <= cut <= 500
    assert 450 - 71 <= len(shares) <= 450 + 71  # 4 standard deviations
    assert np.mean(shares) == pytest.approx(0.5, abs=0.06)
    assert np.var(shares) == pytest.approx(1 / 10.4, rel=0.15)


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


@pytest.mark.parametrize("text", ["rand", "rand-m9-mstd0.5-inc1", "rand-n3-m15-mstd1.25-inc0", "rand-inc01-m0-n00"])
def test_the_texts_that_timm_is_not_asked_about_are_ones_that_it_takes(text):
    assert _USUAL_RAND_AUGMENT.fullmatch(text)
    assert rand_augment_transform(text, {}).ops


@pytest.mark.parametrize("text", ["rand-m", "rand-m9-x1", "rand-mstd", "auto-m9", "rand-m9-", "rand-m9-mstd0.5.5"])
def test_other_texts_are_left_to_timm(text):
    assert not _USUAL_RAND_AUGMENT.fullmatch(text)
