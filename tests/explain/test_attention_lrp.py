"""AttnLRP: each rule against its formula, what relevance is conserved, and numbers of its authors' package."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import deit
from deit.explain.attention_lrp import GammaRule, HalfRule, IdentityRule, attention_lrp, lrp_arithmetic
from deit.explain.maps import explain_image
from deit.explain.network import Network


def relevance_of(x: torch.Tensor, y: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
    """Returns what a rule hands to x of the relevance of y: both are their changed gradients times their values."""
    (gradient,) = torch.autograd.grad(y, x, relevance / y)
    return x.detach() * gradient


def test_an_activation_hands_its_relevance_to_its_input_as_it_is():
    x = torch.randn(7, 5).requires_grad_()
    for function in (F.gelu, F.silu, torch.tanh):
        relevance = torch.randn(7, 5)
        y = IdentityRule.apply(x, function)
        torch.testing.assert_close(y, function(x))
        torch.testing.assert_close(relevance_of(x, y, relevance), relevance, atol=1e-5, rtol=1e-4)
    zero = torch.zeros(3).requires_grad_()
    (gradient,) = torch.autograd.grad(IdentityRule.apply(zero, F.gelu).sum(), zero)
    assert torch.isfinite(gradient).all()


def test_a_product_hands_half_of_its_relevance_to_each_input():
    a, b = torch.randn(2, 3, 4).requires_grad_(), torch.randn(2, 4, 5).requires_grad_()
    relevance = torch.randn(2, 3, 5)
    y = HalfRule.apply(a @ b)
    for_a, for_b = (
        relevance_of(x, y, relevance) if x is a else relevance_of(b, HalfRule.apply(a @ b), relevance) for x in (a, b)
    )
    expected_a, expected_b = torch.zeros_like(a), torch.zeros_like(b)
    for n in range(2):  # proposition 3.3: R_ji = sum over p of A_ji O_ip R_jp / (2 O_jp)
        for j in range(3):
            for i in range(4):
                for p in range(5):
                    share = a[n, j, i] * b[n, i, p] / (2 * y[n, j, p]) * relevance[n, j, p]
                    expected_a[n, j, i] += share
                    expected_b[n, i, p] += share
    torch.testing.assert_close(for_a, expected_a.detach(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(for_b, expected_b.detach(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(for_a.sum() + for_b.sum(), relevance.sum(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("gamma", [0.0, 0.25, 2.0])
def test_a_linear_layer_shares_relevance_by_the_gamma_rule(gamma):
    generator = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(shape, generator=generator) for shape in ((4, 6), (3, 6), (3,)))
    x.requires_grad_()
    relevance = torch.randn(4, 3, generator=generator)
    y = GammaRule.apply(x, w, b, gamma)
    torch.testing.assert_close(y, F.linear(x, w, b))
    expected, kept = torch.zeros(4, 6), torch.zeros(())
    for n in range(4):
        for j in range(3):
            parts = torch.cat([x[n].detach() * w[j], b[j, None]])  # of the inputs and the bias
            favored = (parts > 0) if y[n, j] > 0 else (parts < 0)
            parts = parts * (1 + gamma * favored)
            shares = parts / parts.sum() * relevance[n, j]
            expected[n] += shares[:-1]
            kept += shares[-1]
    found = relevance_of(x, y, relevance)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.sum() + kept, relevance.sum(), atol=1e-4, rtol=1e-3)


def test_a_norm_is_linear_with_its_deviation_held():
    x, weight, bias = torch.randn(4, 8).requires_grad_(), torch.randn(8), torch.zeros(8)
    y = lrp_arithmetic().norm(x, weight, bias, 1e-6)
    torch.testing.assert_close(y, F.layer_norm(x, (8,), weight, bias, 1e-6))
    relevance = torch.rand(4, 8)
    torch.testing.assert_close(relevance_of(x, y, relevance).sum(-1), relevance.sum(-1), atol=1e-4, rtol=1e-3)


def test_the_softmax_rule_is_its_input_times_its_plain_gradient():
    x, relevance = torch.randn(6).requires_grad_(), torch.randn(6)
    s = x.softmax(0)
    expected = x * (relevance - s * relevance.sum())  # proposition 3.1
    torch.testing.assert_close(relevance_of(x, s, relevance), expected.detach(), atol=1e-5, rtol=1e-4)


def without_biases(model: Any) -> Any:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    return model


@pytest.mark.parametrize("gamma", [0.0, 0.25])
def test_relevance_is_conserved_but_for_biases_and_the_softmax(gamma, model_of, pixels):
    """Without biases, and with attention that does not depend on the image, all of the logit reaches the tokens."""
    model = without_biases(model_of("distilled"))
    with torch.no_grad():
        for block in model.deit.trunk.blocks:
            block.attn.qkv.weight[:64] = 0  # no query, no key: the same attention to all, which takes half
    network = Network(model)
    trace = network.run(pixels, lrp_arithmetic(gamma))
    for head in network.head_names:
        logit = trace.logits[head][0, 3]
        (gradient,) = torch.autograd.grad(logit, trace.states[-1], retain_graph=True)
        whole = (trace.states[-1] * gradient).sum()
        torch.testing.assert_close(whole, logit, atol=1e-4, rtol=1e-3)  # the final norm and the head
    # A block without its attention conserves: the residual sum, the norm, both linear layers and the activation.
    with torch.no_grad():
        for block in model.deit.trunk.blocks:
            block.attn.proj.weight.zero_()
    trace = Network(model).run(pixels, lrp_arithmetic(gamma))
    logit = trace.logits["class"][0, 3]
    for state in trace.states:
        (gradient,) = torch.autograd.grad(logit, state, retain_graph=True)
        torch.testing.assert_close((state * gradient).sum(), logit, atol=1e-3, rtol=1e-3)


def test_what_the_logit_loses_on_the_way_is_what_biases_and_softmaxes_take(model_of, pixels):
    """The whole model with epsilon rules: tokens, biases and softmaxes together have the logit, to rounding."""
    model = model_of("distilled")
    arithmetic = lrp_arithmetic(0.0)
    taken: list[torch.Tensor] = []  # each bias, spread over the rows that it is added to

    def linear(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        y = arithmetic.linear(x, w, None)
        if b is None:
            return y
        spread = b.expand_as(y).clone().requires_grad_()
        taken.append(spread)
        return y + spread

    def norm(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, epsilon: float) -> torch.Tensor:
        y = arithmetic.norm(x, w, torch.zeros_like(b), epsilon)
        spread = b.expand_as(y).clone().requires_grad_()
        taken.append(spread)
        return y + spread

    network = Network(model)
    trace = network.run(pixels, dataclasses.replace(arithmetic, linear=linear, norm=norm))
    logit = trace.logits["class"][0, 3]

    def relevance(tensor: torch.Tensor) -> float:
        (gradient,) = torch.autograd.grad(logit, tensor, retain_graph=True, allow_unused=True)
        return 0.0 if gradient is None else (tensor * gradient).sum().item()

    of_biases = sum(relevance(spread) for spread in taken)
    # Of a softmax the output has R and the input x (R - s sum R) in sum: the difference stays there.
    of_softmaxes = 0.0
    for state, block, attention in zip(trace.states, model.deit.trunk.blocks, trace.attentions, strict=False):
        out = relevance(attention)
        (gradient,) = torch.autograd.grad(logit, attention, retain_graph=True, allow_unused=True)
        if gradient is None:
            continue
        normed = F.layer_norm(state, (32,), block.norm1.weight, block.norm1.bias, block.norm1.eps)
        qkv = F.linear(normed, block.attn.qkv.weight, block.attn.qkv.bias)
        query, key, _ = qkv.unflatten(2, (3, 4, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (query @ key.transpose(2, 3)) * 8**-0.5
        plain = attention * (gradient - (attention * gradient).sum(-1, keepdim=True))
        of_softmaxes += out - (scores * plain).sum().item()
    total = relevance(trace.states[0]) + of_biases + of_softmaxes
    assert total == pytest.approx(logit.item(), rel=1e-3, abs=1e-3)


def test_the_overall_map_is_the_relevance_of_the_pixels(model_of, pixels):
    """With the convolution's plain gradient: pixels times their changed gradient, summed over each patch."""
    network, x = Network(model_of("vit")), pixels.clone().requires_grad_()
    trace = network.run(x, lrp_arithmetic())
    (gradient,) = torch.autograd.grad(trace.logits["class"][0, 2], x)
    by_pixels = (x.detach() * gradient).sum(1).unfold(1, 4, 4).unfold(2, 4, 4).sum((-1, -2))[0]
    found = attention_lrp(network, pixels, "class", 2)[-1].reshape(4, 4)
    torch.testing.assert_close(found, by_pixels, atol=1e-4, rtol=1e-3)
    maps = explain_image(model_of("vit"), pixels, method="attnlrp", target=2).heads["class"]
    np.testing.assert_allclose(maps.values, found, rtol=1e-5)
    assert math.isclose(maps.overall.max(), 1)
    np.testing.assert_array_equal(maps.overall == 0, maps.values <= 0)


# Of lxt 2.1 (the authors' package), its patches for LayerNorm, GELU and attention put on transformers' ViT with the
# weights below, and with zennit 0.5.1's Gamma rule on all linear layers where gamma is not 0: pixels times gradient of
# logit 1, summed over each patch.
OF_LXT = {
    0.0: [-0.055680498, -0.004904572, -0.143311620, 0.143911809],
    0.25: [0.082635768, -0.008729444, -0.134209201, 0.082730584],
}


@pytest.mark.parametrize("gamma", OF_LXT)
def test_relevance_is_that_of_the_authors_package(gamma):
    generator = torch.Generator().manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = deit.ViTConfig(**sizes, image_size=8, patch_size=4, encoder_stride=4, num_labels=3)
    model = deit.ViTForImageClassification(config)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    pixels = torch.randn(1, 3, 8, 8, generator=generator)
    found = attention_lrp(Network(model), pixels, "class", 1, gamma=gamma)[-1]
    torch.testing.assert_close(found, torch.tensor(OF_LXT[gamma]), atol=1e-5, rtol=1e-4)
