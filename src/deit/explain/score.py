"""Scores a map for its own image: do the patches that it calls important change the answer more than others do?"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from deit.core.errors import UserError
from deit.core.scores.functions import FUNCTIONS, function_name
from deit.core.scores.intervals import Z_95
from deit.explain.network import Network

Array = npt.NDArray[np.float32]

STEPS = 8  # with 8 random orders 142 forward passes for the first map of an image, 14 for each further one
RANDOM_ORDERS = 8
_BATCH = 32
_LEAST_CHANGE = 0.02  # of the probability; a model that barely notices the blur cannot tell one order from another

BETTER, NO_BETTER, WORSE, UNKNOWN = "better", "no better", "worse", "unknown"


@dataclass(frozen=True, kw_only=True)
class MapScore:
    """Insertion minus deletion of one map, for one image (RISE, Petsiuk et al., arXiv 1806.07421, section 4.1).

    Insertion begins with the blurred image and puts patches back, the most important first; deletion begins with the
    image and blurs them. Each is the mean probability of the class over the steps. A good map has a high insertion and
    a low deletion.

    A random order has the score 0 on average, exactly: the score of an order and that of its reverse are opposite. So
    random orders are only needed to know how far chance can lead.

    Attributes:
        score: Insertion minus deletion, between -1 and 1.
        insertion: Mean probability while patches are put back.
        deletion: Mean probability while patches are blurred.
        random_orders: Number of random orders that were tried.
        random_low: Lower end of the interval that holds 95 % of random orders, estimated from those.
        random_high: Its upper end.
        center: The score of the order from the center of the image outward, which any centered Gaussian gives.
        probability: Of the class, for the image.
        blurred_probability: Of the class, for the blurred image.
        verdict: "better", "no better" or "worse" than random; "unknown" where the model barely notices the blur.
    """

    score: float
    insertion: float
    deletion: float
    random_orders: int
    random_low: float
    random_high: float
    center: float
    probability: float
    blurred_probability: float
    verdict: str

    def describe(self) -> str:
        """Returns a sentence for people."""
        change = f"{100 * self.probability:.0f} % to {100 * self.blurred_probability:.0f} %"
        if self.verdict == UNKNOWN:
            return f"Not judged: blurring the whole image changes the probability from {change} only."
        than_chance = f"{self.score:+.3f}; 95 % of random orders: {self.random_low:+.3f} to {self.random_high:+.3f}"
        words = {BETTER: "Better than random", NO_BETTER: "No better than random", WORSE: "Worse than random"}
        center = "better" if self.score > self.center else "no better"
        return f"{words[self.verdict]} ({than_chance}), {center} than the center of the image ({self.center:+.3f})."

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ScoredMap:
    """A map to score.

    Attributes:
        head: Name of the head whose probability counts.
        target: Class number.
        values: (rows, columns), any scale; larger is more important.
    """

    head: str
    target: int
    values: Array


def score_maps(
    network: Network,
    pixels: Tensor,
    maps: list[ScoredMap],
    *,
    random_orders: int = RANDOM_ORDERS,
    steps: int = STEPS,
    seed: int = 0,
) -> list[MapScore]:
    """Scores maps of one image; random orders and the center are computed once for all of them.

    What is taken away is replaced by the same image blurred so much that no detail of a patch is left. One color would
    add edges and leave what the model has learned from, so that curves would measure that.

    Args:
        network: The model.
        pixels: (1, C, H, W), preprocessed.
        maps: Those of one image.
        random_orders: At least 3, to estimate the interval.
        steps: Parts in which patches are put back or blurred.
        seed: Of the random orders.

    Returns:
        A score for each map.

    Raises:
        UserError: There are too few steps or random orders.
    """
    if random_orders < 3 or steps < 2:
        raise UserError(f"A score needs at least 3 random orders and 2 steps. Received: {random_orders} and {steps}.")
    generator = np.random.default_rng(seed)
    grid = maps[0].values.shape
    patches = grid[0] * grid[1]
    by_chance = [generator.permutation(patches) for _ in range(random_orders)]
    orders = [_order(m.values, generator) for m in maps] + [_order(centered(grid), generator)] + by_chance
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(network.device.type, enabled=False):
        curves = Curves(network, pixels.to(network.device), grid, steps)
        ends, answers = curves.ends(), [curves.of(order) for order in orders]
    return [
        _score(m, network.config.problem_type, ends, [answers[number], *answers[len(maps) :]])
        for number, m in enumerate(maps)
    ]


class Curves:
    """Asks a model about an image with a part of its patches blurred.

    Args:
        network: The model.
        pixels: (1, C, H, W).
        grid: (rows, columns) of its patches.
        steps: See `score_maps`.
    """

    def __init__(self, network: Network, pixels: Tensor, grid: tuple[int, ...], steps: int) -> None:
        self.network, self.pixels, self.grid = network, pixels.float(), grid
        height, width = network.trunk.patch_embed.patch_size
        self.patch_size = (int(height), int(width))
        self.blurred = blur(self.pixels, self.patch_size)
        patches = grid[0] * grid[1]
        self.counts = sorted({round(patches * k / steps) for k in range(1, steps)} - {0, patches})

    def ends(self) -> dict[str, Array]:
        """Returns the logits (2, K) of each head for the image and the blurred one."""
        return self._ask(torch.cat((self.pixels, self.blurred)))

    def of(self, order: npt.NDArray[np.int64]) -> dict[str, Array]:
        """Returns the logits (2 x steps, K) of each head: first with patches put back, then with patches blurred.

        Args:
            order: (P,) numbers of the patches, the most important first.
        """
        kept = np.zeros((2, len(self.counts), len(order)), bool)
        for row, count in enumerate(self.counts):
            kept[0, row, order[:count]] = True
            kept[1, row, order[count:]] = True
        return self.masked(torch.from_numpy(kept.reshape(-1, len(order))))

    def masked(self, kept: Tensor) -> dict[str, Array]:
        """Returns the logits (M, K) of each head for the image with patches that are kept (M, P), others blurred."""
        masks = kept.view(-1, 1, *self.grid).to(self.pixels.device)
        masks = masks.repeat_interleave(self.patch_size[0], 2).repeat_interleave(self.patch_size[1], 3)
        height, width = self.pixels.shape[2:]  # a rest that fills no patch is not seen by the model
        masks = F.pad(masks, (0, width - masks.shape[3], 0, height - masks.shape[2]))
        parts = [self._ask(torch.where(part, self.pixels, self.blurred)) for part in masks.split(_BATCH)]
        return {head: np.concatenate([part[head] for part in parts]) for head in parts[0]} if parts else {}

    def _ask(self, pixels: Tensor) -> dict[str, Array]:
        return {head: rows.cpu().numpy() for head, rows in self.network.logits(pixels).items()}


def blur(pixels: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Returns an image (1, C, H, W) blurred by a Gaussian whose deviation is the side of a patch.

    RISE blurs by 5 of 224 pixels, which leaves a patch of 16 pixels what is in it.
    """
    for axis, sigma in enumerate(patch_size):
        size = pixels.shape[2 + axis]
        radius = min(3 * sigma, size)
        places = torch.arange(-radius, radius + 1, dtype=pixels.dtype, device=pixels.device)
        kernel = torch.exp(-0.5 * (places / sigma) ** 2)
        kernel = (kernel / kernel.sum()).view(1, 1, *((-1, 1) if axis == 0 else (1, -1)))
        padding = (0, 0, radius, radius) if axis == 0 else (radius, radius, 0, 0)
        channels = pixels.shape[1]
        padded = F.pad(pixels, padding, mode="replicate")
        pixels = F.conv2d(padded, kernel.expand(channels, -1, -1, -1), groups=channels)
    return pixels


def centered(grid: tuple[int, ...], sigma: float = 0.25) -> Array:
    """Returns a centered Gaussian (rows, columns), as a map that knows nothing of the image.

    Args:
        grid: (rows, columns).
        sigma: Deviation, as a part of each side. The order of the patches does not depend on it.
    """
    rows, columns = ((np.arange(n) + 0.5) / n - 0.5 for n in grid)
    return np.exp(-0.5 * (rows[:, None] ** 2 + columns**2) / sigma**2).astype(np.float32)


def _order(values: Array, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Returns the numbers of patches, the most important first; equal ones in a random order."""
    flat = values.reshape(-1)
    return np.lexsort((generator.random(flat.size), -flat))


def _score(
    scored: ScoredMap, problem_type: str | None, ends: dict[str, Array], answers: list[dict[str, Array]]
) -> MapScore:
    """Scores a map from the logits of its own order, the center's and the random ones."""

    def probabilities(logits: dict[str, Array]) -> Array:
        rows = logits[scored.head].astype(np.float64)
        result: Array = FUNCTIONS[function_name(problem_type, rows.shape[1])](rows)[:, scored.target]
        return result

    whole, blurred = map(float, probabilities(ends))
    areas = [_areas(probabilities(logits), whole, blurred) if logits else (0.0, 0.0) for logits in answers]
    differences = [insertion - deletion for insertion, deletion in areas]
    own, center, by_chance = differences[0], differences[1], differences[2:]
    deviation = math.sqrt(sum(d * d for d in by_chance) / len(by_chance))  # their mean is known: 0
    high = student_t(len(by_chance)) * deviation
    verdict = BETTER if own > high else WORSE if own < -high else NO_BETTER
    if abs(whole - blurred) < _LEAST_CHANGE:
        verdict = UNKNOWN
    return MapScore(
        score=own, insertion=areas[0][0], deletion=areas[0][1], random_orders=len(by_chance), random_low=-high,
        random_high=high, center=center, probability=whole, blurred_probability=blurred, verdict=verdict,
    )  # fmt: skip


def _areas(probabilities: Array, whole: float, blurred: float) -> tuple[float, float]:
    """Returns the areas under both curves by the trapezoid rule; the steps are equal up to rounding."""
    insertion, deletion = np.split(probabilities, 2)
    between = (whole + blurred) / 2
    steps = len(insertion) + 1
    return (float(insertion.sum()) + between) / steps, (float(deletion.sum()) + between) / steps


def student_t(degrees: int) -> float:
    """Returns what 95 % of Student's t lie within, by the expansion of Hill (1970); 0.4 % too low at 3 degrees."""
    z, n = Z_95, degrees
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )
