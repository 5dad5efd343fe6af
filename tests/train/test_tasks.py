import copy
import math

import pytest
import torch
from torch import nn

from deit.models.deit import DeiTForImageClassification
from deit.train.recipes.sections import Distillation
from deit.train.tasks.classification import ClassificationTask
from deit.train.tasks.distillation import DistillationTask
from deit.train.teachers.teacher import Teacher
from tests.train import tiny


class FixedHeads(nn.Module):
    """A student with two heads that always says the same."""

    def __init__(self, class_logits: torch.Tensor, distillation_logits: torch.Tensor) -> None:
        super().__init__()
        self.class_logits = nn.Parameter(class_logits)
        self.distillation_logits = nn.Parameter(distillation_logits)

    def forward(self, pixels: torch.Tensor) -> object:
        from deit.models.outputs import DeiTForImageClassificationWithTeacherOutput

        return DeiTForImageClassificationWithTeacherOutput(
            logits=(self.class_logits + self.distillation_logits) / 2,
            cls_logits=self.class_logits,
            distillation_logits=self.distillation_logits,
        )


# Two images, three classes. In odds: (1, 2, 3)/6 and (1, 1, 2)/4 for the class head, and so on.
CLASS = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 2.0]]).log()
DISTILLATION = torch.tensor([[4.0, 1.0, 1.0], [1.0, 3.0, 1.0]]).log()
TEACHER = torch.tensor([[2.0, 1.0, 1.0], [1.0, 8.0, 1.0]]).log()
LABELS = torch.tensor([2, 0])
PIXELS = torch.zeros(2, 3, 4, 4)


def distillation_task(**settings: object) -> DistillationTask:
    return DistillationTask(
        FixedHeads(CLASS.clone(), DISTILLATION.clone()),
        Teacher(lambda pixels: TEACHER),
        tiny.processor(),
        distillation=Distillation(**settings),
        label_smoothing=0.0,
    )


def test_labels_alone_teach_both_heads_the_mean_of_their_cross_entropies() -> None:
    task = ClassificationTask(FixedHeads(CLASS, DISTILLATION), tiny.processor(), label_smoothing=0.0)
    class_loss = -(math.log(3 / 6) + math.log(1 / 4)) / 2
    other_loss = -(math.log(1 / 6) + math.log(1 / 5)) / 2
    assert task(PIXELS, LABELS)["loss"].item() == pytest.approx((class_loss + other_loss) / 2, rel=1e-6)


def test_label_smoothing_moves_a_tenth_of_the_mass() -> None:
    task = ClassificationTask(lambda_model(CLASS), tiny.processor(), label_smoothing=0.1)
    logs = [[math.log(v / 6) for v in (1, 2, 3)], [math.log(v / 4) for v in (1, 1, 2)]]
    expected = -(0.9 * (logs[0][2] + logs[1][0]) + 0.1 * (sum(logs[0]) + sum(logs[1])) / 3) / 2
    assert task(PIXELS, LABELS)["loss"].item() == pytest.approx(expected, rel=1e-6)


def lambda_model(logits: torch.Tensor) -> nn.Module:
    class Fixed(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return logits

    return Fixed()


def test_mixed_targets_are_not_smoothed_again() -> None:
    targets = torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]])
    task = ClassificationTask(lambda_model(CLASS), tiny.processor(), label_smoothing=0.1)
    expected = -(0.5 * math.log(1 / 6) + 0.5 * math.log(3 / 6) + math.log(1 / 4)) / 2
    assert task(PIXELS, targets)["loss"].item() == pytest.approx(expected, rel=1e-6)


def test_hard_distillation_by_hand() -> None:
    losses = distillation_task(kind="hard", weight=0.25)(PIXELS, LABELS)
    class_loss = -(math.log(3 / 6) + math.log(1 / 4)) / 2
    teacher_loss = -(math.log(4 / 6) + math.log(3 / 5)) / 2  # the teacher says class 0, then class 1
    assert losses["class_loss"].item() == pytest.approx(class_loss, rel=1e-6)
    assert losses["distillation_loss"].item() == pytest.approx(teacher_loss, rel=1e-6)
    assert losses["loss"].item() == pytest.approx(0.75 * class_loss + 0.25 * teacher_loss, rel=1e-6)


@pytest.mark.parametrize(("reduction", "count"), [("batchmean", 2), ("numel", 6)])
def test_soft_distillation_by_hand_in_both_conventions(reduction, count) -> None:
    task = distillation_task(kind="soft", weight=0.1, temperature=2.0, reduction=reduction)
    divergence = 0.0
    for teacher_odds, student_odds in (((2, 1, 1), (4, 1, 1)), ((1, 8, 1), (1, 3, 1))):
        p = [math.sqrt(v) for v in teacher_odds]  # temperature 2 takes square roots of odds
        q = [math.sqrt(v) for v in student_odds]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        divergence += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    expected = divergence * 2.0**2 / count
    assert task(PIXELS, LABELS)["distillation_loss"].item() == pytest.approx(expected, rel=1e-5)


def test_soft_distillation_equals_timms_token_distillation_loss() -> None:
    """timm's convention: batch mean, times T squared (timm/task/token_distillation.py)."""
    student, teacher, temperature = torch.randn(4, 7), torch.randn(4, 7), 3.0
    task = DistillationTask(
        FixedHeads(torch.randn(4, 7), student),
        Teacher(lambda pixels: teacher),
        tiny.processor(),
        distillation=Distillation(kind="soft", temperature=temperature),
    )
    soft = torch.softmax(teacher / temperature, 1)
    by_formula = (soft * (soft.log() - torch.log_softmax(student / temperature, 1))).sum(1).mean() * temperature**2
    result = task(torch.zeros(4, 3, 4, 4), torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(result["distillation_loss"], by_formula)


def test_a_step_leaves_the_teacher_as_it_was_and_reaches_every_parameter_of_the_student() -> None:
    convnet = tiny.TinyConvnet()
    convnet(torch.randn(8, 3, 8, 8))  # some statistics in batch norm
    task = DistillationTask(tiny.student(), Teacher(convnet), tiny.processor())
    before = copy.deepcopy(convnet.state_dict())
    optimizer = torch.optim.AdamW(task.parameters(), lr=0.1)
    task.train()
    pixels = torch.randn(4, 3, tiny.SIDE, tiny.SIDE)
    task(pixels, torch.tensor([0, 1, 2, 0]))["loss"].backward()
    without = [n for n, p in task.student.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
    optimizer.step()
    task(pixels, torch.tensor([0, 1, 2, 0]))
    assert not convnet.training
    assert all(p.grad is None and not p.requires_grad for p in convnet.parameters())
    assert all(torch.equal(before[k], v) for k, v in convnet.state_dict().items())


def test_the_teacher_is_no_part_of_the_task() -> None:
    student = tiny.student()
    task = DistillationTask(student, Teacher(tiny.TinyConvnet()), tiny.processor())
    assert len(list(task.parameters())) == len(list(student.parameters()))
    assert all(name.startswith("student.") for name in task.state_dict())


def test_the_models_own_loss_equals_the_tasks() -> None:
    student = tiny.student(distillation_kind="soft", distillation_temperature=3.0, distillation_weight=0.1).eval()
    pixels, labels = torch.randn(4, 3, tiny.SIDE, tiny.SIDE), torch.tensor([0, 1, 2, 0])
    logits = torch.randn(4, 3)
    task = DistillationTask(
        student,
        Teacher(lambda pixels: logits),
        tiny.processor(),
        distillation=Distillation(kind="soft", temperature=3.0, weight=0.1),
        label_smoothing=0.0,
    )
    torch.testing.assert_close(task(pixels, labels)["loss"], student(pixels, labels=labels, teacher_logits=logits).loss)


def test_a_student_with_one_head_cannot_be_distilled() -> None:
    config = tiny.student().config
    task = DistillationTask(DeiTForImageClassification(config), Teacher(tiny.TinyConvnet()), tiny.processor())
    with pytest.raises(ValueError, match="needs a student with a distillation head"):
        task(torch.zeros(1, 3, tiny.SIDE, tiny.SIDE), torch.tensor([0]))


def test_a_model_that_returns_no_logits_is_refused() -> None:
    task = ClassificationTask(nn.Identity(), tiny.processor())
    with pytest.raises(TypeError, match="must return logits"):
        task(PIXELS, LABELS)
