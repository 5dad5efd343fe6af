"""Pipelines take the loop of `Predictor`: the same numbers, in threads, on a packed model."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

import deit
from deit.inference.engines.auto_engine import AutoEngine
from deit.inference.image_pipeline import ImagePipeline
from deit.inference.pipelines import ImageClassificationPipeline
from deit.inference.predictor import Predictor
from tests.data.pictures import fill


@pytest.fixture
def files(tmp_path):
    return sorted(str(file) for file in fill(tmp_path / "photos", 3).rglob("*.png"))


@pytest.mark.parametrize("size", [1, 4, 32])
def test_a_folder_has_the_very_scores_of_the_predictor(deit_directory, files, size):
    folder = deit_directory()
    told = deit.pipeline("image-classification", folder, device="cpu", batch_size=size, use_fast=False)(files)
    expected = Predictor.open(folder).classify(files, batch_size=size)
    assert [[(e["label"], e["score"]) for e in row] for row in told] == [
        [(p.label, p.score) for p in row] for row in expected
    ]


def test_a_model_that_the_pipeline_opens_on_the_cpu_is_packed_like_that_of_the_predictor(deit_directory, monkeypatch):
    packed = []
    monkeypatch.setattr(deit.DeiTForImageClassificationWithTeacher, "pack_weights", lambda model: packed.append(model))
    folder = deit_directory()
    pipe = deit.pipeline(model=folder, device="cpu")
    assert packed == [pipe.model]
    deit.pipeline("image-classification", pipe.model, image_processor=pipe.image_processor)
    assert len(packed) == 1, "a model that is passed belongs to the caller"


def test_files_are_preprocessed_in_threads_unless_a_step_is_replaced(deit_directory, files, monkeypatch):
    seen = set()
    original = deit.DeiTImageProcessor._pixels

    def pixels(self, images):
        seen.add(threading.current_thread() is threading.main_thread())
        return original(self, images)

    class Replaced(ImageClassificationPipeline):
        def preprocess(self, image, **options):
            return super().preprocess(image, **options)

    monkeypatch.setattr(deit.DeiTImageProcessor, "_pixels", pixels)
    folder = deit_directory()
    pipe = deit.pipeline(model=folder, device="cpu", batch_size=2, use_fast=False)
    in_threads = pipe(files)
    assert seen == {False}
    seen.clear()
    stepwise = deit.pipeline(model=folder, device="cpu", batch_size=2, use_fast=False, pipeline_class=Replaced)(files)
    assert seen == {True}
    assert stepwise == in_threads


def test_pixels_of_different_sizes_still_go_one_by_one(deit_directory, files):
    pipe = deit.pipeline(model=deit_directory(), device="cpu", batch_size=2, use_fast=False)
    options = {"do_center_crop": False, "size": {"shortest_edge": 16}}
    pipe.image_processor = deit.DeiTImageProcessor(**options)
    pipe._forward = lambda inputs: {"logits": inputs["pixel_values"].mean((2, 3)).repeat(1, 2)[:, :5]}
    assert [row[0]["label"] for row in pipe(files)] == [pipe(file)[0]["label"] for file in files]


def test_the_best_classes_come_first_and_equal_ones_in_their_order(deit_directory):
    import torch

    pipe = deit.pipeline(model=deit_directory(), device="cpu")
    assert isinstance(pipe, ImagePipeline)
    logits = torch.tensor([[1.0, 3.0, 1.0, 3.0, 0.0]])
    told = pipe.postprocess({"logits": logits}, top_k=4)
    names = [pipe.model.config.id2label[i] for i in (1, 3, 0, 2)]
    assert [entry["label"] for entry in told] == names


class Fixed:
    """An engine whose answers can be told from those of the model."""

    device, precision, name = "cpu", "fp32", "fixed"
    contract = None

    def __call__(self, pixels):
        return {"average": np.tile(np.array([0, 0, 0, 9, 0], np.float32), (len(pixels), 1))}


@pytest.fixture
def beside_an_engine(deit_directory, monkeypatch):
    """A pipeline with another engine."""
    monkeypatch.delenv("DEIT_ENGINE", raising=False)
    pipe = deit.pipeline("image-classification", deit_directory(), device="cpu", batch_size=2)
    assert isinstance(pipe._engine, AutoEngine)
    pipe._engine = Fixed()
    return pipe


def best_of(pipe, files):
    third = pipe._model.config.id2label[3]
    return [row[0]["label"] == third and row[0]["score"] > 0.99 for row in pipe(files)]


def test_a_classifier_opened_by_its_path_is_answered_for_by_an_engine(beside_an_engine, files):
    assert all(best_of(beside_an_engine, files))
    assert beside_an_engine(files[0])[0]["score"] > 0.99, "one image too"


def take_the_model(pipe):
    return pipe.model


def set_a_model(pipe):
    pipe.model = pipe._model


def replace_a_step(pipe):
    own = pipe.forward
    pipe.forward = lambda *given, **more: own(*given, **more)


@pytest.mark.parametrize("change", [take_the_model, set_a_model, replace_a_step])
def test_the_engine_steps_aside_for_whoever_may_change_an_answer(beside_an_engine, files, change):
    change(beside_an_engine)
    assert not any(best_of(beside_an_engine, files))


def test_only_a_float32_classifier_that_the_pipeline_opens_has_an_engine(deit_directory, monkeypatch):
    class Own(ImageClassificationPipeline):
        pass

    monkeypatch.delenv("DEIT_ENGINE", raising=False)
    folder = deit_directory()
    pipe = deit.pipeline(model=folder, device="cpu")
    assert pipe._engine is not None
    others = [
        deit.pipeline(model=folder, device="cpu", dtype=torch.bfloat16),
        deit.pipeline(model=folder, device="cpu", pipeline_class=Own),
        deit.pipeline("image-feature-extraction", folder, device="cpu"),
        deit.pipeline("image-classification", pipe.model, image_processor=pipe.image_processor),
    ]
    monkeypatch.setenv("DEIT_ENGINE", "torch")
    others.append(deit.pipeline(model=folder, device="cpu"))
    assert [other._engine for other in others] == [None] * 5
