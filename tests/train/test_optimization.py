import math

import pytest
import torch
from torch import nn

from deit.train.optimization import all_finite, build_average, build_optimizer, learning_rate, parameter_groups
from deit.train.recipe import Optimizer, Recipe, Schedule
from tests.train import tiny


def test_norms_biases_tokens_and_positions_have_no_weight_decay() -> None:
    model = tiny.student()
    names = {id(p): n for n, p in model.named_parameters()}
    decayed, plain = parameter_groups(model, 0.05)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    plain_names = {names[id(p)] for p in plain["params"]}
    assert {f"deit.trunk.{n}" for n in ("cls_token", "dist_token", "pos_embed", "norm.weight")} <= plain_names
    assert {names[id(p)].rsplit(".", 1)[1] for p in decayed["params"]} == {"weight"}
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def test_frozen_parameters_are_left_out() -> None:
    model = tiny.student()
    model.deit.requires_grad_(False)
    assert sum(len(g["params"]) for g in parameter_groups(model, 0.05)) == 4  # two heads, weight and bias


def test_one_step_of_the_optimizer_is_adamw_by_hand() -> None:
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, 2.0)
    nn.init.constant_(layer.bias, 3.0)
    settings = Optimizer(lr=0.1, weight_decay=0.5, betas=(0.9, 0.99), eps=1e-8)
    optimizer = build_optimizer(layer, settings, torch.device("cpu"))
    layer.weight.grad, layer.bias.grad = torch.tensor([[4.0]]), torch.tensor([-4.0])
    optimizer.step()
    # The first step of Adam is lr x sign of the gradient; decay multiplies by 1 - 0.1 x 0.5, of the weight alone.
    assert layer.weight.item() == pytest.approx(2.0 * 0.95 - 0.1, abs=1e-6)
    assert layer.bias.item() == pytest.approx(3.0 + 0.1, abs=1e-6)


RECIPE = Recipe(batch_size=1024, schedule=Schedule(epochs=300, warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-5))


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1e-6),
        (25, 1e-6 + (1e-3 - 1e-6) * 0.5),  # half of the warm-up of 5 epochs x 10 steps
        (49, 1e-6 + (1e-3 - 1e-6) * 49 / 50),
        (50, 1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * 50 / 3000))),
        (1500, 1e-5 + 0.5 * (1e-3 - 1e-5)),
        (2999, 1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * 2999 / 3000))),
    ],
)
def test_the_learning_rate_is_a_warm_up_and_a_cosine(step, expected) -> None:
    assert learning_rate(step, steps_per_epoch=10, recipe=RECIPE) == pytest.approx(expected, rel=1e-12)


def test_the_learning_rate_at_each_epoch_equals_timms_schedule() -> None:
    from timm.scheduler.cosine_lr import CosineLRScheduler

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    oracle = CosineLRScheduler(optimizer, t_initial=300, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-6)
    for epoch in range(300):
        oracle.step(epoch)
        ours = learning_rate(epoch * 7, steps_per_epoch=7, recipe=RECIPE)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)


def test_the_average_follows_its_formula() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    average = build_average(layer, 0.5)
    average.update_parameters(layer)  # the first update is a copy
    expected = 1.0
    for n, value in enumerate((2.0, 5.0, -3.0, 7.0), start=1):
        nn.init.constant_(layer.weight, value)
        average.update_parameters(layer)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-6)


def test_the_average_holds_the_buffers_of_batch_norm() -> None:
    model = tiny.TinyConvnet().train()
    average = build_average(model, 0.9)
    for _ in range(3):
        model(torch.randn(4, 3, 8, 8))
        average.update_parameters(model)
    assert average.module.norm.num_batches_tracked == 3
    assert not torch.equal(average.module.norm.running_mean, torch.zeros(4))


@pytest.mark.parametrize(("value", "finite"), [(1.0, True), (float("nan"), False), (float("inf"), False)])
def test_non_finite_numbers_are_found(value, finite) -> None:
    assert all_finite([torch.ones(3), torch.tensor([2.0, value]), torch.tensor([1])]) is finite
