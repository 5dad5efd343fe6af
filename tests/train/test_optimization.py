import math
import re
from collections.abc import Iterator

import numpy as np
import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn

from deit.core.config.config import ViTConfig
from deit.models.vit import ViTForImageClassification
from deit.train.optimization import (
    all_finite,
    build_average,
    build_optimizer,
    gradient_norm,
    learning_rate,
    parameter_groups,
    trained_parameters,
)
from deit.train.recipes.recipe import Recipe
from deit.train.recipes.sections import Optimizer, Schedule
from deit.train.run.state import optimizer_tensors, restore_optimizer
from tests.train import tiny

CPU = torch.device("cpu")


def by_name(model: nn.Module, settings: Optimizer) -> dict[str, tuple[float, float]]:
    """Learning-rate scale and weight decay of each parameter; each is in one group."""
    names = {id(p): n for n, p in model.named_parameters()}
    table = {}
    for group in parameter_groups(model, settings):
        assert group["lr"] == pytest.approx(settings.lr * group["lr_scale"])
        for parameter in group["params"]:
            assert names[id(parameter)] not in table
            table[names[id(parameter)]] = (group["lr_scale"], group["weight_decay"])
    return table


def timm_vit(name: str = "deit_tiny_distilled_patch16_224", depth: int = 3) -> nn.Module:
    return timm.create_model(name, img_size=32, embed_dim=16, num_heads=2, depth=depth, num_classes=3)


# --- weight decay -------------------------------------------------------------------------------------


def test_norms_biases_tokens_and_positions_have_no_weight_decay() -> None:
    model = tiny.student()
    names = {id(p): n for n, p in model.named_parameters()}
    decayed, plain = parameter_groups(model, Optimizer(weight_decay=0.05))
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    assert (decayed["lr_scale"], plain["lr_scale"]) == (1.0, 1.0)
    plain_names = {names[id(p)] for p in plain["params"]}
    assert {f"deit.trunk.{n}" for n in ("cls_token", "dist_token", "pos_embed", "norm.weight")} <= plain_names
    assert {names[id(p)].rsplit(".", 1)[1] for p in decayed["params"]} == {"weight"}
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def test_the_slip_of_the_papers_code_decays_the_distillation_token_too() -> None:
    now = by_name(tiny.student(), Optimizer())
    then = by_name(tiny.student(), Optimizer(decay_distillation_token=True))
    assert {name for name in now if now[name] != then[name]} == {"deit.trunk.dist_token"}
    assert then["deit.trunk.dist_token"] == (1.0, 0.05)
    assert by_name(timm_vit(), Optimizer(decay_distillation_token=True))["dist_token"] == (1.0, 0.05)


def test_what_a_model_of_timm_wants_without_decay_has_none() -> None:
    model = timm.create_model("test_vit", num_classes=3)
    table = by_name(model, Optimizer())
    assert all(table[name][1] == 0.0 for name in model.no_weight_decay() if name in table)
    swin = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=8, depths=(1, 1), num_heads=(1, 1))
    biases = {n: d for n, (_, d) in by_name(swin, Optimizer()).items() if n.endswith("relative_position_bias_table")}
    assert set(biases.values()) == {0.0}


def test_frozen_parameters_are_left_out() -> None:
    model = tiny.student()
    model.deit.requires_grad_(False)
    heads = {"cls_classifier.weight", "cls_classifier.bias", "distillation_classifier.weight"}
    assert set(by_name(model, Optimizer())) == heads | {"distillation_classifier.bias"}
    assert len(trained_parameters(model)) == 4


def test_a_model_without_anything_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        parameter_groups(tiny.student().requires_grad_(False), Optimizer())


# --- layer decay --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224", "deit3_small_patch16_224"]
)
def test_layer_decay_equals_timms_but_for_the_final_norm(name) -> None:
    model = timm_vit(name)
    oracle = {}
    names = {id(p): n for n, p in model.named_parameters()}
    for group in param_groups_layer_decay(
        model, weight_decay=0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.75
    ):
        oracle.update({names[id(p)]: (group["lr_scale"], group["weight_decay"]) for p in group["params"]})
    ours = by_name(model, Optimizer(layer_decay=0.75))
    for norm in ("norm.weight", "norm.bias"):  # timm counts it with the last block, BEiT and we with the heads
        assert oracle.pop(norm) == (0.75, 0.0)
        assert ours.pop(norm) == (1.0, 0.0)
    assert ours == oracle


def test_layer_decay_falls_from_the_heads_to_the_embeddings() -> None:
    table = by_name(tiny.student(), Optimizer(layer_decay=0.5))  # two blocks
    scales = {name: scale for name, (scale, _) in table.items()}
    embeddings = ("cls_token", "dist_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
    assert {scales.pop(f"deit.trunk.{name}") for name in embeddings} == {0.125}
    assert {s for n, s in scales.items() if ".blocks.0." in n} == {0.25}
    assert {s for n, s in scales.items() if ".blocks.1." in n} == {0.5}
    assert {s for n, s in scales.items() if ".blocks." not in n} == {1.0}  # heads and final norm
    assert len([n for n in scales if ".blocks." not in n]) == 6


def test_layer_decay_knows_a_vit() -> None:
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8,
        encoder_stride=8,
    )  # fmt: skip
    table = by_name(ViTForImageClassification(config), Optimizer(layer_decay=0.5))
    assert table["vit.trunk.cls_token"] == (0.125, 0.0)
    assert table["classifier.weight"] == (1.0, 0.05)


def test_layer_decay_divides_a_convnet_of_timm_as_timm_does() -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    ours = by_name(model, Optimizer(layer_decay=0.5))
    assert {n: s for n, (s, _) in ours.items()} == {n: 0.5 ** (max(layers.values()) - layers[n]) for n in ours}
    assert len({s for s, _ in ours.values()}) > 3


def test_layer_decay_of_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one row of blocks. Received: TinyConvnet, layer_decay 0.5. Set"):
        parameter_groups(tiny.TinyConvnet(), Optimizer(layer_decay=0.5))
    assert len(parameter_groups(tiny.TinyConvnet(), Optimizer())) == 2


# --- optimizers ---------------------------------------------------------------------------------------


def one_step(settings: Optimizer) -> tuple[list[float], float]:
    """Weights (3, 4) with gradients (0.6, 0.8) and bias 3 with gradient -2, after one step."""
    layer = nn.Linear(2, 1)
    nn.init.constant_(layer.bias, 3.0)
    layer.weight.data = torch.tensor([[3.0, 4.0]])
    optimizer = build_optimizer(layer, settings, CPU)
    layer.weight.grad, layer.bias.grad = torch.tensor([[0.6, 0.8]]), torch.tensor([-2.0])
    optimizer.step()
    return layer.weight.flatten().tolist(), layer.bias.item()


def test_one_step_of_adamw_is_this() -> None:
    weight, bias = one_step(Optimizer(lr=0.1, weight_decay=0.5, betas=(0.9, 0.99), eps=1e-8))
    # The first step of Adam is lr x sign of the gradient; decay multiplies by 1 - 0.1 x 0.5, of the weight alone.
    assert weight == pytest.approx([3 * 0.95 - 0.1, 4 * 0.95 - 0.1], abs=1e-6)
    assert bias == pytest.approx(3.0 + 0.1, abs=1e-6)


def test_one_step_of_lamb_is_this() -> None:
    weight, bias = one_step(Optimizer(name="lamb", lr=0.1, weight_decay=0.5, betas=(0.9, 0.99), eps=1e-8))
    # With bias correction the first average quotient is the sign of the gradient. Decay adds 0.5 x weight: (2.5, 3).
    # The trust ratio is the weight's length, 5, over that of this update. The bias has neither.
    ratio = 5 / math.hypot(2.5, 3.0)
    assert weight == pytest.approx([3 - 0.1 * ratio * 2.5, 4 - 0.1 * ratio * 3.0], abs=1e-5)
    assert bias == pytest.approx(3.1, abs=1e-5)


def test_lamb_does_not_clip_by_itself() -> None:
    """Eps large against the gradient makes its length visible, which the sign would hide."""
    _, bias = one_step(Optimizer(name="lamb", lr=0.1, weight_decay=0.0, eps=10.0))
    assert bias == pytest.approx(3 + 0.1 * 2 / (2 + 10), abs=1e-5)


def test_lamb_with_the_gradient_clipped_to_one_is_timms_lamb_with_its_defaults() -> None:
    """Which are those of apex's FusedLAMB, the optimizer of DeiT III."""
    ours, theirs = tiny.student(), tiny.student()
    optimizer = build_optimizer(ours, Optimizer(name="lamb", lr=0.01, eps=1e-6), CPU)
    groups = [{k: g[k] for k in ("params", "weight_decay")} for g in parameter_groups(theirs, Optimizer())]
    oracle = timm.optim.Lamb(groups, lr=0.01)
    for gradients in gradients_of(ours, steps=3):
        for parameter, twin, gradient in zip(ours.parameters(), theirs.parameters(), gradients, strict=True):
            parameter.grad, twin.grad = gradient.clone(), gradient.clone()
        nn.utils.clip_grad_norm_(ours.parameters(), 1.0)
        optimizer.step()
        oracle.step()
    for parameter, twin in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter, twin, rtol=1e-4, atol=1e-5)


def test_two_steps_of_sgd_are_these() -> None:
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, 2.0)
    nn.init.constant_(layer.bias, 3.0)
    optimizer = build_optimizer(layer, Optimizer(name="sgd", lr=0.1, weight_decay=0.5, momentum=0.9), CPU)
    weight, bias, weight_speed, bias_speed = 2.0, 3.0, 0.0, 0.0
    for _ in range(2):
        layer.weight.grad, layer.bias.grad = torch.tensor([[4.0]]), torch.tensor([-4.0])
        optimizer.step()
        pull = 4.0 + 0.5 * weight  # weight decay is part of the gradient
        weight_speed, bias_speed = 0.9 * weight_speed + pull, 0.9 * bias_speed - 4.0
        weight -= 0.1 * (pull + 0.9 * weight_speed)  # Nesterov: one look ahead
        bias -= 0.1 * (-4.0 + 0.9 * bias_speed)
    assert layer.weight.item() == pytest.approx(weight, abs=1e-5)
    assert layer.bias.item() == pytest.approx(bias, abs=1e-5)


def test_sgd_works_without_momentum() -> None:
    _, bias = one_step(Optimizer(name="sgd", lr=0.1, momentum=0.0))
    assert bias == pytest.approx(3.2, abs=1e-6)


def orthogonalized(matrix: np.ndarray) -> np.ndarray:
    """Five Newton-Schulz steps with the coefficients of Jordan's Muon, in float64."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def test_two_steps_of_muon_are_these_and_the_rest_is_adamws() -> None:
    """PyTorch orthogonalizes in bf16, so its matrices agree to about 1 %."""
    lr, decay = 0.01, 0.5
    model, twin = tiny.student(), tiny.student()
    optimizer = build_optimizer(model, Optimizer(name="muon", lr=lr, weight_decay=decay), CPU)
    oracle = build_optimizer(twin, Optimizer(lr=lr, weight_decay=decay), CPU)
    weights = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    momenta = {name: np.zeros_like(weight) for name, weight in weights.items()}
    by_muon = [name for name in weights if re.search(r"blocks\.\d+\..*weight$", name) and weights[name].ndim == 2]
    assert len(by_muon) == 2 * 4  # qkv, proj, fc1 and fc2 of two blocks
    for gradients in gradients_of(model, steps=2):
        for (name, p), other, gradient in zip(model.named_parameters(), twin.parameters(), gradients, strict=True):
            p.grad, other.grad = gradient.clone(), gradient.clone()
            momenta[name] = 0.95 * momenta[name] + 0.05 * gradient.double().numpy()
            ahead = 0.95 * momenta[name] + 0.05 * gradient.double().numpy()  # Nesterov
            if name in by_muon:
                rate = lr * 0.2 * math.sqrt(max(gradient.shape))
                weights[name] = weights[name] * (1 - lr * decay) - rate * orthogonalized(ahead)
        optimizer.step()
        oracle.step()
    for (name, p), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        if name in by_muon:
            np.testing.assert_allclose(p.detach(), weights[name], atol=2 * 0.02 * lr)
            assert (p - other).abs().max() > 1e-3
        else:
            assert torch.equal(p, other)


def test_muon_needs_blocks() -> None:
    with pytest.raises(ValueError, match=r"muon needs a model with blocks of weight matrices.*Received: Linear"):
        build_optimizer(nn.Linear(2, 2), Optimizer(name="muon"), CPU)


def gradients_of(model: nn.Module, steps: int, seed: int = 0) -> Iterator[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield [torch.randn(p.shape, generator=generator) for p in model.parameters()]


@pytest.mark.parametrize(
    "settings",
    [
        Optimizer(lr=0.01),
        Optimizer(lr=0.01, name="lamb"),
        Optimizer(lr=0.01, name="sgd"),
        Optimizer(lr=0.01, name="sgd", momentum=0.0),
        Optimizer(lr=0.01, name="lamb", layer_decay=0.5),
        Optimizer(lr=0.01, name="muon", layer_decay=0.5),
    ],
    ids=lambda s: f"{s.name}-{s.momentum}-{s.layer_decay}",
)
def test_an_optimizer_goes_on_from_its_tensors_as_if_never_stopped(settings) -> None:
    def take(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> None:
        for gradients in gradients_of(model, steps, seed):
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()

    first = tiny.student()
    optimizer = build_optimizer(first, settings, CPU)
    take(first, optimizer, 3, seed=1)
    tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()}
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
    second = tiny.student()
    second.load_state_dict(first.state_dict())
    take(first, optimizer, 2, seed=2)
    resumed = build_optimizer(second, settings, CPU)
    restore_optimizer(resumed, tensors)
    take(second, resumed, 2, seed=2)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [g["lr_scale"] for g in resumed.param_groups] == [g["lr_scale"] for g in optimizer.param_groups]


# --- learning rate ------------------------------------------------------------------------------------


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


def rates_of_timm(recipe: Recipe) -> list[float]:
    """What timm's schedule gives after step(e), for each epoch e; before any step it is the start of the warm-up."""
    schedule = recipe.schedule
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=5e-4 * recipe.batch_size / 512)
    oracle = CosineLRScheduler(
        optimizer, t_initial=schedule.epochs, lr_min=1e-5, warmup_t=schedule.warmup_epochs, warmup_lr_init=1e-6
    )
    rates = [optimizer.param_groups[0]["lr"]]
    for epoch in range(schedule.epochs):
        oracle.step(epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_a_warm_up_may_be_a_part_of_an_epoch() -> None:
    recipe = Recipe().with_settings({"schedule.epochs": 2, "schedule.warmup_epochs": "0.2"})
    rates = [learning_rate(step, steps_per_epoch=100, recipe=recipe) for step in range(21)]
    peak = recipe.learning_rate()
    assert rates[:20] == pytest.approx(np.linspace(1e-6, peak, 21)[:20])
    assert rates[20] == pytest.approx(1e-5 + (peak - 1e-5) * (1 + math.cos(math.pi * 0.1)) / 2)


@pytest.mark.parametrize("batch_size", [1024, 256])
@pytest.mark.parametrize("updates", ["step", "epoch", "original"])
@pytest.mark.parametrize("warmup_epochs", [5, 0])
def test_the_learning_rate_of_all_300_epochs_equals_timms_schedule(batch_size, updates, warmup_epochs) -> None:
    recipe = Recipe(batch_size=batch_size, schedule=Schedule(updates=updates, warmup_epochs=warmup_epochs))
    rates = rates_of_timm(recipe)
    # The paper's code calls step(e) after epoch e, so it trains with what the call before gave.
    oracle = rates[:300] if updates == "original" else rates[1:]
    for epoch in range(300):
        first, last = (learning_rate(epoch * 7 + i, steps_per_epoch=7, recipe=recipe) for i in (0, 6))
        assert first == pytest.approx(oracle[epoch], rel=1e-9)
        assert (last == first) is (updates != "step")


def test_the_papers_code_trains_two_epochs_at_the_start_of_the_warm_up() -> None:
    recipe = Recipe(batch_size=1024, schedule=Schedule(updates="original"))
    rates = [learning_rate(epoch * 10, steps_per_epoch=10, recipe=recipe) for epoch in range(8)]
    assert rates[:2] == [1e-6, 1e-6]
    assert rates[2] == pytest.approx(1e-6 + (1e-3 - 1e-6) / 5)
    assert max(rates) == rates[6] < 1e-3


# --- running average ----------------------------------------------------------------------------------


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


def test_large_numbers_whose_squares_overflow_are_finite_as_weights_and_not_as_gradients() -> None:
    large = nn.Parameter(torch.tensor([1e30, -3e38]))
    assert all_finite([large, torch.empty(0)])
    for most in (0.0, 1.0):
        large.grad = torch.tensor([1e30, 1.0])
        assert not torch.isfinite(gradient_norm([large], most))
        large.grad = torch.tensor([3.0, 4.0])
        assert gradient_norm([large, nn.Parameter(torch.ones(1))], most) == 5.0
