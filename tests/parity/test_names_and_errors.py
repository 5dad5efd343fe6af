"""Public names that code for transformers uses, the types of errors it catches, and transformers' own auto classes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import deit

transformers = pytest.importorskip("transformers")

PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
KINDS = ("DeiT", "ViT")
CLASSES = ("DeiTModel", "ViTModel", "DeiTForImageClassification", "ViTForImageClassification")


def libraries() -> Iterator[Any]:
    yield transformers
    yield deit


@pytest.fixture
def saved(tiny_fields: dict[str, Any], tmp_path: Path, redraw: Any) -> Path:
    model = redraw(deit.DeiTForImageClassification(deit.DeiTConfig(**tiny_fields)))
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# --- errors -------------------------------------------------------------------------------------------


def test_other_shapes_are_a_runtime_error(saved: Path) -> None:
    for library in libraries():
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            library.DeiTForImageClassification.from_pretrained(saved, num_labels=9)


def test_what_did_not_match_comes_in_sets(saved: Path) -> None:
    infos = []
    for library in libraries():
        _, info = library.DeiTForImageClassification.from_pretrained(
            saved, num_labels=9, ignore_mismatched_sizes=True, output_loading_info=True
        )
        infos.append({**info, "mismatched_keys": {(n, tuple(a), tuple(b)) for n, a, b in info["mismatched_keys"]}})
    assert infos[0] == infos[1]
    assert {key: type(value) for key, value in infos[0].items()} == {key: type(v) for key, v in infos[1].items()}
    assert infos[1]["missing_keys"].isdisjoint({"classifier.weight"})


@pytest.mark.parametrize("kind", KINDS)
def test_a_configuration_may_pass_through_a_state_that_no_model_can_have(kind: str) -> None:
    for library in libraries():
        config = getattr(library, f"{kind}Config")(hidden_size=320)
        config.update_from_string("num_attention_heads=5")
        config.update({"hidden_size": 321})
        config.hidden_size = 320
        assert (config.hidden_size, config.num_attention_heads) == (320, 5)
    with pytest.raises(ValueError, match="hidden_size 320 is not a multiple of num_attention_heads 12"):
        getattr(deit, f"{kind}Model")(getattr(deit, f"{kind}Config")(hidden_size=320))


def test_a_configuration_that_is_no_json_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    for library in libraries():
        with pytest.raises(OSError):  # noqa: PT011  # the texts differ
            library.DeiTConfig.from_pretrained(tmp_path)


def test_nothing_is_loaded_to_the_meta_device(saved: Path) -> None:
    for library in libraries():
        with torch.device("meta"), pytest.raises(RuntimeError, match="meta device context manager"):
            library.DeiTModel.from_pretrained(saved)


@pytest.mark.parametrize(
    "asked", [{"quantization_config": {"load_in_8bit": True}}, {"load_in_8bit": True}, {"load_in_4bit": True}], ids=str
)
def test_quantized_weights_are_refused_with_the_reason(saved: Path, asked: dict[str, Any]) -> None:
    for opener in (deit.DeiTForImageClassification, deit.AutoModelForImageClassification):
        with pytest.raises(
            ValueError, match=r"is refused\. Quantized weights are not supported\. Open .* quantize the model"
        ):
            opener.from_pretrained(saved, **asked)


def test_files_of_a_quantized_model_are_refused(saved: Path) -> None:
    values = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**values, "quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(ValueError, match=r"has a quantization_config\. Quantized weights are not supported"):
        deit.DeiTForImageClassification.from_pretrained(saved)


# --- configurations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CLASSES, "DeiTForImageClassificationWithTeacher", "DeiTForMaskedImageModeling"])
def test_a_configuration_of_transformers_is_taken(name: str, tiny_fields: dict[str, Any], tmp_path: Path) -> None:
    theirs = getattr(transformers, getattr(deit, name).config_class.__name__)(
        **tiny_fields, attn_implementation="eager", drop_path_rate=0.1
    )
    model = getattr(deit, name)(theirs)
    assert type(model.config) is getattr(deit, name).config_class
    assert (model.config.attn_implementation, model.config.drop_path_rate) == ("eager", 0.1)
    assert model.config.id2label == theirs.id2label
    model.save_pretrained(tmp_path)
    again = getattr(deit, name).from_pretrained(tmp_path, config=theirs)
    assert all(torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items())
    built = deit.AutoModelForImageClassification.from_config(theirs)
    assert built.config.hidden_size == theirs.hidden_size


def test_a_configuration_of_another_kind_is_refused(tiny_fields: dict[str, Any]) -> None:
    for other in (transformers.ViTConfig(**tiny_fields), transformers.BertConfig(), {"hidden_size": 32}, None):
        with pytest.raises(TypeError, match=f"DeiTModel needs a DeiTConfig. Received: {type(other).__name__}"):
            deit.DeiTModel(other)


@pytest.mark.parametrize("name", CLASSES)
def test_the_type_in_the_configuration_is_that_of_the_weights(
    name: str, tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    model_class = getattr(deit, name)
    model = model_class(model_class.config_class(**tiny_fields, dtype="float16"))
    assert model.config.dtype == model.dtype == torch.float32
    model.save_pretrained(tmp_path)
    for asked in (torch.bfloat16, "float16", "auto", None, torch.float64):
        opened = model_class.from_pretrained(tmp_path, dtype=asked)
        assert opened.config.dtype == opened.config.torch_dtype == opened.dtype
        assert opened.half().config.dtype == torch.float16
        assert opened.to(torch.bfloat16).base_model.config.dtype == torch.bfloat16
    theirs = getattr(transformers, name).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert theirs.config.dtype == model_class.from_pretrained(tmp_path, dtype=torch.bfloat16).config.dtype


def test_auto_classes_build_in_the_configured_type(tiny_fields: dict[str, Any]) -> None:
    for library in libraries():
        model = library.AutoModel.from_config(library.DeiTConfig(**tiny_fields, dtype="bfloat16"))
        assert model.dtype == model.config.dtype == torch.bfloat16
        assert library.AutoModel.from_config(library.DeiTConfig(**tiny_fields)).dtype == torch.float32


def test_a_model_and_its_configuration_say_what_they_were_read_from(saved: Path, tiny_fields: dict[str, Any]) -> None:
    for library in libraries():
        model = library.DeiTForImageClassification.from_pretrained(str(saved))
        assert (model.name_or_path, model.config.name_or_path) == (str(saved), str(saved))
        assert library.DeiTForImageClassification(library.DeiTConfig(**tiny_fields)).name_or_path == ""
        model = library.DeiTModel(library.DeiTConfig(**tiny_fields, name_or_path="me/model"))
        assert (model.name_or_path, model.config.name_or_path) == ("me/model", "me/model")
        values, rest = library.DeiTConfig.get_config_dict(str(saved), colour="red")
        assert (values["hidden_size"], rest) == (tiny_fields["hidden_size"], {"colour": "red"})
        assert model.config.get_text_config() is model.config
        assert {"hidden_size", "id2label", "dtype", "return_dict"} <= set(model.config)


def test_a_class_can_be_asked_whether_it_generates() -> None:
    for library in libraries():
        assert library.DeiTModel.can_generate() is False


def test_the_tables_of_classes_are_those_of_transformers() -> None:
    for table in ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING", "MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING"):
        for config in ("DeiTConfig", "ViTConfig"):
            theirs, ours = (getattr(library, table)[getattr(library, config)] for library in libraries())
            assert isinstance(ours, tuple) == isinstance(theirs, tuple)
            named = [[c.__name__ for c in (v if isinstance(v, tuple) else (v,))] for v in (theirs, ours)]
            assert named[0] == named[1]


def test_hidden_states_can_be_asked_for_by_their_numbers(saved: Path) -> None:
    model = deit.DeiTForImageClassification.from_pretrained(saved)
    whole = model(PIXELS, output_hidden_states=True).hidden_states
    for wanted in ([0, -1], [1], (2,)):
        found = model(PIXELS, output_hidden_states=wanted).hidden_states
        assert len(found) == len(whole) == 3
        for number, state in enumerate(found):
            assert (state is not None) == (number in {each % 3 for each in wanted})
            assert state is None or torch.equal(state, whole[number])
    with pytest.raises(IndexError):
        model(PIXELS, output_hidden_states=[3])


# --- transformers' own auto classes -------------------------------------------------------------------


@pytest.fixture
def registered() -> Iterator[Any]:
    """transformers' auto classes with ours in place of theirs, and as they were afterwards."""
    from transformers.models.auto import configuration_auto, modeling_auto

    mappings = (modeling_auto.MODEL_MAPPING, modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING)
    before = dict(configuration_auto.CONFIG_MAPPING._extra_content)
    transformers.AutoConfig.register("deit", deit.DeiTConfig, exist_ok=True)
    transformers.AutoModel.register(deit.DeiTConfig, deit.DeiTModel, exist_ok=True)
    transformers.AutoModelForImageClassification.register(
        deit.DeiTConfig, deit.DeiTForImageClassification, exist_ok=True
    )
    yield transformers
    configuration_auto.CONFIG_MAPPING._extra_content.clear()
    configuration_auto.CONFIG_MAPPING._extra_content.update(before)
    for mapping in mappings:
        for key in [key for key in mapping._extra_content if key.__module__.partition(".")[0] in ("deit", "tests")]:
            del mapping._extra_content[key]


def test_auto_classes_of_transformers_open_and_build_our_classes(registered: Any, saved: Path) -> None:
    config = registered.AutoConfig.from_pretrained(saved)
    assert type(config) is deit.DeiTConfig
    expected = deit.DeiTForImageClassification.from_pretrained(saved)(PIXELS).logits
    opened, info = registered.AutoModelForImageClassification.from_pretrained(
        saved, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False, output_loading_info=True
    )
    assert type(opened) is deit.DeiTForImageClassification
    assert opened.config.attn_implementation == "eager"
    assert not any(info.values())
    torch.testing.assert_close(opened(PIXELS).logits, expected)
    assert type(registered.AutoModel.from_pretrained(saved)) is deit.DeiTModel
    built = registered.AutoModelForImageClassification.from_config(
        config, dtype=torch.bfloat16, attn_implementation="eager"
    )
    assert type(built) is deit.DeiTForImageClassification
    assert (built.dtype, built.config.dtype, built.config.attn_implementation) == (torch.bfloat16,) * 2 + ("eager",)
    assert type(registered.AutoModel.from_config(config)) is deit.DeiTModel
    more = registered.AutoModelForImageClassification.from_pretrained(saved, num_labels=7, ignore_mismatched_sizes=True)
    assert more(PIXELS).logits.shape == (2, 7)
    with pytest.raises(TypeError, match="nonsense"):
        registered.AutoModel.from_pretrained(saved, nonsense=1)


def test_a_pipeline_of_transformers_finds_our_registered_classes(registered: Any, saved: Path) -> None:
    deit.DeiTImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False).save_pretrained(saved)
    classify = registered.pipeline("image-classification", model=str(saved))
    assert type(classify.model) is deit.DeiTForImageClassification
    from PIL import Image

    assert len(classify(Image.new("RGB", (20, 20)), top_k=2)) == 2


class OwnConfig(deit.DeiTConfig):
    model_type = "own-deit"


class OwnModel(deit.DeiTForImageClassification):
    config_class = OwnConfig


def test_a_subclass_with_a_model_type_of_its_own_goes_through_transformers(
    registered: Any, tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    registered.AutoConfig.register("own-deit", OwnConfig)
    registered.AutoModelForImageClassification.register(OwnConfig, OwnModel)
    model = OwnModel(OwnConfig(**tiny_fields, colour="red")).eval()
    model.save_pretrained(tmp_path)
    opened = registered.AutoModelForImageClassification.from_pretrained(tmp_path)
    assert (type(opened), type(opened.config), opened.config.colour) == (OwnModel, OwnConfig, "red")
    assert torch.equal(opened(PIXELS).logits, model(PIXELS).logits)
