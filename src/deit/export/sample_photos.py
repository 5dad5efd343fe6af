"""Makes pictures with the statistics of photos, to check exports with where no photos are given."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

# (height, width): what cameras, telephones and scanners give, in small; tall and wide ones, and one of few pixels.
_SIZES = ((375, 500), (500, 375), (333, 500), (480, 640), (640, 360), (256, 256), (500, 281), (97, 130), (700, 233))


def sample_photos(count: int) -> Iterator[Image.Image]:
    """Yields pictures, the same ones each time: clouds of the spectrum of nature, lit from a side, with objects.

    Photos have amplitudes that fall as 1 / frequency (Field 1987), strong edges and differently lit parts. White noise,
    which has none of these, hides faults of exports that photos show.

    Args:
        count: How many.
    """
    for number in range(count):
        random = np.random.default_rng(number)
        height, width = _SIZES[number % len(_SIZES)]
        image = Image.fromarray(_clouds(random, height, width))
        draw = ImageDraw.Draw(image)
        for _ in range(int(random.integers(2, 9))):
            x, y = int(random.integers(0, width)), int(random.integers(0, height))
            across, down = (int(random.integers(side // 16 + 1, side // 2)) for side in (width, height))
            color = tuple(int(level) for level in random.integers(0, 256, 3))
            shape = draw.ellipse if random.random() < 0.6 else draw.rectangle
            shape((x - across // 2, y - down // 2, x + across // 2, y + down // 2), fill=color)
        soft = image.filter(ImageFilter.GaussianBlur(float(random.uniform(0, 1.5))))
        grain = random.normal(0, random.uniform(0, 6), (height, width, 3))
        yield Image.fromarray((np.asarray(soft) + grain).clip(0, 255).astype(np.uint8))


def _clouds(random: np.random.Generator, height: int, width: int) -> npt.NDArray[np.uint8]:
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    amplitude = 1 / np.maximum(np.hypot(rows, columns), 1 / max(height, width))
    planes = []
    for _ in range(3):
        noise = np.fft.rfft2(random.normal(size=(height, width)))
        plane = np.fft.irfft2(noise * amplitude, (height, width))
        planes.append(plane / plane.std())
    shared = planes[0]  # colors of nature go together
    light = np.linspace(-1, 1, width)[None] * random.uniform(-1, 1) + np.linspace(-1, 1, height)[:, None]
    tint = random.uniform(60, 190, 3)
    mixed = [tint[i] + 35 * (0.8 * shared + 0.6 * plane) + 25 * light for i, plane in enumerate(planes)]
    return np.stack(mixed, axis=-1).clip(0, 255).astype(np.uint8)
