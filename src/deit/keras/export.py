"""Exports a SavedModel that maps 8-bit images to labels and scores; serving needs only TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras

from deit.core.config.config_file import read_config
from deit.core.errors import UserError, WrongStateError, WrongTypeError
from deit.core.file_names import CONFIG_NAME
from deit.core.files import replace_folder_content
from deit.core.labels import names_in_order
from deit.core.model_directory import read_image_processor
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.core.scores.metrics import MULTI_LABEL, REGRESSION
from deit.keras.deit import TFDeiTForImageClassification, TFDeiTForImageClassificationWithTeacher
from deit.keras.files import torch_class_name
from deit.keras.graph_preprocessing import preprocessing_in_graph
from deit.keras.pretrained import KerasPreTrainedModel
from deit.keras.vit import TFViTForImageClassification

# Classifiers by the name of their PyTorch class, which `config.json` holds.
_CLASSIFIERS: dict[str, type[KerasPreTrainedModel]] = {
    torch_class_name(model_class.__name__): model_class
    for model_class in (
        TFDeiTForImageClassification,
        TFDeiTForImageClassificationWithTeacher,
        TFViTForImageClassification,
    )
}


def export_saved_model(
    model: Any,
    folder: str | os.PathLike[str],
    *,
    processor: DeiTImageProcessor | None = None,
    top_k: int | None = 5,
) -> Path:
    """Writes a SavedModel that TensorFlow and TensorFlow Serving open without Keras or this package.

    The SavedModel has two signatures:

    * "serving_default": `images`, uint8 (B, H, W, 3) of any size, all of one size in a batch; to `labels`, strings
      (B, k), and `scores`, float32 (B, k), best first. The graph contains the preprocessing, bit for bit that of the
      processor; rounding in the network changes scores by about 1e-6.
    * "pixels": `pixels`, float32 (B, 3, H, W) as the processor returns them, or (B, H, W, 3) for a model whose data
      format is channels last; to `logits`, float32 (B, K).

    Scores are softmax probabilities; sigmoid probabilities for multi-label models; the raw outputs, in the order of
    the model, for regressions.

    Args:
        model: A Keras classifier of this package, or a model directory.
        folder: A new or empty folder. An error leaves it empty.
        processor: Preprocessing of the weights; None reads it from the model directory.
        top_k: Number of labels for each image, at most the number of classes; None returns all.

    Returns:
        The folder.

    Raises:
        FileExistsError: `folder` already holds files.
        FileNotFoundError: The model directory is incomplete.
        ModuleNotFoundError: TensorFlow or Keras is not installed.
        RuntimeError: Keras runs on another backend than TensorFlow.
        TypeError: The model is not a Keras classifier of this package.
        ValueError: The processor does not fit the model, or `top_k` is smaller than 1.

    Examples:
        >>> export_saved_model("runs/pets", "served/pets/1")                                    # doctest: +SKIP
        >>> served = tf.saved_model.load("served/pets/1").signatures["serving_default"]         # doctest: +SKIP
        >>> served(images=tf.io.decode_jpeg(tf.io.read_file("cat.jpg"))[None])["labels"][0, 0]  # doctest: +SKIP
    """
    _require_tensorflow()
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k must be at least 1, or None for all. Received: {top_k}.")
    place = Path(folder)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise FileExistsError(f"{place} holds files already. Pass a new folder.")
    if isinstance(model, (str, os.PathLike)):
        processor = processor or read_image_processor(Path(model))
        model = _open_classifier(Path(model))
    _check(model, processor)
    assert processor is not None
    with replace_folder_content(place) as temporary:
        _write(model, processor, temporary, top_k)
    return place


def _require_tensorflow() -> None:
    if keras.backend.backend() != "tensorflow":
        raise WrongStateError(
            f"The export of a SavedModel needs TensorFlow. Keras runs on {keras.backend.backend()!r} here. Save "
            "the model with save_pretrained, and export it in a process with KERAS_BACKEND=tensorflow."
        )


def _open_classifier(folder: Path) -> Any:
    names = read_config(folder).get("architectures") or []
    known = [name for name in names if name in _CLASSIFIERS]
    if not known:
        raise UserError(f"{folder} holds {names}, which is no image classifier. Known: {', '.join(_CLASSIFIERS)}.")
    return _CLASSIFIERS[known[0]].from_pretrained(folder)


def _check(model: Any, processor: DeiTImageProcessor | None) -> None:
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "data_format") or type(model) not in _CLASSIFIERS.values():
        raise WrongTypeError(
            f"model must be a Keras classifier of this package, or a model directory. Received: {type(model).__name__}."
        )
    if config.num_labels == 0:
        raise UserError("This model has no classifier (num_labels is 0).")
    if processor is None:
        raise UserError(
            f"Which preprocessing? Pass processor=, or a model directory with {CONFIG_NAME} and its preprocessing."
        )
    size = processor.output_size
    if processor.do_pad and processor.pad_size is not None:
        size = processor.pad_size["height"], processor.pad_size["width"]
    if (processor.do_resize or processor.do_center_crop) and size != config.grid_image_size:
        raise UserError(f"The processor gives images of {size}, and the model takes {config.grid_image_size}.")


def _write(model: Any, processor: DeiTImageProcessor, folder: Path, top_k: int | None) -> None:
    import tensorflow as tf

    height, width = model.config.grid_image_size
    shape = (None, 3, height, width) if model.data_format == "channels_first" else (None, height, width, 3)
    preprocess = preprocessing_in_graph(processor, model.data_format)
    answer = _answers(tf, model, top_k)

    def logits_of(pixels: Any) -> Any:
        output = model(tf.ensure_shape(pixels, shape), training=False, return_dict=True)
        return tf.cast(output["logits"], tf.float32)

    def serve(images: Any) -> Mapping[str, Any]:
        return answer(logits_of(preprocess(images)))

    def serve_pixels(pixels: Any) -> Mapping[str, Any]:
        return {"logits": logits_of(pixels)}

    archive = keras.export.ExportArchive()
    archive.track(model)
    images = tf.TensorSpec((None, None, None, 3), tf.uint8, name="images")
    archive.add_endpoint("serving_default", serve, input_signature=[images])
    archive.add_endpoint("pixels", serve_pixels, input_signature=[tf.TensorSpec(shape, tf.float32, name="pixels")])
    archive.write_out(str(folder), verbose=False)


def _answers(tf: Any, model: Any, top_k: int | None) -> Callable[[Any], Mapping[str, Any]]:
    """Returns the function from logits (B, K) to labels and scores (B, k)."""
    config = model.config
    names = names_in_order(config.id2label)
    count = len(names) if top_k is None else min(top_k, len(names))
    problem = config.problem_type or (REGRESSION if len(names) == 1 else None)

    def answer(logits: Any) -> Mapping[str, Any]:
        labels = tf.constant(names)
        if problem == REGRESSION:
            return {"labels": tf.tile(labels[None], [tf.shape(logits)[0], 1]), "scores": logits}
        scores = tf.sigmoid(logits) if problem == MULTI_LABEL else tf.nn.softmax(logits)
        best = tf.math.top_k(scores, k=count)
        return {"labels": tf.gather(labels, best.indices), "scores": best.values}

    return answer
