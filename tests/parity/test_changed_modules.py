"""Whatever a user changes in a block acts exactly as in transformers, in every block, whichever way it is done."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_full_backward_hook
from torch.nn.utils import parametrize

transformers = pytest.importorskip("transformers")

PIXELS = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
NAMES = ("DeiTForImageClassificationWithTeacher", "ViTForImageClassification")

# Part -> where it is in our block, and where in transformers' layer. One fused product here is three there.
PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "block": ("", ("",)),
    "attention": ("attn", ("attention",)),
    "mlp": ("mlp", ("mlp",)),
    "norm before attention": ("norm1", ("layernorm_before",)),
    "norm before MLP": ("norm2", ("layernorm_after",)),
    "query, key, value": ("attn.qkv", ("attention.q_proj", "attention.k_proj", "attention.v_proj")),
    "projection": ("attn.proj", ("attention.o_proj",)),
    "first linear": ("mlp.fc1", ("mlp.fc1",)),
    "second linear": ("mlp.fc2", ("mlp.fc2",)),
}
LINEAR = ("query, key, value", "projection", "first linear", "second linear")


def changed(value: Any) -> Any:
    """A change in which every token depends on all others, so that a part computed for some of them would show."""
    if isinstance(value, tuple):
        return (changed(value[0]), *value[1:])
    return value + 0.5 * value.mean(dim=1, keepdim=True)


def replace_forward(module: nn.Module) -> None:
    old = module.forward
    module.forward = lambda *given, **named: changed(old(*given, **named))


def swap_class(module: nn.Module) -> None:
    kind = type(module)
    module.__class__ = type("Mine", (kind,), {"forward": lambda self, *g, **n: changed(kind.forward(self, *g, **n))})


def forward_hook(module: nn.Module) -> None:
    module.register_forward_hook(lambda inner, given, result: changed(result))


def forward_hook_with_names(module: nn.Module) -> None:
    module.register_forward_hook(lambda inner, given, named, result: changed(result), with_kwargs=True)


def forward_pre_hook(module: nn.Module) -> None:
    module.register_forward_pre_hook(lambda inner, given: (changed(given[0]), *given[1:]))


def thrice(gradients: Any) -> tuple[Tensor | None, ...]:
    return tuple(None if g is None else 3 * g for g in gradients)


def backward_hook(module: nn.Module) -> None:
    module.register_full_backward_hook(lambda inner, gradient, given: thrice(gradient))


def backward_pre_hook(module: nn.Module) -> None:
    module.register_full_backward_pre_hook(lambda inner, given: thrice(given))


def accelerate_hook(module: nn.Module) -> None:
    hooks = pytest.importorskip("accelerate.hooks")

    class Changing(hooks.ModelHook):  # type: ignore[misc,name-defined]
        def post_forward(self, module: nn.Module, output: Any) -> Any:
            return changed(output)

    hooks.add_hook_to_module(module, Changing())


WAYS = (replace_forward, swap_class, forward_hook, forward_hook_with_names, forward_pre_hook, accelerate_hook)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    import deit
    from tests.conftest import TINY

    pairs = {}
    for name in NAMES:
        folder = tmp_path_factory.mktemp("oracle")
        config = getattr(transformers, getattr(deit, name).config_class.__name__)(**TINY)
        oracle = getattr(transformers, name)(config)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for _, parameter in sorted(oracle.named_parameters()):
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        oracle.set_attn_implementation("sdpa")
        oracle.save_pretrained(folder)
        pairs[name] = (oracle.eval(), getattr(deit, name).from_pretrained(folder))
    return pairs


@pytest.fixture
def models(originals: dict[str, tuple[Any, Any]]) -> tuple[Any, Any]:
    return copy.deepcopy(originals[NAMES[0]])


def parts_of(oracle: Any, ours: Any, part: str, block: int) -> Iterator[nn.Module]:
    here, there = PARTS[part]
    yield ours.base_model.trunk.blocks[block].get_submodule(here)
    for name in there:
        yield oracle.base_model.layers[block].get_submodule(name)


def assert_equal_answers(oracle: Any, ours: Any, before: Tensor | None = None) -> None:
    """Without gradients, with packed weights, and in training with gradients down to the pixels."""
    with torch.no_grad():
        expected = oracle(PIXELS).logits
        plain = ours(PIXELS).logits
    torch.testing.assert_close(plain, expected, atol=2e-5, rtol=2e-5)
    if before is not None:
        assert (plain - before).abs().max() > 1e-3, "the change did not act"
    with torch.no_grad():
        torch.testing.assert_close(ours.pack_weights()(PIXELS).logits, expected, atol=2e-5, rtol=2e-5)
    assert_equal_gradients(oracle, ours)


def assert_equal_gradients(oracle: Any, ours: Any) -> None:
    gradients = []
    for model in (oracle, ours):
        pixels = PIXELS.clone().requires_grad_()
        model.train()(pixels).logits.square().sum().backward()
        gradients.append(pixels.grad)
        model.eval()
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0], atol=5e-4, rtol=1e-3)


@pytest.mark.parametrize("block", [0, 1], ids=["first block", "last block"])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_changed_module_acts(models: Any, way: Callable[[nn.Module], None], part: str, block: int) -> None:
    with torch.no_grad():
        before = models[1](PIXELS).logits
    for module in parts_of(*models, part, block):
        way(module)
    assert_equal_answers(*models, before)


@pytest.mark.parametrize("block", [0, 1], ids=["first block", "last block"])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("way", [backward_hook, backward_pre_hook], ids=lambda way: way.__name__)
def test_a_hook_on_the_backward_pass_acts(models: Any, way: Callable[[nn.Module], None], part: str, block: int) -> None:
    for module in parts_of(*models, part, block):
        way(module)
    assert_equal_gradients(*models)


@pytest.mark.filterwarnings("ignore:For backward hooks to be called")
@pytest.mark.parametrize("block", [0, 1], ids=["first block", "last block"])
@pytest.mark.parametrize("part", PARTS)
def test_a_global_hook_acts(models: Any, part: str, block: int) -> None:
    chosen = set(parts_of(*models, part, block))
    with torch.no_grad():
        before = models[1](PIXELS).logits
    handles = [
        register_module_forward_hook(lambda module, given, result: changed(result) if module in chosen else None),
        register_module_full_backward_hook(
            lambda module, gradient, given: thrice(gradient) if module in chosen else None
        ),
    ]
    try:
        assert_equal_answers(*models, before)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("part", PARTS)
def test_a_replaced_method_of_a_class_acts(models: Any, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    with torch.no_grad():
        before = models[1](PIXELS).logits
    for kind in {type(module) for module in parts_of(*models, part, 1)}:
        old = kind.forward
        monkeypatch.setattr(kind, "forward", lambda self, *g, _old=old, **n: twice(_old(self, *g, **n)))
    assert_equal_answers(*models, before)


def twice(value: Any) -> Any:
    return (2 * value[0], *value[1:]) if isinstance(value, tuple) else 2 * value


@pytest.mark.parametrize("block", [0, 1], ids=["first block", "last block"])
@pytest.mark.parametrize("part", LINEAR)
def test_a_parametrized_weight_acts(models: Any, part: str, block: int) -> None:
    class Half(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / 2

    with torch.no_grad():
        before = models[1](PIXELS).logits
    for module in parts_of(*models, part, block):
        parametrize.register_parametrization(module, "weight", Half())
    assert_equal_answers(*models, before)


@pytest.mark.parametrize("block", [0, 1], ids=["first block", "last block"])
@pytest.mark.parametrize("part", PARTS)
def test_a_module_in_place_of_another_acts(models: Any, part: str, block: int) -> None:
    class Around(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *given: Any, **named: Any) -> Any:
            return changed(self.inner(*given, **named))

    oracle, ours = models
    with torch.no_grad():
        before = ours(PIXELS).logits
    here, there = PARTS[part]
    for layers, names in ((ours.base_model.trunk.blocks, (here,)), (oracle.base_model.layers, there)):
        for name in names:
            whole = f"{block}.{name}".rstrip(".")
            layers.set_submodule(whole, Around(layers.get_submodule(whole)))
    assert_equal_answers(oracle, ours, before)


@pytest.mark.parametrize("how", ["cpu_offload", "disk_offload"])
def test_accelerate_may_move_the_weights_out(models: Any, how: str, tmp_path: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    ours = models[1]
    with torch.no_grad():
        expected = ours(PIXELS).logits
        if how == "cpu_offload":
            accelerate.cpu_offload(ours, execution_device=torch.device("cpu"))
        else:
            accelerate.disk_offload(ours, tmp_path, execution_device=torch.device("cpu"))
        torch.testing.assert_close(ours(PIXELS).logits, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["base model", "trunk", "final norm"])
def test_whoever_watches_what_stands_around_the_blocks_sees_every_token(
    originals: dict[str, tuple[Any, Any]], name: str, place: str
) -> None:
    ours = copy.deepcopy(originals[name][1])
    module = {"base model": ours.base_model, "trunk": ours.base_model.trunk, "final norm": ours.base_model.trunk.norm}
    seen = []

    def note(inner: nn.Module, given: Any, result: Any) -> None:
        tokens = getattr(result, "last_hidden_state", getattr(result, "tokens", result))
        seen.append(tokens.shape[1])

    module[place].register_forward_hook(note)
    with torch.no_grad():
        ours(PIXELS)
    assert seen == [16 + ours.base_model.trunk.num_prefix_tokens]


@pytest.mark.parametrize("part", PARTS)
def test_with_drop_path_a_changed_module_sees_the_whole_batch(models: Any, part: str) -> None:
    from deit.models.trunk.vision_transformer import set_drop_path

    ours = models[1]
    set_drop_path(ours, 0.9, shape="constant")
    module = next(parts_of(*models, part, 0))
    seen, old = [], module.forward

    def watching(x: Tensor, *given: Any, **named: Any) -> Any:
        seen.append(len(x))
        return old(x, *given, **named)

    module.forward = watching
    ours.train()(PIXELS).logits.sum().backward()
    assert seen == [len(PIXELS)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
def test_dynamic_quantization_finds_the_linear_layers(models: Any) -> None:
    oracle, ours = models
    with torch.no_grad():
        before = ours(PIXELS).logits
        quantized = [torch.ao.quantization.quantize_dynamic(model, {nn.Linear}) for model in (oracle, ours)]
        expected, logits = (model(PIXELS).logits for model in quantized)
    assert not [name for name, module in quantized[1].named_modules() if type(module) is nn.Linear]
    assert (logits - before).abs().max() > 1e-4
    torch.testing.assert_close(logits, before, atol=0.2, rtol=0.1)
    torch.testing.assert_close(logits, expected, atol=0.2, rtol=0.1)  # qkv has one scale here, three there


@pytest.mark.parametrize("part", PARTS)
def test_a_changed_module_acts_in_a_vit(originals: dict[str, tuple[Any, Any]], part: str) -> None:
    models = copy.deepcopy(originals[NAMES[1]])
    for module in parts_of(*models, part, 1):
        replace_forward(module)
    assert_equal_answers(*models)


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.trace", "ignore::torch.jit.TracerWarning", "ignore:There is a performance drop"
)
def test_packed_weights_step_aside_when_tracing(models: Any) -> None:
    ours = models[1].pack_weights()
    with torch.no_grad():
        expected = ours(PIXELS).logits
        traced = torch.jit.trace(ours, PIXELS, strict=False, check_trace=False)
        torch.testing.assert_close(traced(PIXELS)["logits"], expected, atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(torch.func.vmap(lambda x: ours(x[None]).logits[0])(PIXELS), expected)
