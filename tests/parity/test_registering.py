"""Classes of a user's own, made known to our Auto classes with the words of transformers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

import deit
from deit.models import auto, auto_openers
from tests.parity.processor_cases import IMAGENET, rgb

transformers = pytest.importorskip("transformers")


class MyConfig(deit.DeiTConfig):
    model_type = "my-deit"


class MyModel(deit.DeiTModel):
    config_class = MyConfig


class MyClassifier(deit.DeiTForImageClassification):
    config_class = MyConfig


class MyProcessor(deit.DeiTImageProcessor):
    def normalize(self, image: Any, mean: Any, std: Any, **_: Any) -> Any:
        return super().normalize(image, mean, std) * 0.5


class MyProcessorFast(deit.DeiTImageProcessorFast):
    pass


@pytest.fixture(autouse=True)
def nothing_stays_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (auto, "_OF_USERS"),
        (auto_openers, "_CONFIGURATIONS_OF_USERS"),
        (auto_openers, "_PROCESSORS_OF_USERS"),
        (auto_openers, "_WHOLE_PROCESSORS_OF_USERS"),
    ):
        monkeypatch.setattr(module, name, {})


def register() -> None:
    deit.AutoConfig.register("my-deit", MyConfig)
    deit.AutoModel.register(MyConfig, MyModel)
    deit.AutoModelForImageClassification.register(MyConfig, MyClassifier)
    deit.AutoImageProcessor.register(
        MyConfig, slow_image_processor_class=MyProcessor, fast_image_processor_class=MyProcessorFast
    )


def test_a_type_of_a_users_own_is_opened_by_every_auto_class(tiny_fields, redraw, tmp_path):
    model = redraw(MyClassifier(MyConfig(**tiny_fields))).eval()
    model.save_pretrained(tmp_path)
    MyProcessor(size=20, crop_size=16, **IMAGENET).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"Unknown model type 'my-deit'.* AutoConfig.register and AutoModel.register"):
        deit.AutoModelForImageClassification.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is of the type 'MyProcessor'"):
        deit.AutoImageProcessor.from_pretrained(tmp_path)
    register()
    assert type(deit.AutoConfig.from_pretrained(tmp_path)) is MyConfig
    assert type(deit.AutoConfig.for_model("my-deit")) is MyConfig
    opened = deit.AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(opened) is MyClassifier
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(opened(pixels).logits, model(pixels).logits)
    assert type(deit.AutoModelForImageClassification.from_config(MyConfig(**tiny_fields))) is MyClassifier
    assert type(deit.AutoModel.from_pretrained(tmp_path)) is MyModel
    with pytest.raises(ValueError, match="No class for masked image modeling is registered for 'my-deit'"):
        deit.AutoModelForMaskedImageModeling.from_pretrained(tmp_path)
    for choice, expected in (
        ({"use_fast": False}, MyProcessor),
        ({"backend": "pil"}, MyProcessor),
        ({"use_fast": True}, MyProcessorFast),
    ):
        assert type(deit.AutoImageProcessor.from_pretrained(tmp_path, **choice)) is expected
        assert type(deit.AutoProcessor.from_pretrained(tmp_path, **choice)) is expected
    answer = deit.pipeline(model=tmp_path, use_fast=False, device="cpu")(rgb(30, 41))
    prepared = MyProcessor(size=20, crop_size=16, **IMAGENET)(rgb(30, 41), return_tensors="pt").pixel_values
    with torch.no_grad():
        scores = model(prepared).logits.softmax(-1)[0]
    assert answer[0]["score"] == pytest.approx(float(scores.max()), abs=1e-6)


def test_what_is_known_is_not_replaced_unasked_as_in_transformers():
    register()
    for attempt in (
        lambda **more: deit.AutoConfig.register("my-deit", MyConfig, **more),
        lambda **more: deit.AutoModel.register(MyConfig, MyModel, **more),
        lambda **more: deit.AutoImageProcessor.register(MyConfig, MyProcessor, **more),
        lambda **more: deit.AutoConfig.register("deit", deit.DeiTConfig, **more),
        lambda **more: deit.AutoModel.register(deit.DeiTConfig, deit.DeiTModel, **more),
    ):
        with pytest.raises(ValueError, match="is known already"):
            attempt()
        attempt(exist_ok=True)
    for attempt in (
        lambda: transformers.AutoConfig.register("deit", transformers.DeiTConfig),
        lambda: transformers.AutoModel.register(transformers.DeiTConfig, transformers.DeiTModel),
    ):
        with pytest.raises(ValueError, match="already used"):
            attempt()


@pytest.mark.parametrize("library", [deit, transformers], ids=["deit", "transformers"])
def test_what_does_not_belong_together_is_refused_as_in_transformers(library):
    if library is deit:
        config, model = MyConfig, deit.DeiTModel
    else:
        config, model = type("C", (transformers.DeiTConfig,), {"model_type": "my-deit"}), transformers.DeiTModel
    with pytest.raises(ValueError, match="model_type"):
        library.AutoConfig.register("another", config)
    with pytest.raises(ValueError, match="config_class"):
        library.AutoModel.register(config, model)
    with pytest.raises(ValueError, match=r"(?i)class"):
        library.AutoImageProcessor.register(config)


def test_a_replaced_class_of_a_known_type_is_taken(tiny_fields, redraw, tmp_path):
    class Loud(deit.DeiTForImageClassification):
        pass

    redraw(deit.DeiTForImageClassification(deit.DeiTConfig(**tiny_fields))).save_pretrained(tmp_path)
    deit.AutoModelForImageClassification.register(deit.DeiTConfig, Loud, exist_ok=True)
    assert type(deit.AutoModelForImageClassification.from_pretrained(tmp_path)) is Loud


# --- AutoProcessor ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["DeiT", "ViT"])
def test_the_processor_of_a_checkpoint_is_its_image_processor_as_in_transformers(name, tiny_fields, tmp_path):
    getattr(deit, f"{name}Config")(**tiny_fields).save_pretrained(tmp_path)
    getattr(deit, f"{name}ImageProcessor")(size=20, **IMAGENET).save_pretrained(tmp_path)
    theirs = transformers.AutoProcessor.from_pretrained(tmp_path, use_fast=True)
    ours = deit.AutoProcessor.from_pretrained(tmp_path, use_fast=True)
    assert type(theirs).__name__ == type(ours).__name__.removesuffix("Fast") == f"{name}ImageProcessor"
    arguments = {"images": [rgb(30, 41)], "return_tensors": "np"}
    assert np.array_equal(ours(**arguments)["pixel_values"], theirs(**arguments)["pixel_values"])
    assert deit.AutoProcessor.from_pretrained(tmp_path, do_resize=False, use_fast=False).do_resize is False


def test_a_processor_of_several_parts_is_refused_with_the_way_out(tiny_fields, tmp_path):
    deit.DeiTConfig(**tiny_fields).save_pretrained(tmp_path)
    values = deit.DeiTImageProcessor(size=20).to_dict()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**values, "processor_class": "TrOCRProcessor"}))
    with pytest.raises(ValueError, match=r"belongs to a TrOCRProcessor, .* AutoImageProcessor opens its preprocessing"):
        deit.AutoProcessor.from_pretrained(tmp_path)
    assert deit.AutoImageProcessor.from_pretrained(tmp_path, use_fast=False).size == {"height": 20, "width": 20}


def test_a_whole_processor_of_a_users_own_is_opened(tiny_fields, tmp_path):
    class Whole:
        @classmethod
        def from_pretrained(cls, path: Any, **kwargs: Any) -> Any:
            return path, kwargs

    MyConfig(**tiny_fields).save_pretrained(tmp_path)
    MyProcessor().save_pretrained(tmp_path)
    register()
    deit.AutoProcessor.register(MyConfig, Whole)
    assert deit.AutoProcessor.from_pretrained(tmp_path, a=1) == (tmp_path, {"a": 1})
