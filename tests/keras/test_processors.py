"""The image processors' tensors of TensorFlow and JAX, made by the real packages."""

from __future__ import annotations

import os
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from deit.core.processing.image_processor import DeiTImageProcessor, ViTImageProcessor
from tests.keras.samples import ON_ARRAYS, ONE, PILLOW, REFUSED, SAMPLES

BACKEND = keras.backend.backend()
PACKAGES = {"tf": "tensorflow", "jax": "jax"}


def images() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for _ in range(2)]


@pytest.mark.skipif(BACKEND == "torch", reason="TensorFlow and torchvision in one process abort")
@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("processor", [DeiTImageProcessor(size=18, crop_size=16), ViTImageProcessor(size=16)])
def test_tensors_equal_the_arrays(name, processor):
    package = pytest.importorskip(PACKAGES[name])
    for options in ({}, {"data_format": "channels_last"}, {"do_rescale": False, "do_normalize": False}):
        tensor = processor(images(), return_tensors=name, **options).pixel_values
        array = processor(images(), return_tensors="np", **options).pixel_values
        assert isinstance(tensor, package.Tensor if name == "tf" else package.Array)
        assert np.array_equal(np.asarray(tensor), array)
        assert np.asarray(tensor).dtype == array.dtype


@pytest.mark.skipif(BACKEND == "torch", reason="TensorFlow and torchvision in one process abort")
@pytest.mark.parametrize("name", PACKAGES)
def test_tensors_are_images_too(name):
    package = pytest.importorskip(PACKAGES[name])
    processor = DeiTImageProcessor(size=18, crop_size=16)
    batch = np.stack([np.asarray(image) for image in images()])
    tensor = package.constant(batch) if name == "tf" else package.numpy.asarray(batch)
    wanted = processor(images(), return_tensors="np").pixel_values
    for given in (tensor, [tensor[0], tensor[1]]):
        assert np.array_equal(processor(given, return_tensors="np").pixel_values, wanted)


def test_a_model_takes_the_tensors_of_its_own_backend():
    if BACKEND == "torch":
        pytest.skip("the tensors of PyTorch are tested with its own models")
    from deit.keras.deit import TFDeiTForImageClassificationWithTeacher

    model = TFDeiTForImageClassificationWithTeacher.from_pretrained(os.environ["DEIT_KERAS_CASES"] + "/student")
    processor = DeiTImageProcessor(size=18, crop_size=16)
    name = {"tensorflow": "tf", "jax": "jax"}[BACKEND]
    three = [*images(), images()[0]]  # a batch that other tests compile too
    logits = [model(**processor(three, return_tensors=kind)).logits for kind in ("np", name)]
    assert np.array_equal(np.asarray(logits[0]), np.asarray(logits[1]))


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch is there: tests/models/test_import_orders.py")
def test_the_samples_of_the_documentation_run_without_pytorch():
    place = str(Path(os.environ["DEIT_KERAS_CASES"]) / "orders")
    code = PILLOW + ONE + SAMPLES if BACKEND == "tensorflow" else ON_ARRAYS
    exec(compile(code + REFUSED, "the samples", "exec"), {"place": place, "np": np})
