"""Options that every model has: attention implementations, head masks, pruning, checkpointing, activations."""

from __future__ import annotations

import logging
import pickle
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from deit.models.deit import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
)
from deit.models.losses import problem_loss
from deit.models.trunk import attention
from deit.models.trunk.activations import ACTIVATIONS, LEARNT_ACTIVATIONS, XIELU, find_activation
from deit.models.vit import ViTForImageClassification, ViTForMaskedImageModeling, ViTModel

CLASSES = (
    DeiTModel,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    ViTModel,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
)
IMPLEMENTATIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
LABELS = torch.tensor([4, 0, 2])

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def pixels() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def build(tiny_fields, redraw):
    """Builds a model with large random weights; keywords are fields of the configuration."""
    return lambda model_class, **fields: redraw(
        model_class(model_class.config_class(**{**tiny_fields, **fields}))
    ).eval()


@pytest.fixture
def said(caplog):
    """What the log says of attention; what was said before may be said again."""
    attention._warn.cache_clear()
    caplog.set_level(logging.WARNING, logger="deit.models.trunk.attention")
    return caplog


@pytest.fixture
def flash(monkeypatch):
    """Stands in for the packages of flash attention: (B, N, H, d), 16 bits, no masks."""
    calls: list[str] = []

    def function(name, extra):
        def flash_attn_func(query, key, value, dropout_p=0.0):
            assert query.dtype in (torch.float16, torch.bfloat16)
            assert query.shape[1:] == (18, 4, 8)
            calls.append(name)
            query, key, value = (t.transpose(1, 2) for t in (query, key, value))
            mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p).transpose(1, 2)
            return (mixed, None) if extra else mixed

        return flash_attn_func

    for name, module in attention._FLASH_MODULES.items():
        fake = types.ModuleType(module)
        fake.flash_attn_func = function(name, name == "flash_attention_3")
        monkeypatch.setitem(sys.modules, module, fake)
    attention._flash_function.cache_clear()
    yield calls
    attention._flash_function.cache_clear()


# --- attention implementations ------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@torch.no_grad()
def test_every_attention_implementation_gives_the_same_numbers(build, flash, said, implementation, masked):
    mask = torch.ones(3, 18)
    mask[:, 5:9] = 0
    given = {"pixel_values": pixels(), "head_mask": torch.tensor([1.0, 0, 0.5, 1])}
    if masked:
        given["attention_mask"] = mask
    dtype = torch.bfloat16 if implementation.startswith("flash") else torch.float32
    expected = build(DeiTModel, attn_implementation="eager")(**given).last_hidden_state
    output = build(DeiTModel, attn_implementation=implementation).to(dtype)(**given).last_hidden_state
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(output.float(), expected, atol=tolerance, rtol=0)
    replaced = implementation.startswith("flash") and masked
    assert flash == ([implementation] * 2 if implementation.startswith("flash") and not masked else [])
    assert ("takes no attention mask: calls with one are computed by 'sdpa'" in said.text) == replaced


def test_an_implementation_that_is_not_installed_says_how_to_install_it(build, monkeypatch):
    for name, module in attention._FLASH_MODULES.items():
        monkeypatch.setitem(sys.modules, module, None)
        for attempt in (
            lambda name=name: build(ViTModel, attn_implementation=name),
            lambda name=name: build(ViTModel).set_attn_implementation(name),
        ):
            with pytest.raises(ImportError, match=rf"{name} needs the '{module}' package .*Install it with: "):
                attempt()


def test_an_unknown_implementation_is_refused_and_nothing_changes(build):
    model = build(DeiTForImageClassification)
    with pytest.raises(ValueError, match=r"attn_implementation must be one of 'sdpa', 'eager', .*Received: 'paged'"):
        model.set_attn_implementation("paged")
    assert model.config.attn_implementation == model.deit.config.attn_implementation == "sdpa"


@pytest.mark.parametrize("model_class", CLASSES)
@torch.no_grad()
def test_the_implementation_can_be_changed_on_a_model(build, model_class, said):
    model = build(model_class)
    model.set_attn_implementation("eager")
    assert model.config.attn_implementation == "eager"
    expected = model(pixels(), output_attentions=True)
    assert said.text == ""
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(model(pixels())[0], expected[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_asking_a_fused_model_for_attention_maps_is_said_once(build, said):
    model = build(DeiTModel)
    for _ in range(3):
        model(pixels(), output_attentions=True)
    assert [record.getMessage() for record in said.records] == [
        "output_attentions needs attention maps, which 'sdpa' does not make: such calls are computed eagerly."
    ]


def test_what_an_implementation_cannot_do_is_refused(build, flash):
    with pytest.raises(ValueError, match=r"flash_attention_2 computes in float16 or bfloat16. Received: torch.float32"):
        build(DeiTModel, attn_implementation="flash_attention_2")(pixels())
    for name in ("flash_attention_3", "flex_attention"):
        model = build(DeiTModel, attn_implementation=name, attention_probs_dropout_prob=0.1).bfloat16().train()
        with pytest.raises(ValueError, match=f"{name} has no dropout"):
            model(pixels())


# --- head masks and pruning ---------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_a_head_mask_may_have_five_dimensions(build, said, implementation):
    model = build(DeiTModel, attn_implementation=implementation)
    flat = torch.tensor([[1.0, 0, 0.5, 1], [0, 1, 1, 2]])
    expected = model(pixels(), head_mask=flat).last_hidden_state
    whole = flat[:, None, :, None, None]
    assert torch.equal(model(pixels(), head_mask=whole).last_hidden_state, expected)
    assert torch.equal(model(pixels(), head_mask=whole.expand(2, 3, 4, 18, 1)).last_hidden_state, expected)
    assert said.text == ""
    by_token = whole.expand(2, 3, 4, 18, 18).clone()
    torch.testing.assert_close(model(pixels(), head_mask=by_token).last_hidden_state, expected, atol=1e-5, rtol=0)
    assert ("A head mask for each token" in said.text) == (implementation == "sdpa")
    by_token[1, 0, :, :, 3] = 0  # in the second block, nobody in the first image looks at the fourth token
    other = model(pixels(), head_mask=by_token, output_attentions=True)
    assert (other.attentions[1][0, :, :, 3] == 0).all()
    assert (other.attentions[1][1, 1:, :, 3] > 0).all()
    with pytest.raises(ValueError, match="or five dimensions"):
        model(pixels(), head_mask=torch.ones(3, 1, 4, 1, 1))


@pytest.mark.parametrize("model_class", CLASSES)
@torch.no_grad()
def test_pruning_heads_equals_masking_them_and_survives_saving(build, tmp_path, model_class):
    model = build(model_class)
    head_mask = torch.tensor([[1.0, 0, 1, 0], [1, 1, 1, 0]])
    expected = model(pixels(), head_mask=head_mask)[0]
    before = model.num_parameters()
    model.prune_heads({0: [1, 3]})
    model.prune_heads({0: [3], 1: {3}})  # numbers are those of the whole model, and may come twice
    torch.testing.assert_close(model(pixels())[0], expected, atol=1e-5, rtol=0)
    assert before - model.num_parameters() == 3 * (4 * 32 * 8 + 3 * 8)  # per head: rows of q, k, v; columns; biases
    model.save_pretrained(tmp_path)
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors[f"{prefix}encoder.layer.0.attention.attention.key.weight"].shape == (16, 32)
    assert tensors[f"{prefix}encoder.layer.1.attention.output.dense.weight"].shape == (32, 24)
    again = model_class.from_pretrained(tmp_path)
    assert again.config.pruned_heads == {0: [1, 3], 1: [3]}
    assert torch.equal(again(pixels())[0], model(pixels())[0])


@torch.no_grad()
def test_a_pruned_model_takes_a_mask_for_all_heads_and_returns_the_maps_it_has(build):
    model = build(ViTModel)
    mask = torch.tensor([[0.5, 0, 1, 2], [1, 1, 1, 1]])
    expected = model(pixels(), head_mask=mask).last_hidden_state
    model.prune_heads({0: [1]})
    output = model(pixels(), head_mask=mask, output_attentions=True)
    torch.testing.assert_close(output.last_hidden_state, expected, atol=1e-5, rtol=0)
    assert [maps.shape[1] for maps in output.attentions] == [3, 4]


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({2: [0]}, "must name blocks from 0 to 1. Received: 2"),
        ({0: [4]}, "must name heads from 0 to 3"),
        ({0: [-1]}, "must name heads from 0 to 3"),
        ({1: [0, 1, 2, 3]}, "would leave block 1 without attention heads"),
    ],
    ids=str,
)
def test_heads_that_cannot_be_pruned_are_refused_and_nothing_changes(build, heads, message):
    model = build(DeiTModel)
    before = model.num_parameters()
    with pytest.raises(ValueError, match=message):
        model.prune_heads({0: [0], **heads} if 0 not in heads else heads)
    assert (model.num_parameters(), model.config.pruned_heads) == (before, {})


def test_a_pruned_model_learns_and_keeps_what_was_frozen(build):
    model = build(DeiTForImageClassification).train()
    model.deit.trunk.blocks[0].attn.proj.requires_grad_(False)
    model.prune_heads({0: [0], 1: [2, 3]})
    model(pixels(), labels=LABELS).loss.backward()
    assert model.deit.trunk.blocks[0].attn.proj.weight.grad is None
    assert model.deit.trunk.blocks[0].attn.qkv.weight.grad.abs().max() > 0


# --- gradient checkpointing ---------------------------------------------------------------------------


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(0)
    model(pixels(), labels=LABELS).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"every_n_layers": 2},
        {"offload": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("model_class", [DeiTForImageClassificationWithTeacher, ViTForImageClassification])
def test_gradient_checkpointing_runs_blocks_again_and_gives_the_same_gradients(build, model_class, options):
    rates = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2, "drop_path_rate": 0.2}
    model = build(model_class, **rates).train()
    expected = gradients(model)
    runs = []
    for block in model.base_model.trunk.blocks:
        block.mlp.register_forward_hook(lambda *_: runs.append(1))
    model.gradient_checkpointing_enable(**options)
    assert model.is_gradient_checkpointing
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-5)
    assert len(runs) == (3 if "every_n_layers" in options else 4)
    runs.clear()
    model.eval()(pixels(), labels=LABELS).loss.backward()
    assert len(runs) == 2  # in evaluation nothing is computed twice
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    runs.clear()
    gradients(model.train())
    assert len(runs) == 2


def test_checkpointing_has_its_newer_names_too(build):
    model = build(DeiTModel)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": True}, every_n_layers=2)
    assert model.is_activation_checkpointing
    assert model.trunk.checkpointing.options == {"use_reentrant": True}
    assert model.trunk.checkpointing.every == 2
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing
    with pytest.raises(ValueError, match=r"every_n_layers must be at least 1. Received: 0"):
        model.gradient_checkpointing_enable(every_n_layers=0)


def test_attention_maps_are_given_under_gradient_checkpointing(build):
    model = build(DeiTModel)
    expected = model(pixels(), output_attentions=True, output_hidden_states=True)
    model.train().gradient_checkpointing_enable()
    output = model(pixels(), output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(output.attentions, expected.attentions)
    torch.testing.assert_close(output.hidden_states, expected.hidden_states)


# --- activations --------------------------------------------------------------------------------------


def cube(x: Tensor) -> Tensor:
    return x**3


@torch.no_grad()
def test_an_activation_may_be_a_function_or_a_module(build, tmp_path):
    model = build(DeiTModel, hidden_act=cube, pooler_act=nn.Softplus())
    mlp, x = model.trunk.blocks[0].mlp, torch.randn(2, 3, 32)
    assert torch.equal(mlp(x), mlp.fc2(mlp.fc1(x) ** 3))
    output = model(pixels())
    expected = F.softplus(model.pooler.dense(output.last_hidden_state[:, 0]))
    assert torch.equal(output.pooler_output, expected)
    with pytest.raises(ValueError, match="hidden_act cannot be written as JSON"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / "model.safetensors").exists()


def test_learnt_activations_are_of_each_block_and_learn(build):
    for name in LEARNT_ACTIVATIONS:
        model = build(DeiTForImageClassification, hidden_act=name).train()
        model(pixels(), labels=LABELS).loss.backward()
        own = [p for n, p in model.named_parameters() if ".activation." in n and p.requires_grad]
        assert len(own) == (2 if name == "prelu" else 4)
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in own)


@torch.no_grad()
def test_xielu_starts_with_the_numbers_worked_out_by_hand():
    x = torch.tensor([-2.0, 0.0, 3.0])
    expected = torch.tensor([0.8 * (torch.tensor(-2.0).expm1() + 2.0) - 1.0, 0.0, 0.8 * 9 + 1.5])
    torch.testing.assert_close(XIELU()(x), expected, atol=0.02, rtol=0)  # its parameters are rounded to 16 bits


@pytest.mark.parametrize("name", [*ACTIVATIONS, *LEARNT_ACTIVATIONS])
def test_a_model_with_any_activation_can_be_pickled(name):
    again = pickle.loads(pickle.dumps(find_activation(name)))
    x = torch.linspace(-12, 12, 25)
    assert torch.equal(again(x), find_activation(name)(x))


# --- what a model tells of itself ---------------------------------------------------------------------


@pytest.mark.parametrize("model_class", CLASSES)
def test_the_bare_model_and_the_patch_embedding_are_found(build, model_class):
    model = build(model_class)
    bare = getattr(model, model.base_model_prefix, model)
    assert model.base_model is bare
    assert model.get_input_embeddings() is bare.trunk.patch_embed
    assert (model.trunk if bare is model else bare.trunk) is bare.trunk
    assert model.num_parameters(exclude_embeddings=True) == model.num_parameters()
    model.requires_grad_(False)
    bare.trunk.norm.requires_grad_(True)
    assert model.num_parameters(only_trainable=True) == 64


def test_embeddings_that_a_subclass_adds_can_be_left_out_of_the_count(tiny_config):
    class WithTable(DeiTModel):
        def __init__(self, config):
            super().__init__(config)
            self.table = nn.Embedding(10, 3)

    model = WithTable(tiny_config())
    assert model.num_parameters() - model.num_parameters(exclude_embeddings=True) == 30


@pytest.mark.parametrize("model_class", CLASSES)
@torch.no_grad()
def test_a_users_subclass_of_every_class_saves_and_loads(build, tmp_path, model_class):
    class Mine(model_class):
        pass

    plain = build(model_class)
    plain.save_pretrained(tmp_path / "plain")
    mine, info = Mine.from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(mine(pixels())[0], plain(pixels())[0])
    mine.save_pretrained(tmp_path / "mine")
    assert torch.equal(model_class.from_pretrained(tmp_path / "mine")(pixels())[0], plain(pixels())[0])


@pytest.mark.parametrize("model_class", CLASSES)
def test_a_configuration_of_the_other_kind_is_refused(model_class, tiny_config, tiny_vit_config):
    own, other = tiny_config(), tiny_vit_config()
    if model_class.config_class is type(other):
        own, other = other, own
    assert model_class(own).config is own
    with pytest.raises(TypeError, match=f"{model_class.__name__} needs a {type(own).__name__}. Received: "):
        model_class(other)


def test_a_vit_has_one_token_less_than_a_deit(tiny_config, tiny_vit_config):
    deit, vit = DeiTModel(tiny_config()), ViTModel(tiny_vit_config())
    assert set(deit.state_dict()) - set(vit.state_dict()) == {"trunk.dist_token"}
    assert (deit.trunk.pos_embed.shape[1], vit.trunk.pos_embed.shape[1]) == (18, 17)
    assert deit.num_parameters() - vit.num_parameters() == 2 * 32


@pytest.mark.parametrize("count", [7, torch.tensor(7)])
def test_the_number_of_items_in_a_batch_divides_the_sum(count):
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, 3.0, 1.0]])
    labels = torch.tensor([1, -100])
    loss = problem_loss(logits, labels, "single_label_classification", count)
    torch.testing.assert_close(loss, (torch.logsumexp(logits[0], 0) - 2.0) / 7)
