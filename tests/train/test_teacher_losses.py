"""Standardized logits, WTTM and DIST against the papers' formulas in numpy, with slopes by finite differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

from deit.core.config.config import DeiTConfig
from deit.models.losses import distillation_loss
from deit.train.loop import fit
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.sections import Distillation
from deit.train.tasks.teacher_losses import teacher_loss
from tests.train import tiny
from tests.train.test_teacher_cache import recipe, same, task, teacher, weights

Array = npt.NDArray[np.float64]

DRAWN = np.random.default_rng(0)
STUDENT, TEACHER = DRAWN.normal(0, 1.5, (5, 4)), DRAWN.normal(1, 3, (5, 4))
KINDS = ("standardized", "wttm", "dist")


def softmax(logits: Array) -> Array:
    powers = np.exp(logits)
    return powers / powers.sum(1, keepdims=True)


def standardized(student: Array, teacher: Array, t: float) -> float:
    """Equations 10 to 12 of the paper; deviations with K - 1, as in the authors' code."""
    z, v = ((x - x.mean(1, keepdims=True)) / x.std(1, ddof=1, keepdims=True) for x in (student, teacher))
    q, p = softmax(z / t), softmax(v / t)
    return float(t * t * (p * np.log(p / q)).sum(1).mean())


def wttm(student: Array, teacher: Array, t: float) -> float:
    powers = softmax(teacher) ** (1 / t)
    total = powers.sum(1)
    transformed, q = powers / total[:, None], softmax(student)
    return float((total * (transformed * np.log(transformed / q)).sum(1)).mean())


def dist(student: Array, teacher: Array, t: float, intra: float = 1.0) -> float:
    q, p = softmax(student / t), softmax(teacher / t)
    images = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)]
    classes = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)]
    return float(t * t * (np.mean(images) + intra * np.mean(classes)))


FORMULAS: dict[str, Callable[..., float]] = {"standardized": standardized, "wttm": wttm, "dist": dist}


def ours(kind: str, student: Array, teacher: Array, **settings: float) -> torch.Tensor:
    return teacher_loss(torch.tensor(student), torch.tensor(teacher), Distillation(kind=kind, **settings))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("kind", KINDS)
def test_each_loss_is_the_formula_of_its_paper(kind, temperature) -> None:
    loss = ours(kind, STUDENT, TEACHER, temperature=temperature)
    assert loss.item() == pytest.approx(FORMULAS[kind](STUDENT, TEACHER, temperature), rel=1e-6)
    assert loss.item() > 0.05


def test_the_weight_of_the_part_over_images_is_a_setting() -> None:
    for weight in (0.0, 0.5, 3.0):
        loss = ours("dist", STUDENT, TEACHER, intra_weight=weight)
        assert loss.item() == pytest.approx(dist(STUDENT, TEACHER, 1.0, weight), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_slopes_are_those_of_the_formula(kind) -> None:
    temperature, step = 2.0, 1e-5
    slopes = np.zeros_like(STUDENT)
    for place in np.ndindex(STUDENT.shape):
        shift = np.zeros_like(STUDENT)
        shift[place] = step
        ends = [FORMULAS[kind](STUDENT + sign * shift, TEACHER, temperature) for sign in (1, -1)]
        slopes[place] = (ends[0] - ends[1]) / (2 * step)
    student = torch.tensor(STUDENT, requires_grad=True)
    teacher_loss(student, torch.tensor(TEACHER), Distillation(kind=kind, temperature=temperature)).backward()
    np.testing.assert_allclose(student.grad, slopes, atol=1e-6 * abs(slopes).max())
    assert abs(slopes).max() > 1e-3


def test_the_slope_of_wttm_is_the_weighted_difference_of_probabilities() -> None:
    """Of the paper's text: the student is not softened, so no 1/T stands before it."""
    student = torch.tensor(STUDENT, requires_grad=True)
    teacher_loss(student, torch.tensor(TEACHER), Distillation(kind="wttm", temperature=5.0)).backward()
    powers = softmax(TEACHER) ** 0.2
    total = powers.sum(1, keepdims=True)
    np.testing.assert_allclose(student.grad, total * (softmax(STUDENT) - powers / total) / 5, atol=1e-12)


def test_wttm_at_temperature_1_is_soft_distillation() -> None:
    soft = distillation_loss(torch.tensor(STUDENT), torch.tensor(TEACHER), kind="soft", temperature=1.0)
    assert ours("wttm", STUDENT, TEACHER, temperature=1.0).item() == pytest.approx(soft.item(), rel=1e-12)


def test_standardized_logits_need_not_have_the_teachers_size() -> None:
    assert ours("standardized", STUDENT, 5 * STUDENT + 3).item() == pytest.approx(0, abs=1e-12)
    assert ours("dist", STUDENT, STUDENT + 3).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("student", "told"), [(0.0, 0.0), (0.0, 1e4), (1e4, -1e4)])
def test_constant_and_extreme_logits_have_finite_losses_and_slopes(kind, student, told) -> None:
    """All logits of an image are equal where a head is zero."""
    logits = torch.zeros(2, 3)
    logits[:, 0] = student
    logits.requires_grad_()
    answers = torch.zeros(2, 3)
    answers[:, 0] = told
    loss = teacher_loss(logits, answers, Distillation(kind=kind))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_students_loss_falls_to_that_of_an_equal_teacher(kind) -> None:
    student = torch.tensor(0.1 * STUDENT, requires_grad=True)
    optimizer = torch.optim.Adam([student], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        loss = teacher_loss(student, torch.tensor(TEACHER), Distillation(kind=kind, temperature=1.0))
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_answer_for_a_kind_is_refused(kind) -> None:
    with pytest.raises(ValueError, match=f"hard distillation alone. Received: '{kind}'"):
        teacher_loss(torch.zeros(2, 3), torch.tensor([0, 1]), Distillation(kind=kind))
    with pytest.raises(ValueError, match="same number of classes"):
        teacher_loss(torch.zeros(2, 3), torch.zeros(2, 4), Distillation(kind=kind))
    with pytest.raises(ValueError, match=rf"must be 'hard' or 'soft'. Received: '{kind}'.*PyTorch trainings"):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 3), kind=kind)
    with pytest.raises(ValueError, match="distillation_kind"):
        DeiTConfig(distillation_kind=kind)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"reduction must be 'batchmean' with distillation.kind=wttm. Received: numel"):
        Distillation(kind="wttm", reduction="numel")
    with pytest.raises(ValueError, match=r"intra_weight must be at least 0. Received: -1"):
        Distillation(intra_weight=-1.0)
    with pytest.raises(ValueError, match=r"accumulate must be 1, or distillation.intra_weight 0. Received: accumulate"):
        Recipe(accumulate=2, distillation=Distillation(kind="dist"))
    assert Recipe(accumulate=2, distillation=Distillation(kind="dist", intra_weight=0.0)).accumulate == 2


def test_the_numbers_of_a_kind_are_its_papers() -> None:
    chosen = {kind: Distillation(kind=kind) for kind in KINDS}
    assert {kind: (one.temperature, one.weight) for kind, one in chosen.items()} == {
        "standardized": (2.0, 0.99), "wttm": (5.0, 0.8), "dist": (1.0, 0.67)
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_cached_run_equals_the_one_that_asks_and_logits_are_kept_whole(tmp_path, kind) -> None:
    distillation = Distillation(kind=kind, cache_top_k=2 if kind != "wttm" else 100)
    settings, cache = recipe(distillation), tmp_path / "cache"
    for name, teach in (("recorded", teacher()), ("read", None)):
        fit(task(distillation, teach), tiny.data(), settings, out=tmp_path / name, device="cpu", teacher_cache=cache)
    fit(task(distillation, teacher()), tiny.data(), settings, out=tmp_path / "asked", device="cpu")
    assert same(weights(tmp_path / "read"), weights(tmp_path / "asked"))
    assert (cache / "records.bin").stat().st_size == 9 * 4 * (8 + 12)


def test_kinds_that_record_the_same_share_a_cache_and_others_are_refused(tmp_path) -> None:
    def train(kind: str, **settings: float) -> None:
        its = Distillation(kind=kind, **settings)
        fit(task(its, teacher()), tiny.data(), recipe(its), out=tmp_path / kind, device="cpu",
            teacher_cache=tmp_path / "cache")  # fmt: skip

    train("standardized")
    train("dist")
    with pytest.raises(ValueError, match='kind "logits", now "soft"'):
        train("soft")


def test_every_kind_has_a_loss_and_a_record_of_its_own_in_a_cache():
    from deit.core.config.following_defaults import TEACHER_LOSSES
    from deit.train.teachers.cache import _RECORDED

    assert set(_RECORDED) == set(TEACHER_LOSSES)
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    values = [float(teacher_loss(student, teacher, Distillation(kind=kind))) for kind in TEACHER_LOSSES]
    assert len(set(values)) == len(TEACHER_LOSSES)
