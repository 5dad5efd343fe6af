"""The rewritten network gives the numbers of the original, in float64, or is the original."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from deit.core.errors import UserError
from deit.inference.graph.classifier_graph import PlainClassifier, classifier_graph
from deit.inference.graph.lean_classifier import LeanClassifier
from tests.inference.graph.graph_cases import CASES, PROCESSOR, answers_of, contract_of, model_of, pixels_of


@pytest.mark.parametrize("case", [case for case in CASES if case != "bfloat16"])
def test_the_logits_of_every_head_are_those_of_the_model(case: str, redraw: Any) -> None:
    model = model_of(case, redraw)
    pixels = pixels_of(model)
    graph = classifier_graph(model, contract_of(model))
    assert type(graph) is LeanClassifier
    for found, expected in zip(graph(pixels), answers_of(model, pixels), strict=True):
        assert expected.std() > 0.1
        torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-10)


@pytest.mark.parametrize("options", [{}, {"do_rescale": False}, {"do_normalize": False}, {"rescale_factor": 1 / 128}])
def test_integers_in_give_the_logits_of_pixels_that_the_processor_made(options: dict[str, Any], redraw: Any) -> None:
    model = model_of("two heads", redraw)
    processor = copy.deepcopy(PROCESSOR)
    for name, value in options.items():
        setattr(processor, name, value)
    images = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    mean, std = (
        torch.tensor(values, dtype=torch.float64)[:, None, None]
        for values in (processor.image_mean, processor.image_std)
    )
    pixels = images.double() * (processor.rescale_factor if processor.do_rescale else 1)
    pixels = (pixels - mean) / std if processor.do_normalize else pixels
    made = processor(list(images.numpy()), do_resize=False, return_tensors="pt").pixel_values
    torch.testing.assert_close(made.double(), pixels, atol=1e-4, rtol=1e-5)
    contract = contract_of(model, processor=processor)
    for graph in (
        classifier_graph(model, contract, takes_uint8=True),
        PlainClassifier(model, contract, takes_uint8=True),
    ):
        for found, expected in zip(graph(images), answers_of(model, pixels), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def test_weights_are_folded_in_float64_and_have_the_type_of_the_model(redraw: Any) -> None:
    model = model_of("two heads", redraw, torch.bfloat16)
    graph = classifier_graph(model, contract_of(model))
    assert {tensor.dtype for tensor in graph.buffers()} == {torch.bfloat16}
    block = model.deit.trunk.blocks[0]
    query = block.attn.qkv.weight[:32].double() * block.norm1.weight.double() * 8**-0.5
    assert torch.equal(graph.blocks[0].query_weight, query.bfloat16())


def test_later_changes_of_the_model_do_not_reach_the_graph(redraw: Any) -> None:
    model = model_of("two heads", redraw)
    pixels = pixels_of(model)
    graph = classifier_graph(model, contract_of(model))
    before = graph(pixels)[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(graph(pixels)[0], before)


def with_hook(model: Any) -> None:
    model.deit.trunk.blocks[0].mlp.fc1.register_forward_hook(lambda *_: None)


def with_forward(model: Any) -> None:
    model.deit.trunk.norm.forward = lambda x: x


def with_method(model: Any) -> None:
    model.deit.trunk.blocks[0].attn.project = lambda x: torch.zeros(*x.shape[:2], 96, dtype=x.dtype)


def with_other_layer(model: Any) -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model.deit.trunk.blocks[0].mlp.fc2.__class__ = Doubled


def with_parametrization(model: Any) -> None:
    nn.utils.parametrizations.weight_norm(model.cls_classifier)


def with_adapter(model: Any) -> None:
    class Adapter(nn.Module):
        def __init__(self, inside: nn.Module) -> None:
            super().__init__()
            self.inside = inside

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.inside(x)

    model.deit.trunk.blocks[0].attn.proj = Adapter(model.deit.trunk.blocks[0].attn.proj)


def with_activation(model: Any) -> None:
    model.deit.trunk.blocks[0].mlp.activation = torch.sin


def with_padding(model: Any) -> None:
    projection = model.deit.trunk.patch_embed.proj
    projection.kernel_size = (4, 4)
    projection.stride, projection.padding = (5, 5), (2, 2)


@pytest.mark.parametrize(
    "change",
    [
        with_hook,
        with_forward,
        with_method,
        with_other_layer,
        with_parametrization,
        with_adapter,
        with_activation,
        with_padding,
    ],
)
def test_a_changed_model_is_run_as_it_is(change: Any, redraw: Any) -> None:
    model = model_of("two heads", redraw)
    plain = copy.deepcopy(model)
    change(model)
    graph = classifier_graph(model, contract_of(model))
    assert type(graph) is PlainClassifier
    pixels = pixels_of(model)
    for found, expected in zip(graph(pixels), answers_of(model, pixels), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-10)
    if change not in (with_hook, with_parametrization):
        assert not torch.allclose(graph(pixels)[0], answers_of(plain, pixels)[0])


def test_models_of_others_are_run_as_they_are(redraw: Any) -> None:
    import timm

    model = timm.create_model("test_vit", num_classes=5).eval()
    contract = contract_of(model_of("one head", redraw), head_names=("class",), image_size=(160, 160))
    pixels = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(classifier_graph(model, contract)(pixels)[0], model(pixels))


@pytest.mark.parametrize("options", [{"do_pad": True}, {"normalize": lambda *_, **__: None}], ids=["pad", "step"])
def test_integers_are_refused_where_the_processor_does_more_than_rescale_and_normalize(
    options: dict[str, Any], redraw: Any
) -> None:
    processor = copy.deepcopy(PROCESSOR)
    for name, value in options.items():
        setattr(processor, name, value)
    model = model_of("one head", redraw)
    with pytest.raises(UserError, match="takes_uint8=False"):
        classifier_graph(model, contract_of(model, processor=processor), takes_uint8=True)
