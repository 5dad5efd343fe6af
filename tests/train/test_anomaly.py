"""The module in which the first number arose that is not finite, forward or backward."""

import math

import pytest
import torch
from torch import nn

from deit.train.loop import fit
from deit.train.numerics.anomaly import AnomalyWatch
from deit.train.run.ending import NonFiniteLossError
from deit.train.tasks.classification import ClassificationTask
from tests.train import poisoned, tiny


class Broken(torch.autograd.Function):
    """The identity, with a factor forward and one backward."""

    @staticmethod
    def forward(ctx, x, forward, backward):
        ctx.backward = backward
        return x * forward

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.backward, None, None


class Odd(nn.Module):
    def __init__(self, forward: float = 1.0, backward: float = 1.0) -> None:
        super().__init__()
        self.factors = forward, backward

    def forward(self, x):
        return Broken.apply(x, *self.factors)


class Student(nn.Module):
    def __init__(self, odd: nn.Module) -> None:
        super().__init__()
        self.first, self.inner = nn.Linear(4, 5), nn.Sequential(nn.ReLU(inplace=True), odd)
        self.last = nn.Linear(5, 3)

    def forward(self, x):
        return {"logits": self.last(self.inner(self.first(x)) + 1)}


def found(student: nn.Module, pixels=None, slope: float = 1.0) -> str:
    pixels = torch.ones(2, 4) if pixels is None else pixels
    watch = AnomalyWatch(student)
    watch.begin(pixels)
    (Broken.apply(student(pixels)["logits"], 1.0, slope)).sum().backward()
    return watch.found


def with_bad_weight() -> Student:
    student = Student(Odd())
    with torch.no_grad():
        student.last.weight[0, 0] = math.inf
    return student


@pytest.mark.parametrize(
    ("student", "options", "place"),
    [
        (Student(Odd()), {}, ""),
        (Student(Odd(forward=math.nan)), {}, "the forward pass of inner.1 (Odd), in 10 of 10 numbers"),
        (Student(Odd(backward=math.inf)), {}, "the backward pass of inner.1 (Odd), in "),
        (with_bad_weight(), {}, "the forward pass of last (Linear), whose weight is not finite, in 2 of 6 numbers"),
        (
            Student(Odd()), {"pixels": torch.full((2, 4), math.nan)},
            "the images of the batch, before the student, in 8 of 8 numbers",
        ),
        (Student(Odd()), {"slope": math.nan}, "the backward pass, in what uses the output of "),
    ],
    ids=["healthy", "forward", "backward", "weight", "images", "loss"],
)  # fmt: skip
def test_the_module_is_named(student, options, place) -> None:
    torch.manual_seed(0)
    assert found(student, **options).startswith(place)
    assert bool(found(student, **options)) == bool(place)


def test_watching_changes_nothing_but_the_kernels(tmp_path) -> None:
    """Modules with hooks are not computed by the fast kernels for CPUs, so the last bits differ."""
    plain, watched = (poisoned.run([], tmp_path / str(on), detect_anomaly=on, ema_decay=0.9) for on in (False, True))
    one, two = plain.student.state_dict(), watched.student.state_dict()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("precision", "accumulate"), [("fp32", 1), ("bf16", 1), ("fp32", 2)])
def test_a_run_ends_at_the_first_one_and_names_it_in_one_line(tmp_path, precision, accumulate) -> None:
    student = tiny.student()
    with torch.no_grad():
        student.deit.trunk.blocks[1].mlp.fc2.bias[3] = math.nan
    task = ClassificationTask(student, tiny.processor())
    recipe = poisoned.recipe(precision=precision, accumulate=accumulate)
    with pytest.raises(NonFiniteLossError) as caught:
        fit(task, tiny.data(), recipe, out=tmp_path / "run", device="cpu", detect_anomaly=True)
    text = str(caught.value)
    assert "arose in the forward pass of deit.trunk.blocks.1.mlp.fc2 (Linear), whose bias is not finite, in " in text
    assert ", at step 1 (learning rate" in text
    assert "\n" not in text
    assert "--detect-anomaly" not in text
