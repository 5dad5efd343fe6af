"""SavedModels: the preprocessing in the graph has Pillow's bits, and nothing of this package is needed to serve."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from deit.core.config.config import DeiTConfig
from deit.core.processing.image_processor import DeiTImageProcessor, open_image_processor
from deit.keras.deit import (
    TFDeiTForImageClassification,
    TFDeiTForImageClassificationWithTeacher,
    TFDeiTModel,
)
from deit.keras.export import _answers, export_saved_model
from deit.keras.graph_preprocessing import preprocessing_in_graph

STUDENT = Path(os.environ["DEIT_KERAS_CASES"]) / "student"
ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
needs_tensorflow = pytest.mark.skipif(not ON_TENSORFLOW, reason="a SavedModel is written on TensorFlow")

# Run in a process where neither this package nor Keras can be imported.
SERVE = """
import json, sys
for name in ("deit", "keras", "torch", "PIL"):
    sys.modules[name] = None
import numpy as np, tensorflow as tf
folder, images = sys.argv[1:]
signatures = tf.saved_model.load(folder).signatures
with np.load(images) as arrays:
    answers = [signatures["serving_default"](images=tf.constant(a)) for a in arrays.values()]
print(json.dumps({
    "signatures": sorted(signatures),
    "labels": [np.char.decode(a["labels"].numpy().astype(bytes)).tolist() for a in answers],
    "scores": [a["scores"].numpy().tolist() for a in answers],
}))
"""


def noise(height: int, width: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def tiny(**fields: Any) -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    return TFDeiTForImageClassification(DeiTConfig(**{**sizes, "num_labels": 3, **fields}))


@needs_tensorflow
def test_a_served_model_needs_tensorflow_alone_and_answers_as_the_model(tmp_path):
    folder = export_saved_model(STUDENT, tmp_path / "served" / "1", top_k=3)
    batches = [noise(33, 41), noise(16, 16, 1), noise(9, 60)]
    np.savez(tmp_path / "images.npz", *batches)
    result = subprocess.run(
        [sys.executable, "-c", SERVE, folder, tmp_path / "images.npz"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    served = json.loads(result.stdout)
    assert served["signatures"] == ["pixels", "serving_default"]
    model = TFDeiTForImageClassificationWithTeacher.from_pretrained(STUDENT)
    processor = open_image_processor(STUDENT)
    for batch, labels, scores in zip(batches, served["labels"], served["scores"], strict=True):
        pixels = processor(list(batch), return_tensors="np").pixel_values
        wanted = keras.ops.convert_to_numpy(keras.ops.softmax(model(pixels).logits))
        order = np.argsort(-wanted, axis=1)[:, :3]
        assert labels == [[model.config.id2label[i] for i in row] for row in order]
        assert np.array(scores) == pytest.approx(np.take_along_axis(wanted, order, axis=1), abs=1e-5)


@needs_tensorflow
@pytest.mark.parametrize(
    "options",
    [
        {"size": {"shortest_edge": 20}, "crop_size": 16},
        {"size": {"shortest_edge": 40, "longest_edge": 50}, "crop_size": 33},
        {"size": {"max_height": 30, "max_width": 25}, "crop_size": (24, 40)},
        {"do_resize": False, "crop_size": 33, "image_mean": [0.4, 0.5, 0.6]},
        {"do_normalize": False, "do_rescale": False, "do_pad": True, "pad_size": 30, "crop_size": 28},
        *({"size": (30, 41), "do_center_crop": False, "resample": number} for number in (0, 1, 2, 4, 5)),
    ],
    ids=str,
)
def test_the_preprocessing_in_the_graph_has_the_bits_of_the_processor(options):
    import tensorflow as tf

    processor = DeiTImageProcessor(**options)
    signature = [tf.TensorSpec((None, None, None, 3), tf.uint8)]
    for data_format in ("channels_first", "channels_last")[: 2 if options.get("crop_size") == 16 else 1]:
        process = tf.function(preprocessing_in_graph(processor, data_format), input_signature=signature)
        for height, width in ((17, 23), (64, 48), (41, 30), (30, 41), (150, 200), (200, 31)):
            images = noise(height, width)
            given = [Image.fromarray(image) for image in images]
            wanted = processor(given, return_tensors="np", data_format=data_format).pixel_values
            assert np.array_equal(process(images).numpy(), wanted)


@needs_tensorflow
def test_many_labels_and_numbers_have_scores_of_their_own(tmp_path):
    import tensorflow as tf

    processor, images = DeiTImageProcessor(size=16, crop_size=16), noise(20, 20)
    pixels = processor(list(images), return_tensors="np").pixel_values
    model = tiny(problem_type="multi_label_classification")
    folder = export_saved_model(model, tmp_path / "served", processor=processor, top_k=None)
    signatures = tf.saved_model.load(str(folder)).signatures
    logits = signatures["pixels"](pixels=tf.constant(pixels))["logits"].numpy()
    assert logits == pytest.approx(model(pixels).logits.numpy(), abs=1e-6)
    numbers = _answers(tf, tiny(problem_type="regression"), None)(tf.constant(logits))
    for answer, wanted, order in (
        (signatures["serving_default"](images=tf.constant(images)), tf.sigmoid(logits).numpy(), np.argsort(-logits)),
        (numbers, logits, np.tile(np.arange(3), (2, 1))),
    ):
        assert answer["scores"].numpy() == pytest.approx(np.take_along_axis(wanted, order, axis=1), abs=1e-6)
        assert answer["labels"].numpy().tolist() == [[f"LABEL_{i}".encode() for i in row] for row in order]


@needs_tensorflow
def test_a_model_directory_holds_a_saved_model_when_asked(tmp_path):
    import tensorflow as tf

    model = tiny()
    for _ in range(2):  # over the one before too
        model.save_pretrained(tmp_path, saved_model=True, version=3)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "saved_model"}
    served = tf.saved_model.load(str(tmp_path / "saved_model" / "3"))
    pixels = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype("float32")
    assert served.serve(pixels)["logits"].numpy() == pytest.approx(model(pixels).logits.numpy(), abs=1e-6)


@needs_tensorflow
def test_what_cannot_be_exported_is_refused_before_anything_is_written(tmp_path):
    processor = DeiTImageProcessor(size=16, crop_size=16)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    base = TFDeiTModel(tiny().config)
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda f: export_saved_model(tiny(), f), ValueError, "Which preprocessing"),
        (lambda f: export_saved_model(base, f, processor=processor), TypeError, "must be a Keras classifier"),
        (lambda f: export_saved_model(plain, f, processor=processor), TypeError, "Received: Sequential"),
        (lambda f: export_saved_model(tiny(num_labels=0), f, processor=processor), ValueError, "has no classifier"),
        (
            lambda f: export_saved_model(tiny(), f, processor=DeiTImageProcessor()),
            ValueError,
            "gives images of .224, 224",
        ),
        (lambda f: export_saved_model(tiny(), f, processor=processor, top_k=0), ValueError, "top_k must be at least 1"),
        (lambda f: export_saved_model(tmp_path, f), FileNotFoundError, "preprocessor_config.json"),
        (lambda f: export_saved_model(tiny(), f.parent / "full", processor=processor), FileExistsError, "holds files"),
    ]
    for export, error, message in cases:
        with pytest.raises(error, match=message):
            export(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


@pytest.mark.skipif(ON_TENSORFLOW, reason="the other backends")
def test_on_another_backend_the_export_says_what_to_do(tmp_path):
    with pytest.raises(RuntimeError, match="KERAS_BACKEND=tensorflow"):
        export_saved_model(STUDENT, tmp_path / "served")
