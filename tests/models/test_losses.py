"""The losses against numbers worked out by hand on two images and three classes."""

from __future__ import annotations

import math
from math import exp, log

import pytest
import torch
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

from deit.models.losses import classification_loss, distillation_loss, infer_problem_type, problem_loss

LOGITS = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
TEACHER = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 1.0]], dtype=torch.float64)
LABELS = torch.tensor([2, 0])

# Logarithm of the sum of exp(logits), for each image.
STUDENT_SUMS = (log(exp(1) + exp(2) + exp(3)), log(exp(0) + exp(0) + exp(1)))


def value(loss: torch.Tensor) -> float:
    assert loss.shape == ()
    return loss.item()


def near(number: float) -> object:
    return pytest.approx(number, abs=1e-12)


# --- labels -------------------------------------------------------------------------------------------


def test_the_classification_loss_is_the_mean_over_the_images():
    expected = ((STUDENT_SUMS[0] - 3) + (STUDENT_SUMS[1] - 0)) / 2
    assert value(classification_loss(LOGITS, LABELS)) == near(expected)


def test_label_smoothing_spreads_a_share_over_all_classes():
    """0.9 on the true class and 0.1 / 3 on every class, the true one too."""
    true_class = ((STUDENT_SUMS[0] - 3) + (STUDENT_SUMS[1] - 0)) / 2
    first = (STUDENT_SUMS[0] - 1) + (STUDENT_SUMS[0] - 2) + (STUDENT_SUMS[0] - 3)
    second = (STUDENT_SUMS[1] - 0) + (STUDENT_SUMS[1] - 0) + (STUDENT_SUMS[1] - 1)
    expected = 0.9 * true_class + 0.1 / 3 * (first + second) / 2
    assert value(classification_loss(LOGITS, LABELS, label_smoothing=0.1)) == near(expected)


def test_images_without_a_label_do_not_count():
    assert value(classification_loss(LOGITS, torch.tensor([-100, 0]))) == near(STUDENT_SUMS[1])
    assert value(classification_loss(LOGITS, torch.tensor([2, -100]))) == near(STUDENT_SUMS[0] - 3)


def test_images_without_a_label_do_not_count_under_label_smoothing_either():
    every_class = (STUDENT_SUMS[1] - 0) + (STUDENT_SUMS[1] - 0) + (STUDENT_SUMS[1] - 1)
    expected = 0.9 * STUDENT_SUMS[1] + 0.1 / 3 * every_class
    assert value(classification_loss(LOGITS, torch.tensor([-100, 0]), label_smoothing=0.1)) == near(expected)


def test_a_batch_without_any_label_has_a_loss_of_zero_and_gradients_of_zero():
    logits = LOGITS.clone().requires_grad_()
    loss = classification_loss(logits, torch.tensor([-100, -100]))
    loss.backward()
    assert value(loss) == 0.0
    assert logits.grad.abs().max() == 0.0


def test_labels_may_be_probabilities_as_mixup_gives():
    mixed = torch.tensor([[0.25, 0.0, 0.75], [0.5, 0.5, 0.0]], dtype=torch.float64)
    first = 0.25 * (STUDENT_SUMS[0] - 1) + 0.75 * (STUDENT_SUMS[0] - 3)
    second = 0.5 * STUDENT_SUMS[1] + 0.5 * STUDENT_SUMS[1]
    assert value(classification_loss(LOGITS, mixed)) == near((first + second) / 2)


def test_probabilities_are_smoothed_as_well():
    certain = torch.tensor([[0.0, 0, 1], [1, 0, 0]], dtype=torch.float64)
    assert value(classification_loss(LOGITS, certain, label_smoothing=0.1)) == near(
        value(classification_loss(LOGITS, LABELS, label_smoothing=0.1))
    )


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_class_numbers_may_be_integers_of_any_width(dtype):
    assert value(classification_loss(LOGITS, LABELS.to(dtype))) == near(value(classification_loss(LOGITS, LABELS)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_timms(smoothing):
    logits, labels, mixed = random_case()
    timm_loss = LabelSmoothingCrossEntropy(smoothing) if smoothing else torch.nn.CrossEntropyLoss()
    assert value(classification_loss(logits, labels, label_smoothing=smoothing)) == near(
        value(timm_loss(logits, labels))
    )
    assert value(classification_loss(logits, mixed)) == near(value(SoftTargetCrossEntropy()(logits, mixed)))


def random_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (6, 5), class numbers (6,), and the numbers mixed with their mirror, 0.7 to 0.3."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    one_hot = torch.nn.functional.one_hot(labels, 5).double()
    return logits, labels, 0.7 * one_hot + 0.3 * one_hot.flip(0)


# --- a yes or no for each class -----------------------------------------------------------------------


def yes(logit: float) -> float:
    return log(1 + exp(-logit))


def no(logit: float) -> float:
    return log(1 + exp(logit))


def test_the_binary_loss_asks_about_each_class_and_is_the_mean_over_all_answers():
    expected = (no(1) + no(2) + yes(3) + yes(0) + no(0) + no(1)) / 6
    assert value(classification_loss(LOGITS, LABELS, loss="bce")) == near(expected)


def test_both_classes_of_a_mixed_image_count_fully_in_the_binary_loss():
    mixed = torch.tensor([[0.25, 0.0, 0.75], [0.0, 1.0, 0.0]], dtype=torch.float64)
    expected = (yes(1) + no(2) + yes(3) + no(0) + yes(0) + no(1)) / 6
    assert value(classification_loss(LOGITS, mixed, loss="bce")) == near(expected)


def test_the_binary_loss_equals_timms():
    logits, labels, mixed = random_case()
    oracle = BinaryCrossEntropy(smoothing=0.0, target_threshold=0.0)
    assert value(classification_loss(logits, labels, loss="bce")) == near(value(oracle(logits, labels)))
    assert value(classification_loss(logits, mixed, loss="bce")) == near(value(oracle(logits, mixed)))


def test_images_without_a_label_do_not_count_in_the_binary_loss():
    expected = (yes(0) + no(0) + no(1)) / 3
    assert value(classification_loss(LOGITS, torch.tensor([-100, 0]), loss="bce")) == near(expected)
    logits = LOGITS.clone().requires_grad_()
    none = classification_loss(logits, torch.tensor([-100, -100]), loss="bce")
    none.backward()
    assert value(none) == 0.0
    assert logits.grad.abs().max() == 0.0


def test_the_binary_loss_refuses_label_smoothing():
    with pytest.raises(ValueError, match=r'label_smoothing must be 0 with the loss "bce". Received: 0.1'):
        classification_loss(LOGITS, LABELS, loss="bce", label_smoothing=0.1)


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match=r"loss must be 'ce' or 'bce'. Received: 'mse'"):
        classification_loss(LOGITS, LABELS, loss="mse")


# --- teacher ------------------------------------------------------------------------------------------


def test_hard_distillation_is_the_cross_entropy_to_the_teachers_first_class():
    """The teacher ranks class 0 first for the first image and class 1 for the second."""
    expected = ((STUDENT_SUMS[0] - 1) + (STUDENT_SUMS[1] - 0)) / 2
    assert value(distillation_loss(LOGITS, TEACHER)) == near(expected)
    assert value(distillation_loss(LOGITS, TEACHER, kind="hard", temperature=5.0)) == near(expected)


def test_hard_distillation_takes_the_teachers_classes_in_place_of_its_logits():
    assert value(distillation_loss(LOGITS, TEACHER.argmax(dim=1))) == value(distillation_loss(LOGITS, TEACHER))


@pytest.mark.parametrize("wrong", [-100, -1, 3])
def test_every_class_of_the_teacher_must_exist(wrong):
    with pytest.raises(IndexError):
        distillation_loss(LOGITS, torch.tensor([0, wrong]))


def divergence(teacher: list[float], student: list[float], temperature: float) -> float:
    """Kullback-Leibler divergence of softened distributions, for one image."""
    teacher_total = sum(exp(t / temperature) for t in teacher)
    student_total = sum(exp(s / temperature) for s in student)
    total = 0.0
    for t, s in zip(teacher, student, strict=True):
        p, q = exp(t / temperature) / teacher_total, exp(s / temperature) / student_total
        total += p * (log(p) - log(q))
    return total


@pytest.mark.parametrize(("reduction", "count"), [("batchmean", 2), ("numel", 6)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_soft_distillation_is_the_divergence_times_the_square_of_the_temperature(reduction, count, temperature):
    total = divergence([2, 0, 1], [1, 2, 3], temperature) + divergence([0, 3, 1], [0, 0, 1], temperature)
    loss = distillation_loss(LOGITS, TEACHER, kind="soft", temperature=temperature, reduction=reduction)
    assert value(loss) == near(total * temperature**2 / count)
    assert value(loss) > 0.1


def test_soft_distillation_at_temperature_2_is_this_number():
    """The first image, step by step, without a function."""
    p = [exp(1.0), exp(0.0), exp(0.5)]  # teacher, logits divided by 2
    q = [exp(0.5), exp(1.0), exp(1.5)]  # student
    p_sum, q_sum = sum(p), sum(q)
    by_hand = (
        p[0] / p_sum * ((1.0 - log(p_sum)) - (0.5 - log(q_sum)))
        + p[1] / p_sum * ((0.0 - log(p_sum)) - (1.0 - log(q_sum)))
        + p[2] / p_sum * ((0.5 - log(p_sum)) - (1.5 - log(q_sum)))
    )
    loss = distillation_loss(LOGITS[:1], TEACHER[:1], kind="soft", temperature=2.0)
    assert value(loss) == near(4 * by_hand)


def test_soft_distillation_from_an_equal_teacher_is_zero():
    assert value(distillation_loss(LOGITS, LOGITS + 7, kind="soft", temperature=3.0)) == near(0.0)


def test_soft_distillation_survives_a_teacher_that_is_certain():
    """A probability of 0 times its logarithm of minus infinity counts nothing."""
    teacher = torch.tensor([[1000.0, 0.0, 0.0]], dtype=torch.float64)
    assert value(distillation_loss(LOGITS[:1], teacher, kind="soft")) == near(STUDENT_SUMS[0] - 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "warm"}, "must be 'hard' or 'soft'. Received: 'warm'"),
        ({"kind": "soft", "reduction": "mean"}, "reduction must be 'batchmean' or 'numel'. Received: 'mean'"),
        (
            {"teacher_logits": torch.zeros(2, 4)},
            r"same number of classes. Received: teacher \(2, 4\), student \(2, 3\)",
        ),
        ({"teacher_logits": torch.zeros(1, 3)}, r"Received: teacher \(1, 3\), student \(2, 3\)"),
        ({"teacher_logits": LABELS, "kind": "soft"}, "hard distillation alone. Received: 'soft'"),
        ({"teacher_logits": LABELS[:1]}, r"one class of the teacher for each image. Received: teacher \(1,\)"),
    ],
    ids=lambda v: v if isinstance(v, str) else "-".join(v),
)
def test_what_distillation_cannot_use_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        distillation_loss(**{"student_logits": LOGITS, "teacher_logits": TEACHER, **changes})


# --- problem types ------------------------------------------------------------------------------------


def test_single_label_loss_equals_the_number_worked_out_by_hand():
    expected = ((STUDENT_SUMS[0] - 3) + (STUDENT_SUMS[1] - 0)) / 2
    assert value(problem_loss(LOGITS, LABELS, "single_label_classification")) == near(expected)


def test_multi_label_loss_equals_the_number_worked_out_by_hand():
    """-log(sigmoid(x)) = log(1 + exp(-x)) for a label that is on, log(1 + exp(x)) for one that is off."""
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 1]], dtype=torch.float64)
    first = log(1 + exp(-1)) + log(1 + exp(2)) + log(1 + exp(-3))
    second = log(2) + log(2) + log(1 + exp(-1))
    assert value(problem_loss(LOGITS, labels, "multi_label_classification")) == near((first + second) / 6)


def test_regression_losses_equal_the_numbers_worked_out_by_hand():
    labels = torch.tensor([[1.0, 2, 5], [1, 0, 1]], dtype=torch.float64)
    assert value(problem_loss(LOGITS, labels, "regression")) == near((4 + 1) / 6)
    assert value(problem_loss(LOGITS[:, :1], torch.tensor([3, -1]), "regression")) == near((4 + 1) / 2)
    assert value(problem_loss(LOGITS[:, :1], torch.tensor([[3.0], [-1.0]]), "regression")) == near((4 + 1) / 2)
    assert value(problem_loss(LOGITS[:1, :1], torch.tensor([3.0]), "regression")) == near(4)


@pytest.mark.parametrize(
    ("labels", "problem_type"),
    [
        (torch.zeros(2), "multi_label_classification"),
        (torch.zeros(2, 4), "multi_label_classification"),
        (torch.zeros(2), "regression"),
        (torch.zeros(2, 1), "regression"),
        (torch.zeros(3), "regression"),
        (torch.zeros(3, dtype=torch.int64), "single_label_classification"),
    ],
    ids=lambda v: v if isinstance(v, str) else str(tuple(v.shape)),
)
def test_labels_of_a_shape_that_does_not_fit_are_refused(labels, problem_type):
    with pytest.raises(ValueError, match=r"must have the shape \(2, 3\)|batch_size \(2\) to match .* \(3\)"):
        problem_loss(LOGITS, labels, problem_type)


def test_regression_labels_of_another_number_are_refused():
    with pytest.raises(ValueError, match=r"'regression' must have the shape \(2, 1\). Received: \(3,\)"):
        problem_loss(LOGITS[:, :1], torch.zeros(3), "regression")


@pytest.mark.parametrize("wrong", [3, -1])
def test_class_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(IndexError, match=f"Target {wrong} is out of bounds"):
        problem_loss(LOGITS, torch.tensor([0, wrong]), "single_label_classification")


@pytest.mark.parametrize(
    ("labels", "num_labels", "expected"),
    [
        (torch.tensor([1, 2]), 3, "single_label_classification"),
        (torch.tensor([1, 2], dtype=torch.int32), 3, "single_label_classification"),
        (torch.zeros(2, 3), 3, "multi_label_classification"),
        (torch.zeros(2, 3, dtype=torch.float64), 3, "multi_label_classification"),
        (torch.ones(2, 3, dtype=torch.bool), 3, "multi_label_classification"),
        (torch.ones(2, 3, dtype=torch.uint8), 3, "multi_label_classification"),
        (torch.tensor([1, 2]), 1, "regression"),
        (torch.tensor([0.5, 2]), 1, "regression"),
    ],
)
def test_the_problem_type_is_inferred_from_the_labels(labels, num_labels, expected):
    assert infer_problem_type(labels, num_labels) == expected


def test_no_loss_is_nan_where_it_can_be_avoided():
    far = torch.tensor([[1e4, -1e4, 0.0]], dtype=torch.float64)
    assert math.isfinite(value(classification_loss(far, torch.tensor([1]), label_smoothing=0.1)))
    assert math.isfinite(value(distillation_loss(far, -far, kind="soft", temperature=2.0)))
