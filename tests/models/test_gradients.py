"""Backward passes written by hand: the same numbers and gradients as PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deit.models.trunk import cpu_kernels
from deit.models.trunk.cpu_kernels import attend_of_few, backward_by_hand, can_attend
from deit.models.trunk.gradients import attend_by_hand
from deit.models.trunk.vision_transformer import VisionTransformer


def projection(dtype: torch.dtype = torch.float32, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 7, 3, 2, 8, generator=generator).to(dtype).requires_grad_()


def reference(qkv: Tensor) -> Tensor:
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_attention_and_its_gradient_are_those_of_pytorch(batch):
    qkv, weights = projection(batch=batch), torch.randn(batch, 7, 16)
    for function in (attend_by_hand, reference):
        function(qkv)  # may be called without a backward pass
    torch.testing.assert_close(attend_by_hand(qkv), reference(qkv))
    (expected,) = torch.autograd.grad(reference(qkv), qkv, weights)
    (received,) = torch.autograd.grad(attend_by_hand(qkv), qkv, weights)
    torch.testing.assert_close(received, expected)


def test_attention_in_bfloat16_stays_within_its_rounding():
    qkv, weights = projection(torch.bfloat16), torch.randn(3, 7, 16)
    exact = qkv.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(reference(exact), exact, weights.double())
    (received,) = torch.autograd.grad(attend_by_hand(qkv), qkv, weights.bfloat16())
    assert received.dtype == torch.bfloat16
    assert (received - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize(
    ("dtype", "autocast", "bound"),
    [(torch.float32, False, 1e-6), (torch.bfloat16, False, 0.02), (torch.bfloat16, True, 0.02)],
)
def test_attention_of_few_queries_and_its_gradients_are_those_of_pytorch_in_double(dtype, autocast, bound):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 2, 2, 8), (3, 2, 7, 8), (3, 2, 7, 8)]
    inputs = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    weights = torch.randn(shapes[0], generator=generator).to(dtype)
    exact = [each.detach().double().requires_grad_() for each in inputs]
    expected = F.scaled_dot_product_attention(*exact)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        received = attend_of_few(*inputs)
    assert received.dtype == dtype
    assert (received - expected).norm() < bound * expected.norm()
    theirs = torch.autograd.grad(expected, exact, weights.double())
    for ours, gradient in zip(torch.autograd.grad(received, inputs, weights), theirs, strict=True):
        assert (ours - gradient).norm() < bound * gradient.norm()


def test_a_gradient_of_the_gradient_can_be_taken():
    qkv = projection()
    penalties = []
    for function in (attend_by_hand, reference_in_steps):
        (gradient,) = torch.autograd.grad(function(qkv).square().sum(), qkv, create_graph=True)
        penalties.append(torch.autograd.grad(gradient.square().sum(), qkv)[0])
    torch.testing.assert_close(*penalties, rtol=1e-4, atol=1e-4)


def reference_in_steps(qkv: Tensor) -> Tensor:
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    scores = query @ key.transpose(2, 3) / 8**0.5
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def test_it_is_used_in_training_and_left_to_pytorch_everywhere_else(monkeypatch):
    qkv = projection()
    assert can_attend(qkv)
    assert not can_attend(qkv.half())
    assert not can_attend(qkv.double())
    with torch.no_grad():
        assert not can_attend(qkv)
    assert not can_attend(qkv.to("meta"))
    assert torch.equal(torch.func.vmap(lambda x: x * backward_by_hand(x))(qkv), torch.zeros_like(qkv))
    monkeypatch.setattr(cpu_kernels, "MAX_TOKENS", 6)
    assert not can_attend(qkv)


def test_gradients_under_a_function_transform_are_the_same(tiny_config, redraw):
    model = redraw(VisionTransformer(tiny_config()))
    parameters = dict(model.named_parameters())
    pixels = torch.randn(2, 3, 16, 16)

    def total(values):
        return torch.func.functional_call(model, values, (pixels,)).tokens.square().sum()

    transformed = torch.func.grad(total)(parameters)
    total(parameters).backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad, transformed[name], rtol=1e-3, atol=1e-3)
