"""Computes confidence intervals of shares."""

from __future__ import annotations

import math
from typing import Any

from deit.core.printable import counted

SHARES = ("top1", "top5", "exact_match")  # scores that are shares of images
WIDE = 3.0  # points each way from which on an interval is told in words

Z_95 = 1.959963984540054  # of the normal distribution: 95 % lie within so many standard deviations


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
    share, spread = percent / 100, Z_95**2 / images
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(max(share * (1 - share) * spread + spread**2 / 4, 0.0)) / (1 + spread)
    return 100 * max(middle - half, 0.0), 100 * min(middle + half, 1.0)


def score_intervals(scores: Any) -> dict[str, tuple[float, float]]:
    """Returns the 95 % interval of each score that is a share of images, in percent; see `share_interval`.

    Args:
        scores: `Scores`, `MultiLabelScores`, or others with `as_dict()` and `images`.
    """
    return {name: share_interval(value, scores.images) for name, value in scores.as_dict().items() if name in SHARES}


def describe_width(what: str, interval: tuple[float, float], images: int) -> list[str]:
    """Returns a sentence that says how uncertain a share is, where that is more than 3 points each way; else none.

    Args:
        what: Name of the share, such as "top-1".
        interval: Its two ends in percent.
        images: How many images it was counted on.

    Examples:
        >>> describe_width("top-1", share_interval(57.8, 180), 180)
        ['With 180 images top-1 is known to plus or minus 7 points: 50.5 to 64.8 % (95 % interval).']
    """
    low, high = interval
    half = (high - low) / 2
    if not half > WIDE:
        return []
    return [
        f"With {counted(images, 'image')} {what} is known to plus or minus {half:.0f} points: {low:.1f} to "
        f"{high:.1f} % (95 % interval)."
    ]
