"""Computes confidence intervals of shares."""

from __future__ import annotations

import math

_Z = 1.959963984540054  # of the normal distribution: 95 % lie within so many standard deviations


def share_interval(percent: float, images: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share, after Wilson (1927), in percent.

    Were the model asked about other images of the same kind, as many of them, intervals made so would hold its true
    share 95 times of 100. Unlike the plain one (share plus and minus) it stays within 0 and 100 and suits few images.

    Args:
        percent: The share that was counted, such as a top-1 accuracy.
        images: How many images it was counted on.

    Returns:
        The two ends; NaN when there are no images or the share is NaN.
    """
    if images < 1 or math.isnan(percent):
        return math.nan, math.nan
    share, spread = percent / 100, _Z**2 / images
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(max(share * (1 - share) * spread + spread**2 / 4, 0.0)) / (1 + spread)
    return 100 * max(middle - half, 0.0), 100 * min(middle + half, 1.0)
