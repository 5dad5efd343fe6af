"""The score of a map: its formula by hand, what chance gives, and that it says so in words."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from deit.core.errors import UserError
from deit.explain.network import Network
from deit.explain.score import FRACTIONS, ScoredMap, blur, centered, score_maps

GRID = (4, 4)


def scored(values: Any, head: str = "both", target: int = 2) -> ScoredMap:
    return ScoredMap(head=head, target=target, values=np.asarray(values, np.float32).reshape(GRID))


@pytest.fixture
def network(model_of: Any) -> Network:
    return Network(model_of("distilled"))


def test_the_blur_is_a_gaussian_as_wide_as_a_patch():
    image = torch.randn(1, 3, 24, 20)
    expected = np.stack(
        [gaussian_filter(c, sigma=(4, 5), mode="nearest", truncate=3) for c in image[0].double().numpy()]
    )
    np.testing.assert_allclose(blur(image, (4, 5))[0], expected, atol=1e-5)
    assert blur(torch.ones(1, 1, 4, 4), (16, 16)).allclose(torch.ones(1, 1, 4, 4))


@pytest.mark.parametrize("head", ["both", "class", "distillation"])
def test_insertion_and_deletion_are_areas_under_the_probability(head, model_of, pixels):
    model = model_of("distilled")
    order = np.random.default_rng(3).permutation(16)
    values = np.empty(16)
    values[order] = np.arange(16, 0, -1)
    (found,) = score_maps(Network(model), pixels, [scored(values, head)])
    blurred, curves = blur(pixels, (4, 4)), {}
    for name, start, other in (("insertion", blurred, pixels), ("deletion", pixels, blurred)):
        points = []
        for count in [0, *(round(16 * f) for f in FRACTIONS), 16]:
            mixed = start.clone()
            for patch in order[:count]:
                rows, columns = (slice(4 * n, 4 * n + 4) for n in divmod(int(patch), 4))
                mixed[..., rows, columns] = other[..., rows, columns]
            with torch.no_grad():
                output = model(mixed)
            logits = {"both": output.logits, "class": output.cls_logits, "distillation": output.distillation_logits}
            points.append((count / 16, float(logits[head].softmax(-1)[0, 2])))
        curves[name] = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in itertools.pairwise(points))
        ends = points[0][1], points[-1][1]
    assert (found.insertion, found.deletion) == pytest.approx((curves["insertion"], curves["deletion"]), abs=1e-5)
    assert found.score == pytest.approx(curves["insertion"] - curves["deletion"], abs=1e-5)
    assert (found.probability, found.blurred_probability) == pytest.approx(ends, abs=1e-5)


def test_the_reverse_of_an_order_has_the_opposite_score(network, pixels):
    values = np.random.default_rng(0).random(16)
    one, other = score_maps(network, pixels, [scored(values), scored(-values)])
    assert one.score == pytest.approx(-other.score, abs=1e-6)
    assert one.score != 0
    assert one.random_low == -one.random_high


def test_the_scores_of_maps_do_not_depend_on_the_other_maps_and_the_seed_repeats_them(network, pixels):
    maps = [scored(np.random.default_rng(n).random(16)) for n in range(3)]
    together = score_maps(network, pixels, maps, seed=4)
    assert score_maps(network, pixels, maps[1:2], seed=4)[0] == together[1]
    assert score_maps(network, pixels, maps, seed=5)[0].random_high != together[0].random_high


class Planted(Network):
    """A model that sees one class as far as a few patches are as they were; what a map has to find."""

    def __init__(self, model: Any, pixels: torch.Tensor, patches: list[int]) -> None:
        super().__init__(model)
        self.original, self.patches = pixels, patches

    def logits(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        same = (pixels == self.original).all(1).unfold(1, 4, 4).unfold(2, 4, 4).all(-1).all(-1).flatten(1)
        seen = same[:, self.patches].float().mean(1)
        return {"both": torch.stack([4 * seen, torch.full_like(seen, 2)], 1)}


def test_a_map_that_finds_the_evidence_is_better_than_random_and_one_that_avoids_it_is_worse(model_of, pixels):
    evidence = [0, 3, 5, 12, 15]
    network = Planted(model_of("distilled"), pixels, evidence)
    values = np.isin(np.arange(16), evidence).astype(float)
    good, bad = score_maps(network, pixels, [scored(values, target=0), scored(-values, target=0)], random_orders=19)
    assert (good.verdict, bad.verdict) == ("better", "worse")
    assert good.chance == bad.chance == 1 / 40
    assert good.describe().startswith(f"Better than random: {good.score:+.3f}, 38 random orders {good.random_low:+.3f}")
    assert "better than the center of the image" in good.describe()
    assert bad.describe().startswith("Worse than random")


def test_few_maps_without_knowledge_pass_for_better_than_random(model_of, pixels):
    network = Planted(model_of("distilled"), pixels, [0, 3, 5, 12, 15])
    maps = [scored(np.random.default_rng(100 + n).random(16), target=0) for n in range(200)]
    verdicts = [found.verdict for found in score_maps(network, pixels, maps)]
    assert 0 <= verdicts.count("better") <= 0.12 * 200  # 1 of 22 on average over random orders
    assert verdicts.count("no better") >= 150


def test_a_map_without_differences_is_a_random_order(model_of, pixels):
    network = Planted(model_of("distilled"), pixels, list(range(16)))
    found = score_maps(network, pixels, [scored(np.zeros(16), target=0)])[0]
    assert (found.verdict, found.score) == ("no better", pytest.approx(0, abs=1e-6))


def test_an_image_that_the_blur_leaves_as_it_is_cannot_be_judged(network):
    found = score_maps(network, torch.full((1, 3, 16, 16), 0.7), [scored(np.arange(16))])[0]
    assert found.verdict == "unknown"
    assert found.describe().startswith("Not judged: blurring the whole image changes the probability from ")


def test_several_labels_are_scored_by_their_own_probabilities(model_of, pixels):
    model = model_of("distilled", problem_type="multi_label_classification")
    with torch.no_grad():
        expected = float(model(pixels).logits.sigmoid()[0, 2])
    assert score_maps(Network(model), pixels, [scored(np.arange(16))])[0].probability == pytest.approx(
        expected, abs=1e-5
    )


def test_an_image_of_one_patch_has_no_order(model_of):
    network = Network(model_of("vit"))
    one = ScoredMap(head="class", target=0, values=np.ones((1, 1), np.float32))
    found = score_maps(network, torch.randn(1, 3, 4, 4), [one])[0]
    assert (found.score, found.random_high, found.center) == (0, 0, 0)
    assert found.verdict in ("no better", "unknown")


def test_too_few_random_orders_are_refused(network, pixels):
    for orders in (8, 1001, -1):
        with pytest.raises(UserError, match=f"must be 9 to 1000. Received: {orders}"):
            score_maps(network, pixels, [scored(np.zeros(16))], random_orders=orders)


def test_a_centered_gaussian_is_highest_in_the_middle():
    found = centered((3, 5))
    assert np.unravel_index(found.argmax(), found.shape) == (1, 2)
    np.testing.assert_allclose(found, found[::-1, ::-1])
