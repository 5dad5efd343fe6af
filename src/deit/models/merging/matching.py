"""Bipartite soft matching: which tokens are merged into which, and the merging itself (section 3 and appendix D).

Everything is made of gathers of rows, comparisons and small matrix products, so it has static shapes, can be exported,
and gives the same numbers in every run, on a GPU too: no atomic sums.

Letters in shape comments: B batch, N tokens before merging, M = N - r tokens after it, r merged tokens, D embedding
dimension, H heads, d = D / H, P patch tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deit.runtime.devices import Placement


def most_merged(r: int, patches: int) -> int:
    """Returns how many of the patch tokens are merged where r are asked for: at most half of them."""
    return min(r, patches // 2)


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Which tokens are merged.

    Attributes:
        order: (B, N), numbers of the tokens: first the M that stay, in their order, then the r that are merged.
        targets: (B, r, M), 1 where a merged token goes, else 0.
    """

    order: Tensor
    targets: Tensor


def match(keys: Tensor, prefix: int, r: int) -> Matching:
    """Chooses tokens by the similarity of their keys.

    The patch tokens are divided into two sets, alternately. Each token of the first set gets an edge to the most
    similar one of the second set: the cosine of their keys, which are averaged over the heads. The tokens of the r
    edges with the highest similarity are merged. No gradient flows through the choice.

    Args:
        keys: (B, N, H, d).
        prefix: Number of first tokens that are never merged: class and distillation token.
        r: Number of tokens to merge, at most half of the patch tokens.
    """
    count = keys.shape[1]
    kept = count - r
    scores = _similarities(keys[:, prefix:].detach())
    similarity, partner = scores.max(dim=2)  # (B, P / 2)
    numbers = torch.arange(count, device=keys.device)
    first = numbers[prefix::2]
    # Removed tokens get numbers behind all others. All are different, so every program sorts them in the same way.
    moved = first + count * (_ranks(similarity) < r)
    others = torch.cat((numbers[:prefix], numbers[prefix + 1 :: 2])).expand(keys.shape[0], -1)
    order = torch.cat((others, moved), dim=1).sort(dim=1).values % count
    sources = (order[:, kept:] - prefix) // 2  # (B, r), in the order of the tokens
    targets = prefix + 1 + 2 * partner.gather(1, sources)
    return Matching(order=order, targets=(order[:, None, :kept] == targets[:, :, None]).float())


def _similarities(keys: Tensor) -> Tensor:
    """Returns the cosines (B, P / 2 rounded up, P / 2 rounded down) of keys (B, P, H, d), in float32 always."""
    with Placement(keys.device).autocast():  # that is, without
        metric = F.normalize(keys.float().sum(dim=2), dim=-1)  # the sum has the direction of the mean
        return metric[:, 0::2] @ metric[:, 1::2].transpose(1, 2)


def _ranks(values: Tensor) -> Tensor:
    """Returns how many values of a row (B, K) come before each one: the larger ones, and equal ones further left.

    Sorting would leave the order of equal values to the library that does it.
    """
    numbers = torch.arange(values.shape[1], device=values.device)
    other, own = values[:, None], values[:, :, None]
    before = (other > own) | ((other == own) & (numbers < numbers[:, None]))
    return before.sum(dim=2)


def merge(x: Tensor, sizes: Tensor | None, matching: Matching) -> tuple[Tensor, Tensor]:
    """Replaces tokens that are merged by their mean, weighted by the number of patches that each stands for.

    Args:
        x: (B, N, D).
        sizes: (B, N), how many patches each token stands for; None for one each.
        matching: Result of `match`.

    Returns:
        The tokens (B, M, D) and their sizes (B, M).
    """
    order, targets = matching.order, matching.targets
    merged = targets.shape[1]
    rows = take_rows(x, order)
    kept, sources = rows[:, :-merged], rows[:, -merged:]
    old = x.new_ones(order.shape, dtype=torch.float32) if sizes is None else sizes.gather(1, order)
    into = targets * old[:, -merged:, None]  # (B, r, M), the sizes of the merged tokens
    new = old[:, :-merged] + into.sum(dim=1)
    # The mean, as a change of the few tokens that others are merged into: x_j + sum of s_i (x_i - x_j) / s_j.
    weights, choice = (into / new[:, None]).to(x.dtype), targets.to(x.dtype)
    with Placement(x.device).autocast():  # none: tokens keep their type, as in every sum of a block
        return torch.baddbmm(kept, weights.transpose(1, 2), sources - choice @ kept), new


def take_rows(x: Tensor, numbers: Tensor) -> Tensor:
    """Returns rows (B, K, D) of x (B, N, D) by their numbers (B, K)."""
    batch, count, width = x.shape
    first = count * torch.arange(batch, device=x.device)[:, None]
    return x.reshape(-1, width).index_select(0, (numbers + first).flatten()).view(batch, -1, width)


def follow(origins: Tensor | None, matching: Matching) -> Tensor:
    """Returns for each first token the number of the one that holds it after a merging, (B, tokens at first).

    Args:
        origins: The result for the mergings before; None at the first.
        matching: Result of `match`.
    """
    order, targets = matching.order, matching.targets
    kept = targets.shape[2]
    place = order.argsort(dim=1)  # (B, N), at least M for a merged token
    stays = torch.arange(kept, device=order.device).expand(order.shape[0], -1)
    place = torch.cat((stays, targets.argmax(dim=2)), dim=1).gather(1, place)
    return place if origins is None else place.gather(1, origins)
