"""Scores a map for its own image: do the patches that it calls important change the answer more than others do?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from deit.core.errors import UserError
from deit.core.scores.functions import FUNCTIONS, function_name
from deit.explain.network import Network
from deit.runtime.devices import Placement

if TYPE_CHECKING:
    from deit.explain.maps import Explanation

Array = npt.NDArray[np.float32]

# Parts of the patches at which the model is asked; closer together where the first and the last patches decide.
FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8, 15 / 16)
RANDOM_ORDERS = 10  # 156 forward passes of the model, and 14 for each map
FEWEST_ORDERS = 9  # with fewer, no map can be told from chance
ORDERS_LIMIT = 1000
_BATCH = 32
_CHANCE, _ROUNDING = 0.05, 1e-9
_LEAST_CHANGE = 0.02  # of the probability; a model that barely notices the blur cannot tell one order from another

BETTER, NO_BETTER, WORSE, UNKNOWN = "better", "no better", "worse", "unknown"


@dataclass(frozen=True, kw_only=True)
class MapScore:
    """Insertion minus deletion of one map, for one image (RISE, Petsiuk et al., arXiv 1806.07421, section 4.1).

    Insertion begins with the blurred image and puts patches back, the most important first; deletion begins with the
    image and blurs them. Each is the mean probability of the class on the way. A good map has a high insertion and a
    low deletion.

    The score of an order of patches and that of its reverse are opposite numbers. So a random order has the score 0 on
    average, exactly, and each random order stands for two.

    Attributes:
        score: Insertion minus deletion, between -1 and 1.
        insertion: Mean probability while patches are put back (area under the curve, trapezoid rule).
        deletion: Mean probability while patches are blurred.
        random_orders: Number R of random orders that were tried; with their reverses 2 R.
        random_low: The lowest score of these. A further random order lies between both ends R times of R + 1.
        random_high: The highest one.
        chance: Probability that a random order gets as far from 0 to the same side, at least 1 / (2 R + 2): a rank
            test, exact for any distribution.
        center: The score of the order from the center of the image outward, which any centered Gaussian gives.
        probability: Of the class, for the image.
        blurred_probability: Of the class, for the blurred image.
        verdict: "better" or "worse" than random where `chance` is at most 0.05, else "no better"; "unknown" where the
            model barely notices the blur.
    """

    score: float
    insertion: float
    deletion: float
    random_orders: int
    random_low: float
    random_high: float
    chance: float
    center: float
    probability: float
    blurred_probability: float
    verdict: str

    def describe(self) -> str:
        """Returns a sentence for people."""
        if self.verdict == UNKNOWN:
            change = f"{100 * self.probability:.0f} % to {100 * self.blurred_probability:.0f} %"
            return f"Not judged: blurring the whole image changes the probability from {change} only."
        count = 2 * self.random_orders
        span = f"{self.random_low:+.3f} to {self.random_high:+.3f}"
        words = {BETTER: "Better than random", NO_BETTER: "No better than random", WORSE: "Worse than random"}
        center = "better" if self.score > self.center else "no better"
        return (
            f"{words[self.verdict]}: {self.score:+.3f}, {count} random orders {span}; {center} than the center of the "
            f"image ({self.center:+.3f})."
        )

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
    seed: int = 0,
) -> list[MapScore]:
    """Scores maps of one image; random orders and the center are computed once for all of them.

    What is taken away is replaced by the same image blurred so much that no detail of a patch is left. One color would
    add edges and leave what the model has learned from, so that curves would measure that.

    Args:
        network: The model.
        pixels: (1, C, H, W), preprocessed.
        maps: Those of one image.
        random_orders: From 9, with which a map can be told from chance, to 1000. With 10, a small model for 32 pixels
            needs a second on two cores of a CPU.
        seed: Of the random orders.

    Returns:
        A score for each map.

    Raises:
        UserError: There are too few or too many random orders.
    """
    if not FEWEST_ORDERS <= random_orders <= ORDERS_LIMIT:
        raise UserError(f"random_orders must be {FEWEST_ORDERS} to {ORDERS_LIMIT}. Received: {random_orders}.")
    generator = np.random.default_rng(seed)
    grid = maps[0].values.shape
    patches = grid[0] * grid[1]
    by_chance = [generator.permutation(patches) for _ in range(random_orders)]
    orders = [*(_order(values, seed) for values in (*(m.values for m in maps), centered(grid))), *by_chance]
    with torch.inference_mode(False), torch.no_grad(), Placement(network.device).autocast():
        curves = Curves(network, pixels.to(network.device), grid)
        ends, answers = curves.ends(), [curves.of(order) for order in orders]
    return [
        _score(m, network.config.problem_type, curves, ends, [answers[number], *answers[len(maps) :]])
        for number, m in enumerate(maps)
    ]


def score_explanation(
    network: Network,
    pixels: Array,
    explanation: Explanation,
    *,
    random_orders: int = RANDOM_ORDERS,
    seed: int = 0,
) -> dict[str, MapScore]:
    """Scores the overall map of each head of an explanation; see `score_maps`.

    Args:
        network: The model.
        pixels: (1, C, H, W), preprocessed.
        explanation: Of these pixels.
        random_orders: See `score_maps`.
        seed: See `score_maps`.

    Returns:
        A score by the name of the head.

    Raises:
        UserError: See `score_maps`.
    """
    maps = [ScoredMap(head=name, target=head.target, values=head.values) for name, head in explanation.heads.items()]
    scores = score_maps(network, torch.from_numpy(pixels), maps, random_orders=random_orders, seed=seed)
    return dict(zip(explanation.heads, scores, strict=True))


class Curves:
    """Asks a model about an image with a part of its patches blurred.

    Args:
        network: The model.
        pixels: (1, C, H, W).
        grid: (rows, columns) of its patches.
    """

    def __init__(self, network: Network, pixels: Tensor, grid: tuple[int, ...]) -> None:
        self.network, self.pixels, self.grid = network, pixels.float(), grid
        height, width = network.trunk.patch_embed.patch_size
        self.patch_size = (int(height), int(width))
        self.blurred = blur(self.pixels, self.patch_size)
        patches = grid[0] * grid[1]
        counts = {round(patches * fraction) for fraction in FRACTIONS if fraction <= 0.5}
        self.counts = sorted((counts | {patches - count for count in counts}) - {0, patches})

    def ends(self) -> dict[str, Array]:
        """Returns the logits (2, K) of each head for the image and the blurred one."""
        return self._ask(torch.cat((self.pixels, self.blurred)))

    def of(self, order: npt.NDArray[np.int64]) -> dict[str, Array]:
        """Returns the logits (2 x counts, K) of each head: first with patches put back, then with patches blurred.

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


def _order(values: Array, seed: int) -> npt.NDArray[np.int64]:
    """Returns the numbers of patches, the most important first; equal ones in a random order."""
    flat = values.reshape(-1)
    return np.lexsort((np.random.default_rng([seed, 1]).random(flat.size), -flat))


def _score(
    scored: ScoredMap, problem_type: str | None, curves: Curves, ends: dict[str, Array], answers: list[dict[str, Array]]
) -> MapScore:
    """Scores a map from the logits of its own order, the center's and the random ones."""
    counts, patches = curves.counts, scored.values.size

    def probabilities(logits: dict[str, Array]) -> Array:
        rows = logits[scored.head].astype(np.float64)
        result: Array = FUNCTIONS[function_name(problem_type, rows.shape[1])](rows)[:, scored.target]
        return result

    whole, blurred = map(float, probabilities(ends))
    areas = [
        _areas(probabilities(a) if a else np.zeros(0, np.float32), whole, blurred, counts, patches) for a in answers
    ]
    differences = [insertion - deletion for insertion, deletion in areas]
    own, center, by_chance = differences[0], differences[1], np.abs(differences[2:])
    chance = (1 + int((by_chance >= abs(own) - _ROUNDING).sum())) / (2 * len(by_chance) + 2)
    verdict = NO_BETTER if chance > _CHANCE else BETTER if own > 0 else WORSE
    if abs(whole - blurred) < _LEAST_CHANGE:
        verdict = UNKNOWN
    high = float(by_chance.max())
    return MapScore(
        score=own, insertion=areas[0][0], deletion=areas[0][1], random_orders=len(by_chance), random_low=-high,
        random_high=high, chance=chance, center=center, probability=whole, blurred_probability=blurred,
        verdict=verdict,
    )  # fmt: skip


def _areas(probabilities: Array, whole: float, blurred: float, counts: list[int], patches: int) -> tuple[float, float]:
    """Returns the areas under both curves by the trapezoid rule."""
    insertion, deletion = np.split(probabilities, 2)
    parts = np.array([0, *counts, patches]) / patches
    areas = (np.trapezoid([a, *c, b], parts) for a, c, b in ((blurred, insertion, whole), (whole, deletion, blurred)))
    first, second = map(float, areas)
    return first, second
