"""Our models as parts of models of transformers: their values are kept, or they are refused in a sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import deit

transformers = pytest.importorskip("transformers")


class OuterConfig(transformers.PretrainedConfig):
    model_type = "outer-of-a-test"


class Outer(transformers.PreTrainedModel):
    """A user's model around a DeiT."""

    config_class = OuterConfig
    main_input_name = "pixel_values"

    def __init__(self, config: Any, encoder: Any = None) -> None:
        super().__init__(config)
        self.encoder = encoder or deit.DeiTModel(deit.DeiTConfig(**config.encoder))
        self.head = nn.Linear(32, 3)
        self.post_init()

    def forward(self, pixels: Any) -> Any:
        return self.head(self.encoder(pixels).last_hidden_state[:, 0])


@pytest.fixture
def values_of():
    return lambda model: {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Any]) -> list[str]:
    return [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]


@pytest.mark.parametrize("source", ["built", "opened", "a subclass with a layer of its own"])
def test_a_model_around_ours_does_not_draw_its_values_anew(source, tiny_fields, redraw, values_of, tmp_path):
    class Mine(deit.DeiTModel):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.extra = nn.Linear(32, 32)

    kind = Mine if source.startswith("a subclass") else deit.DeiTModel
    encoder = redraw(kind(deit.DeiTConfig(**tiny_fields)))
    if source != "built":
        encoder.save_pretrained(tmp_path / "encoder")
        encoder = kind.from_pretrained(tmp_path / "encoder")
    before = values_of(encoder)
    outer = Outer(OuterConfig(encoder=tiny_fields), encoder).eval()
    assert changed(encoder, before) == []
    if source == "built":
        outer.save_pretrained(tmp_path / "outer")
        opened, info = Outer.from_pretrained(tmp_path / "outer", output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        pixels = torch.randn(2, 3, 16, 16)
        torch.testing.assert_close(opened.eval()(pixels), outer(pixels))


@pytest.mark.parametrize("name", ["DeiTModel", "ViTModel"])
def test_an_encoder_of_transformers_own_composites_is_refused_with_the_way_that_works(
    name, tiny_fields, redraw, values_of, tmp_path
):
    small = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    text = transformers.BertConfig(**small, vocab_size=50, is_decoder=True, add_cross_attention=True)
    encoder = redraw(getattr(deit, name)(getattr(deit, name).config_class(**tiny_fields))).eval()
    before = values_of(encoder)
    with pytest.raises(TypeError, match=r"config must be a .*Config of deit.* pass transformers\.AutoModel"):
        transformers.VisionEncoderDecoderModel(encoder=encoder, decoder=transformers.BertLMHeadModel(text))
    reader = transformers.BertModel(transformers.BertConfig(**small, vocab_size=50))
    with pytest.raises(TypeError, match="VisionTextDualEncoderModel"):
        transformers.VisionTextDualEncoderModel(vision_model=encoder, text_model=reader)
    assert changed(encoder, before) == []

    encoder.save_pretrained(tmp_path)
    theirs = transformers.AutoModel.from_pretrained(tmp_path)
    model = transformers.VisionEncoderDecoderModel(encoder=theirs, decoder=transformers.BertLMHeadModel(text)).eval()
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        output = model(pixel_values=pixels, decoder_input_ids=torch.ones(2, 3, dtype=torch.long))
        expected = encoder(pixels).last_hidden_state
    torch.testing.assert_close(output.encoder_last_hidden_state, expected, atol=1e-5, rtol=1e-5)


def test_the_configuration_can_be_replaced_by_another_of_ours(tiny_config):
    model = deit.DeiTModel(tiny_config())
    model.config = tiny_config(layer_norm_eps=1e-6)
    assert model.config.layer_norm_eps == 1e-6
    with pytest.raises(TypeError, match=r"must be a DeiTConfig of deit. Received: builtins.dict"):
        model.config = {}
