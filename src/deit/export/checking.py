"""Compares an export with the original on images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deit.core.errors import ImageError, UserError
from deit.core.export_file import Check
from deit.core.images.image_inputs import is_array
from deit.core.images.reading import load_image
from deit.core.printable import counted, some_of
from deit.core.scores.metrics import MULTI_LABEL, REGRESSION
from deit.export.formats.written_format import Array, Opened
from deit.export.original import Original

# Largest difference of a logit. fp32: what the order of adding costs. fp16 and bf16 have 11 and 8 bits: as much as a
# logit of 30 loses.
TOLERANCES = {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.3}
# Share of images that must get the same answer.
AGREEMENTS = {"fp32": 1.0, "fp16": 0.99, "bf16": 0.99}
_LEAST_EQUAL_PIXELS = 0.9999
_ROUNDING = 1e-4  # of one level of color: pixels are float32


@dataclass(kw_only=True)
class _Tally:
    images: int = 0
    same: int = 0
    logits: float = 0.0
    scores: float = 0.0
    level: float = 0.0
    pixels: int = 0
    equal: int = 0
    unreadable: list[str] = field(default_factory=list)


def checked(
    original: Original,
    opened: Opened,
    images: Iterable[Any],
    *,
    precision: str,
    tolerance: float | None = None,
    on_image: Callable[[int], None] | None = None,
) -> tuple[Check, list[str]]:
    """Compares an export with the original, and raises an error if they disagree.

    Pixels must be equal in 99.99 % and differ by one level of color at most; logits may differ by the tolerance;
    answers must be the same for all images in fp32, and for 99 % below.

    Args:
        original: The model that was exported.
        opened: The export.
        images: Paths or PIL images.
        precision: Of the export.
        tolerance: Of logits; None takes that of the precision, `TOLERANCES`.
        on_image: Called with the number of images that are done.

    Returns:
        The numbers, and why images were left out.

    Raises:
        UserError: They disagree, or no image can be read.
    """
    allowed = TOLERANCES[precision] if tolerance is None else tolerance
    tally = _Tally()
    for image in images:
        try:
            found = (
                image if is_array(image) else load_image(image, value_range=original.predictor.processor.value_range)
            )
        except ImageError as error:
            tally.unreadable.append(str(error))
            continue
        _compare(original, opened, found, tally)
        if on_image is not None:
            on_image(tally.images)
    if not tally.images:
        reasons = f" {some_of(tally.unreadable, 3)}" if tally.unreadable else ""
        raise UserError(f"No image was left to check the export with.{reasons}")
    check = Check(
        images=tally.images,
        largest_difference=tally.logits,
        agreement=tally.same / tally.images,
        tolerance=allowed,
        largest_score_difference=tally.scores,
        equal_pixels=tally.equal / tally.pixels if tally.pixels else None,
    )
    _judge(check, tally, precision)
    return check, tally.unreadable


def _compare(original: Original, opened: Opened, image: Any, tally: _Tally) -> None:
    processor = original.predictor.processor
    pixels = np.asarray(processor(image, return_tensors="np").pixel_values, np.float32)
    wanted, found = original.logits(pixels), opened.logits(pixels)
    answer = original.contract.head_names[0]
    tally.images += 1
    for name, logits in wanted.items():
        tally.logits = _larger(tally.logits, found[name], logits)
    scores = original.predictor.scores(wanted[answer])
    same = _same_answer(original, wanted[answer], found[answer])
    if opened.pixels is not None and opened.scores is not None:
        levels = np.array(image.convert("RGB"))[None]  # writable, as PyTorch wants it
        step = original.geometry.step if original.geometry is not None else 1.0
        made = opened.pixels(levels)
        tally.level = _larger(tally.level, made / step, pixels / step)
        tally.pixels, tally.equal = tally.pixels + pixels.size, tally.equal + int((made == pixels).sum())
        given = opened.scores(levels)
        tally.scores = _larger(tally.scores, given, scores)
        same = same and _same_scores(original, scores, given)
    tally.same += same


def _larger(largest: float, found: Array, wanted: Array) -> float:
    """Returns the larger one of a number and the largest difference; infinity where there are no numbers."""
    difference = np.abs(np.asarray(found, np.float64) - wanted).max()
    return max(largest, float(difference) if np.isfinite(difference) else float("inf"))


def _same_answer(original: Original, wanted: Array, found: Array) -> bool:
    return _same_scores(original, original.predictor.scores(wanted), original.predictor.scores(found))


def _same_scores(original: Original, wanted: Array, found: Array) -> bool:
    kind = original.contract.problem_type
    if kind == REGRESSION:
        return True
    if kind == MULTI_LABEL or wanted.shape[1] == 1:
        return bool(((wanted > 0.5) == (found > 0.5)).all())
    return bool((wanted.argmax(1) == found.argmax(1)).all())


def _judge(check: Check, tally: _Tally, precision: str) -> None:
    faults = []
    if tally.level > 1 + _ROUNDING:
        faults.append(f"pixels differ by up to {tally.level:.1f} levels of color")
    if check.equal_pixels is not None and check.equal_pixels < _LEAST_EQUAL_PIXELS:
        faults.append(f"{100 * check.equal_pixels:.3f} % of the pixels are equal, and 99.99 % must be")
    if check.largest_difference > check.tolerance:
        faults.append(f"logits differ by up to {check.largest_difference:.3g}, and {check.tolerance:g} is allowed")
    if check.largest_score_difference > check.tolerance:
        faults.append(
            f"scores differ by up to {check.largest_score_difference:.3g}, and {check.tolerance:g} is allowed"
        )
    if check.agreement < AGREEMENTS[precision]:
        wanted = f"{100 * AGREEMENTS[precision]:g} %"
        faults.append(f"{100 * check.agreement:.2f} % of the answers are the same, and {wanted} must be")
    if faults:
        raise UserError(
            f"The export disagrees with the model on {counted(check.images, 'image')}, so it is not kept: "
            f"{'; '.join(faults)}."
        )
