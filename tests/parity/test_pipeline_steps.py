"""The steps of a pipeline, called by themselves and replaced, its files and its class, against transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deit
from tests.parity.processor_cases import IMAGENET, rgb

transformers = pytest.importorskip("transformers")

CLASSIFICATION, FEATURES = "image-classification", "image-feature-extraction"
IMAGES = [rgb(30, 41), rgb(20, 21), rgb(33, 30)]


@pytest.fixture
def folder(tiny_fields, redraw, tmp_path: Path) -> Callable[..., Path]:
    """Writes a model directory with the given class of transformers and returns where it is."""

    def make(name: str) -> Path:
        config = getattr(deit, name).config_class(**tiny_fields)
        redraw(getattr(deit, name)(config)).save_pretrained(tmp_path / "model")
        deit.DeiTImageProcessorFast(size=20, crop_size=16, **IMAGENET).save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return make


def both(task: str, place: Path, **classes: Any) -> list[Any]:
    return [
        library.pipeline(
            task, model=str(place), device="cpu", use_fast=True, **({"pipeline_class": own} if own else {})
        )
        for library, own in ((deit, classes.get("ours")), (transformers, classes.get("theirs")))
    ]


def assert_close(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for name in theirs:
            assert_close(ours[name], theirs[name])
    elif isinstance(theirs, str) or theirs is None:
        assert ours == theirs
    elif isinstance(theirs, list) and theirs and isinstance(theirs[0], (dict, list)):
        assert len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            assert_close(our, their)
    else:
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=1e-5)


@pytest.mark.parametrize("task", [CLASSIFICATION, FEATURES])
def test_each_step_gives_what_it_gives_in_transformers(task, folder):
    place = folder("DeiTForImageClassification" if task == CLASSIFICATION else "DeiTModel")
    ours, theirs = both(task, place)
    inputs, their_inputs = ours.preprocess(IMAGES[0]), theirs.preprocess(IMAGES[0])
    assert torch.equal(inputs["pixel_values"], their_inputs["pixel_values"])
    output, their_output = ours.forward(inputs), theirs.forward(their_inputs)
    assert_close(dict(output), dict(their_output))
    assert not output[0].requires_grad
    assert_close(ours.postprocess(output), theirs.postprocess(their_output))
    finish = {"top_k": 2, "function_to_apply": "sigmoid"} if task == CLASSIFICATION else {"pool": True}
    their_finish = dict(finish)
    if task == CLASSIFICATION:
        functions = transformers.pipelines.image_classification.ClassificationFunction
        their_finish["function_to_apply"] = functions.SIGMOID
    assert_close(ours.postprocess(output, **finish), theirs.postprocess(their_output, **their_finish))
    assert_close(ours.predict(IMAGES[:1]), theirs(IMAGES[:1]))
    assert_close(ours.transform(IMAGES[0]), theirs(IMAGES[0]))


def named(base: Any) -> Any:
    """A pipeline of a user's, after the documentation of transformers: each step is replaced, and one parameter new."""

    class Mine(base):
        def _sanitize_parameters(self, shift=None, **kwargs):
            process, _, finish = super()._sanitize_parameters(**kwargs)
            return process, ({} if shift is None else {"shift": shift}), finish

        def preprocess(self, image, **kwargs):
            inputs = super().preprocess(image.rotate(90), **kwargs)
            return {"pixel_values": inputs["pixel_values"] + 0.5, "size": image.size}

        def _forward(self, model_inputs, shift=0.0):
            output = self.model(pixel_values=model_inputs["pixel_values"] + shift)
            return {"logits": output["logits"], "size": model_inputs["size"]}

        def postprocess(self, model_outputs, **kwargs):
            return {"best": super().postprocess(model_outputs, **kwargs), "size": list(model_outputs["size"])}

    return Mine


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_pipeline_with_steps_of_its_own_answers_as_in_transformers(folder, batch_size):
    place = folder("DeiTForImageClassification")
    ours, theirs = both(
        CLASSIFICATION,
        place,
        ours=named(deit.ImageClassificationPipeline),
        theirs=named(transformers.ImageClassificationPipeline),
    )
    assert type(ours).__name__ == type(theirs).__name__ == "Mine"
    for call in ({}, {"shift": 0.25}, {"top_k": 1}):
        one_by_one = theirs(IMAGES, **call)
        assert_close(ours(IMAGES, batch_size=batch_size, **call), one_by_one)
        assert_close(list(ours(iter(IMAGES), batch_size=batch_size, **call)), one_by_one)
        assert_close(ours(IMAGES[0], **call), one_by_one[0])
    assert_close(ours(IMAGES[0]), theirs(IMAGES[0]))


def test_a_step_replaced_on_an_instance_or_left_without_arguments_is_called(folder):
    ours, theirs = both(CLASSIFICATION, folder("DeiTForImageClassification"))
    for classify in (ours, theirs):
        classify.postprocess = lambda output: output["logits"].sum().item()
    assert_close(ours(IMAGES, batch_size=2), theirs(IMAGES))
    with pytest.raises(TypeError):
        ours(IMAGES[0], top_k=1)


def test_a_pipeline_is_saved_and_opens_on_both_sides(folder, tmp_path):
    place = folder("DeiTForImageClassification")
    ours, theirs = both(CLASSIFICATION, place)
    expected = theirs(IMAGES)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(str(tmp_path / "theirs"))
    for written in ("ours", "theirs"):
        for opened in both(CLASSIFICATION, tmp_path / written):
            assert_close(opened(IMAGES), expected)
    ours.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    assert (tmp_path / "pickled" / "pytorch_model.bin").exists()


def test_the_class_says_the_task_and_must_be_one_of_ours(folder):
    place = folder("DeiTForImageClassification")

    class Mine(deit.ImageFeatureExtractionPipeline):
        pass

    made = deit.pipeline(model=place, pipeline_class=Mine)
    assert (type(made), made.task, type(made.model)) == (Mine, FEATURES, deit.DeiTModel)
    with pytest.raises(ValueError, match="pipeline_class must be a subclass of one of deit's"):
        deit.pipeline(model=place, pipeline_class=transformers.ImageClassificationPipeline)


def test_a_pipeline_of_transformers_takes_our_model_and_processor(folder):
    place = folder("DeiTForImageClassification")
    expected = deit.pipeline(model=place, device="cpu", use_fast=True)(IMAGES)
    model = deit.DeiTForImageClassification.from_pretrained(place)
    processor = deit.DeiTImageProcessorFast.from_pretrained(place)
    theirs = transformers.ImageClassificationPipeline(model=model, image_processor=processor, device="cpu")
    assert_close(theirs(IMAGES), expected)
    assert_close(theirs(IMAGES, batch_size=3), expected)
    by_name = transformers.pipeline(CLASSIFICATION, model=model, image_processor=processor, device="cpu")
    assert_close(by_name(IMAGES), expected)
