"""Shortcuts of inference: packed weights and a last block for the prefix tokens alone give the same numbers."""

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F

from deit import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    ViTConfig,
    ViTForImageClassification,
)
from deit.models.trunk import cpu_kernels
from deit.models.trunk.cpu_kernels import (
    METHODS,
    _packs,
    can_compute_prefix,
    linear,
    linear_activation,
    linear_rows,
    pack,
)
from deit.models.trunk.vision_transformer import BLOCK_FORWARDS
from tests.conftest import TINY


def classifier(tiny_config, redraw, kind=DeiTForImageClassificationWithTeacher, **fields):
    config = ViTConfig(**{**TINY, **fields}) if kind is ViTForImageClassification else tiny_config(**fields)
    return redraw(kind(config)).eval()


PACKS_TYPE = cpu_kernels._packs_type


@pytest.fixture(autouse=True)
def packs_float32(monkeypatch):
    """Packs float32 even where that is no faster."""

    monkeypatch.setattr(
        cpu_kernels,
        "_packs_type",
        lambda dtype: PACKS_TYPE(dtype) or (dtype == torch.float32 and torch.backends.mkldnn.is_available()),
    )


def test_float32_is_packed_only_where_that_is_faster(monkeypatch) -> None:
    packs = PACKS_TYPE
    for capability, expected in (("AVX2", not torch.backends.mkl.is_available()), ("AVX512", True)):
        packs.cache_clear()
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda name=capability: name)
        assert packs(torch.float32) == expected
    packs.cache_clear()


PIXELS = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
KINDS = (DeiTForImageClassification, DeiTForImageClassificationWithTeacher, ViTForImageClassification)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fields", [{}, {"qkv_bias": False}, {"hidden_act": "gelu_new"}], ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_without_gradients_the_logits_are_the_same(tiny_config, redraw, kind, fields, packed) -> None:
    model = classifier(tiny_config, redraw, kind, **fields)
    expected = model(PIXELS, output_hidden_states=True).logits.detach()  # so every token goes through every block
    if packed:
        model.pack_weights()
    with torch.no_grad():
        torch.testing.assert_close(model(PIXELS).logits, expected, atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(model(PIXELS).logits, expected, atol=1e-5, rtol=1e-5)


def test_the_shortcut_is_really_taken(tiny_config, redraw, monkeypatch) -> None:
    model = classifier(tiny_config, redraw)
    taken = []
    original = cpu_kernels.compute_prefix
    monkeypatch.setattr(
        cpu_kernels,
        "compute_prefix",
        lambda block, x, count, bias: taken.append(count) or original(block, x, count, bias),
    )
    model(PIXELS)
    assert taken == [2]
    with torch.no_grad():
        model(PIXELS)
        assert taken == [2, 2]
        for options in (
            {"output_hidden_states": True},
            {"output_attentions": True},
            {"head_mask": torch.ones(4)},
            {"attention_mask": torch.ones(3, 18)},
        ):
            model(PIXELS, **options)
        assert taken == [2, 2]
    model.train()(PIXELS)
    assert taken == [2, 2, 2]
    model.gradient_checkpointing_enable()
    model(PIXELS)
    assert taken == [2, 2, 2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fields", [{}, {"qkv_bias": False}, {"drop_path_rate": 0.4}], ids=str)
def test_in_training_the_gradients_are_the_same(tiny_config, redraw, kind, fields) -> None:
    gradients = []
    for options in ({}, {"output_hidden_states": True}):  # with it every token goes through every block
        model = classifier(tiny_config, redraw, kind, **fields).train()
        torch.manual_seed(3)
        model(PIXELS, **options).logits.square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("rate", ["attention_probs_dropout_prob", "hidden_dropout_prob"])
def test_a_block_with_dropout_is_computed_whole_in_training(tiny_config, redraw, rate) -> None:
    model = classifier(tiny_config, redraw, **{rate: 0.5})
    assert can_compute_prefix(model.deit.trunk.blocks[-1], BLOCK_FORWARDS)
    assert not can_compute_prefix(model.train().deit.trunk.blocks[-1], BLOCK_FORWARDS)


def test_whoever_watches_the_last_block_or_the_model_sees_every_token(tiny_config, redraw) -> None:
    seen = []
    for watched in (lambda m: m.deit.trunk.blocks[-1], lambda m: m.deit.trunk.norm, lambda m: m.deit):
        model = classifier(tiny_config, redraw)
        watched(model).register_forward_hook(lambda module, given, result: seen.append(result))
        with torch.no_grad():
            model(PIXELS)
    assert [getattr(r, "last_hidden_state", r[0] if isinstance(r, tuple) else r).shape[1] for r in seen] == [18, 18, 18]


@pytest.mark.parametrize(
    "part", [lambda b: b.attn, lambda b: b.mlp.fc1, lambda b: b.norm1], ids=["attention", "layer", "norm"]
)
def test_a_method_that_an_instance_replaces_is_called_in_the_last_block(tiny_config, redraw, part) -> None:
    model, called = classifier(tiny_config, redraw), []
    changed = part(model.deit.trunk.blocks[-1])
    name = "project" if hasattr(changed, "project") else "_call_impl"  # what calls a layer
    method = getattr(changed, name)
    setattr(changed, name, lambda *arguments: called.append(name) or method(*arguments))
    with torch.no_grad():
        model(PIXELS)
    assert called == [name]


def test_every_method_of_a_layer_in_a_block_is_known_to_be_replaceable() -> None:
    ours = {name for kind in BLOCK_FORWARDS for name, value in vars(kind).items() if inspect.isfunction(value)}
    assert ours <= METHODS | {"extra_repr", "reset_parameters"}


def test_a_base_model_of_the_users_own_is_called_as_ever(tiny_config, redraw) -> None:
    class Mine(DeiTModel):
        def forward(self, pixel_values, *arguments, **options):
            assert "prefix_only" not in options
            return super().forward(pixel_values, *arguments, **options)

    model = classifier(tiny_config, redraw)
    expected = model(PIXELS).logits
    own = Mine(model.config, add_pooling_layer=False)
    own.load_state_dict(model.deit.state_dict())
    model.deit = own
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(PIXELS).logits, expected.detach(), atol=1e-5, rtol=1e-5)


def packed_layer() -> torch.nn.Linear:
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 48).eval()
    pack(layer)
    return layer


X = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gelu", [False, True])
def test_a_packed_layer_equals_pytorchs(dtype, gelu) -> None:
    layer, x = packed_layer().to(dtype), X.to(dtype)
    whole = F.linear(x.float(), layer.weight.float(), layer.bias.float())
    expected = F.gelu(whole) if gelu else whole
    tolerance = 1e-6 if dtype == torch.float32 else 0.02
    with torch.no_grad():
        for start, stop in ((0, 48), (0, 16), (16, 48)):
            if not gelu:
                result = linear_rows(layer, x, start, stop)
            elif (start, stop) == (0, 48):
                result = linear_activation(layer, F.gelu, x)
            else:
                continue
            if dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported():
                assert _packs[layer][start, stop]  # it was packed
            else:  # a CPU for which oneDNN has no such product: the plain layer answers
                assert not _packs[layer]
            torch.testing.assert_close(result.float(), expected[:, start:stop], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("change", ["in place", "replaced", "loaded", "moved"])
def test_changed_weights_are_packed_anew(change) -> None:
    layer = packed_layer()
    with torch.no_grad():
        before = linear(layer, X)
        if change == "in place":
            layer.weight.mul_(2)
        elif change == "replaced":
            layer.weight = torch.nn.Parameter(layer.weight * 2)
        elif change == "loaded":
            layer.load_state_dict({"weight": layer.weight * 2, "bias": layer.bias})
        else:
            layer.weight.data = layer.weight.data * 2
        after = linear(layer, X)
        torch.testing.assert_close(after, F.linear(X, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(before, after)


def test_training_gives_the_copy_up_and_gradients_never_meet_it() -> None:
    layer = packed_layer()
    linear(layer, X).sum().backward()
    torch.testing.assert_close(layer.weight.grad, X.sum(0).expand(48, 64))
    assert _packs[layer] == {}
    linear(layer.train(), X)
    assert layer not in _packs


def test_a_packed_model_can_be_copied_pickled_saved_and_compiled(tiny_config, redraw, tmp_path) -> None:
    model = classifier(tiny_config, redraw).pack_weights()
    with torch.no_grad():
        expected = model(PIXELS).logits
        model.save_pretrained(tmp_path)
        others = [
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            type(model).from_pretrained(tmp_path),
            torch.compile(model, backend="eager", fullgraph=True),
        ]
        for other in others:
            torch.testing.assert_close(other(PIXELS).logits, expected, atol=1e-5, rtol=1e-5)


def test_autocast_takes_precedence(tiny_config, redraw) -> None:
    model = classifier(tiny_config, redraw)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(PIXELS).logits
        assert torch.equal(model.pack_weights()(PIXELS).logits, expected)


def test_bfloat16_without_gradients_is_as_exact_as_with_the_fused_attention(tiny_config, redraw) -> None:
    model = classifier(tiny_config, redraw)
    exact = model(PIXELS).logits.detach()
    model.to(torch.bfloat16)
    fused = (model(PIXELS).logits.detach().float() - exact).abs().max()  # with gradients: PyTorch's attention
    with torch.no_grad():
        in_steps = (model(PIXELS).logits.float() - exact).abs().max()
    assert in_steps <= 2 * fused + 0.02


def test_a_model_opens_in_inference_mode(tiny_config, redraw, tmp_path) -> None:
    model = classifier(tiny_config, redraw)
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        opened = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert not any(parameter.is_inference() for parameter in opened.parameters())
    opened.float()(PIXELS).logits.sum().backward()
