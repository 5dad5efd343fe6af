"""Settings of a model and its outputs act as in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deit

transformers = pytest.importorskip("transformers")

PIXELS = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2])
CLASSIFIERS = ("DeiTForImageClassification", "ViTForImageClassification")


@pytest.mark.parametrize("name", ["DeiTModel", *CLASSIFIERS, "DeiTForImageClassificationWithTeacher"])
def test_the_configuration_can_ask_for_gradient_checkpointing(name: str, tiny_fields: dict[str, Any]) -> None:
    for library in (transformers, deit):
        kind = getattr(library, name)
        config = kind.config_class(**tiny_fields)
        config.gradient_checkpointing = True
        model = kind(config)
        assert model.is_activation_checkpointing
        assert "gradient_checkpointing" not in model.config.to_dict()
        assert not kind(kind.config_class(**tiny_fields)).is_activation_checkpointing


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_loss_function_replaces_the_loss(pair: Any, name: str) -> None:
    def smoothed(labels: Tensor, logits: Tensor, config: Any, **options: Any) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=0.5, reduction="sum") * options.get("scale", 1)

    losses = []
    for model in pair(name):
        before = model(PIXELS, labels=LABELS).loss
        model.loss_function = smoothed
        losses.append(model(PIXELS, labels=LABELS).loss)
        assert model.loss_function is smoothed
        assert abs(before - losses[-1]) > 0.1
    torch.testing.assert_close(losses[1], losses[0])


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_module_may_be_the_loss_function(name: str, tiny_fields: dict[str, Any]) -> None:
    class Loss(nn.Module):
        def forward(self, labels: Tensor, logits: Tensor, config: Any) -> Tensor:
            return logits.sum() * 0 + 7

    model = getattr(deit, name)(getattr(deit, name).config_class(**tiny_fields))
    model.loss_function = Loss()
    assert model(PIXELS, labels=LABELS).loss == 7


@pytest.mark.parametrize("name", ["DeiTModel", "DeiTForMaskedImageModeling", "DeiTForImageClassificationWithTeacher"])
def test_a_model_that_would_ignore_a_loss_function_refuses_it(name: str, tiny_fields: dict[str, Any]) -> None:
    model = getattr(deit, name)(deit.DeiTConfig(**tiny_fields))
    with pytest.raises(TypeError, match="does not use a loss_function"):
        model.loss_function = F.cross_entropy


def test_a_field_that_was_none_becomes_a_key(pair: Any) -> None:
    outputs = [model(PIXELS) for model in pair(CLASSIFIERS[0])]
    for output in outputs:
        assert "loss" not in output
        output.loss = torch.tensor(2.0)
        output.note = "no field"
    theirs, ours = outputs
    assert list(ours) == list(theirs) == ["logits", "loss"]
    assert ours["loss"] == ours.loss == ours[1] == 2
    assert len(ours.to_tuple()) == len(theirs.to_tuple()) == 2


@pytest.mark.parametrize("library", [deit, transformers], ids=["deit", "transformers"])
def test_the_closing_lines_of_accelerates_scripts_save_a_model(
    library: Any, tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    model = library.DeiTForImageClassification(library.DeiTConfig(**tiny_fields)).eval()
    model.save_pretrained(
        tmp_path / "model",
        is_main_process=True,
        save_function=torch.save,
        save_original_format=True,
        push_to_hub=False,
        token=None,
    )
    for other in (deit, transformers):
        opened = other.DeiTForImageClassification.from_pretrained(tmp_path / "model")
        torch.testing.assert_close(opened(PIXELS).logits, model(PIXELS).logits)


def test_names_of_memory_are_not_written(tiny_fields: dict[str, Any], tmp_path: Path) -> None:
    model = deit.DeiTModel(deit.DeiTConfig(**tiny_fields))
    with pytest.raises(ValueError, match="published names"):
        model.save_pretrained(tmp_path / "model", save_original_format=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["DeiTModel", *CLASSIFIERS, "DeiTForImageClassificationWithTeacher"])
def test_names_that_scripts_use_answer_as_in_transformers(pair: Any, name: str) -> None:
    theirs, ours = pair(name)
    for model in (theirs, ours):
        assert model.can_generate() is False
        assert model.get_output_embeddings() is None
        assert model.tie_weights() is None
    assert ours.get_memory_footprint() == theirs.get_memory_footprint()
    assert ours.get_memory_footprint(return_buffers=False) == theirs.get_memory_footprint(return_buffers=False)
    before = ours.get_input_embeddings().proj.weight.clone()
    ours.init_weights()
    assert not torch.equal(ours.get_input_embeddings().proj.weight, before)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_inputs_may_require_gradients_for_adapters(pair: Any, name: str) -> None:
    for model in pair(name):
        model.requires_grad_(False)
        model.enable_input_require_grads()
        assert model(PIXELS).logits.requires_grad
        model.disable_input_require_grads()
        assert not model(PIXELS).logits.requires_grad


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_patch_embedding_can_be_replaced(pair: Any, name: str) -> None:
    class Doubled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.patch_size = inner, inner.patch_size
            self.projection = getattr(inner, "projection", None)  # transformers reads the type of its weights

        def forward(self, pixels: Tensor, *given: Any, **named: Any) -> Tensor:
            return 2 * self.inner(pixels, *given, **named)

    answers = []
    for model in pair(name):
        before = model(PIXELS).logits
        model.set_input_embeddings(Doubled(model.get_input_embeddings()))
        answers.append(model(PIXELS).logits)
        assert (answers[-1] - before).abs().max() > 1e-3
    torch.testing.assert_close(answers[1], answers[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["DeiT", "ViT"])
def test_the_decoder_of_masked_images_starts_as_in_transformers_or_by_name_as_in_simmim(
    kind: str, tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    name, fields = f"{kind}ForMaskedImageModeling", {**tiny_fields, "initializer_range": 0.01, "encoder_stride": 16}
    decoders = []
    for library in (transformers, deit):
        config = getattr(library, f"{kind}Config")(**fields)
        decoders.append(getattr(library, name)(config).decoder[0])
    getattr(deit, f"{kind}Model")(getattr(deit, f"{kind}Config")(**fields)).save_pretrained(tmp_path)
    decoders.append(getattr(deit, name).from_pretrained(tmp_path).decoder[0])  # the file has none
    for decoder in decoders:
        assert decoder.weight.std().item() == pytest.approx(0.01, rel=0.05)  # 24 576 numbers
        assert not decoder.bias.any()
    named = getattr(deit, name)(getattr(deit, f"{kind}Config")(**fields, decoder_init="simmim")).decoder[0]
    bound = fields["hidden_size"] ** -0.5  # PyTorch's own, uniform
    assert named.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert named.bias.abs().max().item() == pytest.approx(bound, rel=0.1)
    with pytest.raises(ValueError, match="decoder_init must be one of 'normal', 'simmim'"):
        deit.DeiTConfig(decoder_init="mae")
