"""Training with Keras: the losses, rates and steps of PyTorch, every kind of data, a teacher that stays as it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from deit.core.config.config import DeiTConfig, ViTConfig
from deit.core.processing.image_processor import DeiTImageProcessor
from deit.keras.deit import (
    TFDeiTForImageClassification,
    TFDeiTForImageClassificationWithTeacher,
    TFDeiTForMaskedImageModeling,
)
from deit.keras.distillation import KerasDistillation
from deit.keras.optimization import WarmupCosine, keras_adamw
from deit.keras.teacher import KerasTeacher
from deit.keras.vit import TFViTForImageClassification
from tests.keras.tiny_models import NOT_ON_JAX

CASES = Path(os.environ["DEIT_KERAS_CASES"])
BACKEND = keras.backend.backend()
# Where a test needs few steps: TensorFlow traces for seconds, while JAX is slow without compiling.
EAGER = BACKEND == "tensorflow"
# One training compiles with XLA on TensorFlow, the others run its graphs.
JIT = BACKEND == "jax"
if BACKEND == "jax":  # most of the time here goes into compiling
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
SIZES: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32,
    "image_size": 16, "patch_size": 4, "encoder_stride": 4, "num_labels": 5,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "hard": {"kind": "hard", "weight": 0.5},
    "soft": {"kind": "soft", "temperature": 3.0, "weight": 0.1},
    "numel": {"kind": "soft", "temperature": 2.0, "weight": 0.7, "reduction": "numel"},
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "paper": {"epochs": 30, "warmup_epochs": 5},
    "no_warmup": {"epochs": 7, "warmup_epochs": 0, "min_lr": 0.0},
}
STEPS = 4


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(CASES / "training.npz") as arrays:
        return dict(arrays)


@pytest.fixture
def student() -> Any:
    return TFDeiTForImageClassificationWithTeacher.from_pretrained(CASES / "student")


def tiny(
    model_class: Any = TFDeiTForImageClassificationWithTeacher, config_class: Any = DeiTConfig, **fields: Any
) -> Any:
    return model_class(config_class(**{**SIZES, **fields}))


def convnet(size: int = 24, classes: int = 5, activation: str | None = "softmax", model: bool = True) -> Any:
    layers = [
        keras.Input((size, size, 3)),
        keras.layers.Conv2D(4, 3, strides=4),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.5),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(classes, activation=activation),
    ]
    return keras.Sequential(layers if model else layers[1:])


def data(count: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    pixels = random.normal(size=(count, 3, 16, 16)).astype("float32")
    return pixels, random.integers(0, 5, count), random.normal(size=(count, 5)).astype("float32")


def value(variable: Any) -> np.ndarray:
    return np.array(ops.convert_to_numpy(variable + 0))  # a variable itself makes TensorFlow warn


def values(model: Any) -> list[np.ndarray]:
    return [value(v) for v in model.variables]


class Batches(keras.utils.PyDataset):
    """Arrays, four at a time."""

    def __init__(self, *arrays: np.ndarray) -> None:
        super().__init__()
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays[0]) // 4

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        return tuple(a[4 * index : 4 * index + 4] for a in self.arrays)


def kinds_of_data(*arrays: np.ndarray) -> Iterator[Any]:
    yield Batches(*arrays)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        yield tf.data.Dataset.from_tensor_slices(arrays).batch(4)


# --- the numbers of PyTorch ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_the_losses_are_those_of_the_pytorch_task(name, student, expected):
    task = KerasDistillation(student, **SETTINGS[name])
    output = task(expected["pixels"])
    for kind, targets in (("labels", expected["labels"]), ("mixed", expected["mixed"])):
        task.reset_metrics()
        answers = ops.convert_to_tensor(expected["teacher_logits"])
        loss = task.compute_loss(expected["pixels"], ops.convert_to_tensor(targets), output, answers)
        assert float(value(loss)) == pytest.approx(float(expected[f"{name}/{kind}/loss"]), rel=1e-5)
        parts = {m.name: float(m.result()) for m in task._part_metrics}
        for part in ("class_loss", "distillation_loss"):
            assert parts[part] == pytest.approx(float(expected[f"{name}/{kind}/{part}"]), rel=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_learning_rate_is_that_of_pytorch_at_every_step(name, expected):
    schedule = WarmupCosine(1e-3, steps_per_epoch=4, **SCHEDULES[name])
    rates = ops.convert_to_numpy(schedule(np.arange(len(expected[f"rates/{name}"]))))
    assert rates == pytest.approx(expected[f"rates/{name}"], rel=1e-5, abs=1e-10)
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule))
    assert again.get_config() == schedule.get_config()


def test_some_steps_of_fit_give_the_weights_that_pytorch_gets(student, expected):
    """Schedule, clipping, AdamW and what it does not decay; a mistake in one of them shows by 1e-3 and more."""
    task = KerasDistillation(student, **SETTINGS["soft"])
    rate = WarmupCosine(1e-3, steps_per_epoch=1, epochs=STEPS, warmup_epochs=1)
    task.compile(keras_adamw(task, rate, weight_decay=5.0, clip_grad=0.5), jit_compile=JIT)
    arrays = (expected["pixels"], expected["labels"])
    task.fit(*arrays, teacher_logits=expected["teacher_logits"], batch_size=3, epochs=STEPS, shuffle=False, verbose=0)
    trained = TFDeiTForImageClassificationWithTeacher.from_pretrained(CASES / "trained")
    for ours, theirs in zip(student.trainable_variables, trained.trainable_variables, strict=True):
        # Of 1.4e-3 that they moved. Adam's eps stands elsewhere in Keras, so single weights with tiny gradients differ.
        assert np.abs(value(ours) - value(theirs)).mean() < 1e-5, ours.path


def test_weights_without_decay_are_norms_biases_tokens_and_positions():
    model = tiny(layer_scale_init=0.1)
    optimizer = keras_adamw(model, 1e-3)
    optimizer.build(model.trainable_variables)
    decayed = {v.path.rpartition("/")[2] for v in model.trainable_variables if optimizer._use_weight_decay(v)}
    plain = {v.path.rpartition("/")[2] for v in model.trainable_variables if not optimizer._use_weight_decay(v)}
    assert decayed == {"kernel"}
    assert {"bias", "gamma", "cls_token", "dist_token", "pos_embed"} <= plain
    assert "kernel" not in plain


# --- the teacher --------------------------------------------------------------------------------------


def test_a_training_with_a_teacher_trains_both_heads_and_leaves_the_teacher_alone(tmp_path):
    student = tiny(hidden_dropout_prob=0.1)
    teacher = convnet()
    teacher.layers[0].trainable = False  # a flag of its own, to be kept
    processor = DeiTImageProcessor(size=16, crop_size=16)
    wrapped = KerasTeacher.of_application(teacher, "caffe")
    task = KerasDistillation(student, wrapped, kind="soft", temperature=3.0, processor=processor)
    before, teacher_before = values(student), values(teacher)
    flags = [(layer.name, layer.trainable) for layer in teacher._flatten_layers()]
    pixels, labels, _ = data()
    task.compile(keras_adamw(task, 1e-2), jit_compile=BACKEND != "torch")
    history = task.fit(pixels, labels, batch_size=4, epochs=2, verbose=0).history

    names = {"loss", "class_loss", "distillation_loss", "top1", "class_top1", "distillation_top1"}
    assert set(history) == names
    assert np.isfinite([value for series in history.values() for value in series]).all()
    after = dict(zip([v.path for v in student.variables], zip(before, values(student), strict=True), strict=True))
    unchanged = [path for path, (old, new) in after.items() if np.array_equal(old, new)]
    assert [path for path in unchanged if "seed" not in path] == []
    assert all(np.array_equal(a, b) for a, b in zip(teacher_before, values(teacher), strict=True))
    assert [(layer.name, layer.trainable) for layer in teacher._flatten_layers()] == flags

    task.compile(run_eagerly=EAGER)
    scores = task.evaluate(pixels, labels, verbose=0, return_dict=True)
    output = student(pixels)
    for name, head in (("top1", "logits"), ("class_top1", "cls_logits"), ("distillation_top1", "distillation_logits")):
        right = ops.convert_to_numpy(output[head]).argmax(1) == labels
        assert scores[name] == pytest.approx(100 * right.mean())
        predicted = task.predict(pixels, verbose=0)[head]
        assert predicted == pytest.approx(ops.convert_to_numpy(output[head]), abs=1e-5)
    student.save_pretrained(tmp_path)
    if BACKEND == "torch":
        import torch

        from deit.models.deit import DeiTForImageClassificationWithTeacher

        model = DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path).eval()
        with torch.no_grad():
            logits = model(torch.from_numpy(pixels)).logits.numpy()
        assert logits == pytest.approx(ops.convert_to_numpy(output.logits), abs=1e-4)


@NOT_ON_JAX
def test_every_kind_of_data_with_precomputed_logits_gives_the_same_loss():
    arrays = data()
    task = KerasDistillation(tiny(), kind="soft", temperature=2.0)
    task.compile(keras_adamw(task, 1e-3), jit_compile=JIT)
    first = task.evaluate(*arrays[:2], teacher_logits=arrays[2], batch_size=4, verbose=0, return_dict=True)
    for data_set in kinds_of_data(*arrays):
        assert task.evaluate(data_set, verbose=0, return_dict=True) == pytest.approx(first, rel=1e-5)
    task.compile(keras_adamw(task, 1e-3), run_eagerly=EAGER)
    history = task.fit(Batches(*arrays), verbose=0, validation_data=arrays).history
    assert {name.removeprefix("val_") for name in history} == set(first)
    assert history["val_loss"][0] != pytest.approx(first["loss"], rel=1e-6)  # the student has learnt
    labels_alone = task.evaluate(*arrays[:2], batch_size=4, verbose=0, return_dict=True)
    assert labels_alone["distillation_loss"] != pytest.approx(history["val_distillation_loss"][0], rel=1e-3)


def test_the_teacher_sees_the_view_that_it_expects(expected):
    """Against PyTorch's resize and the formulas of keras.applications by hand."""
    mean, std = np.array([0.1, 0.2, 0.3], "float32"), np.array([0.5, 0.6, 0.7], "float32")
    image = expected["image"].transpose(0, 2, 3, 1)
    pixels = (image - mean) / std
    for side in (24, 9):
        resized = expected[f"image/{side}"].transpose(0, 2, 3, 1)
        model = keras.Sequential([keras.Input((side, side + 1, 3)), keras.layers.Flatten()])
        by_hand = {
            "tf": 2 * resized - 1,
            "torch": (resized - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
            "caffe": 255 * resized[..., ::-1] - [103.939, 116.779, 123.68],
            "raw": 255 * resized,
        }
        for mode, wanted in by_hand.items():
            teacher = KerasTeacher.of_application(model, mode)
            for data_format, given in (("channels_last", pixels), ("channels_first", pixels.transpose(0, 3, 1, 2))):
                view = teacher.view(ops.convert_to_tensor(given), mean=mean, std=std, data_format=data_format)
                assert ops.convert_to_numpy(view) == pytest.approx(wanted, abs=1e-5 * float(np.abs(wanted).max()))


@pytest.mark.skipif(BACKEND == "jax", reason="compiles each operation of them, for 20 seconds; the code is the same")
def test_a_model_of_this_package_and_of_keras_applications_are_teachers():
    pixels, _, _ = data(4)
    peer = tiny(TFDeiTForImageClassification)
    task = KerasDistillation(tiny(), peer)
    wanted = ops.convert_to_numpy(peer(pixels).logits)
    assert ops.convert_to_numpy(task._answers(pixels, None, True)) == pytest.approx(wanted, abs=1e-5)
    net = keras.applications.MobileNet(weights=None, alpha=0.25, classes=5, input_shape=(32, 32, 3))
    processor = DeiTImageProcessor(size=16, crop_size=16)
    task = KerasDistillation(tiny(), KerasTeacher.of_application(net, "tf"), processor=processor)
    logits = ops.convert_to_numpy(task._answers(ops.convert_to_tensor(pixels), None, True))
    assert np.exp(logits).sum(axis=1) == pytest.approx(np.ones(4), abs=1e-4)


# --- precision and randomness -------------------------------------------------------------------------


def test_mixed_precision_keeps_weights_and_losses_in_float32():
    pixels, labels, answers = data(4)
    student = TFDeiTForImageClassificationWithTeacher(DeiTConfig(**SIZES), dtype="mixed_bfloat16")
    task = KerasDistillation(student)
    task.compile(keras_adamw(task, 1e-3), run_eagerly=EAGER)
    before = values(student)
    history = task.fit(pixels, labels, teacher_logits=answers, batch_size=4, verbose=0).history
    assert np.isfinite(history["loss"][0])
    assert any(not np.array_equal(a, b) for a, b in zip(before, values(student), strict=True))
    assert {keras.backend.standardize_dtype(v.dtype) for v in student.trainable_variables} == {"float32"}
    assert "bfloat16" in {layer.compute_dtype for layer in student._flatten_layers()}


def test_randomness_acts_in_training_alone():
    pixels, _, _ = data(3)
    task = KerasDistillation(tiny(hidden_dropout_prob=0.5, initializer_range=0.3))
    logits = [
        ops.convert_to_numpy(task(pixels, training=training)["logits"]) for training in (True, True, False, False)
    ]
    assert not np.array_equal(logits[0], logits[1])
    assert np.array_equal(logits[2], logits[3])


# --- the plain models ---------------------------------------------------------------------------------


def test_a_classifier_fits_evaluates_and_predicts_on_every_kind_of_data():
    pixels, labels, _ = data()
    model = tiny(TFViTForImageClassification, ViTConfig)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras_adamw(model, 1e-3), loss=loss, metrics=["accuracy"], jit_compile=JIT)
    before = values(model)
    history = model.fit(pixels, labels, batch_size=4, epochs=1, verbose=0).history
    assert set(history) == {"loss", "accuracy"}
    assert any(not np.array_equal(a, b) for a, b in zip(before, values(model), strict=True))
    scores = model.evaluate(pixels, labels, batch_size=4, verbose=0)
    for data_set in kinds_of_data(pixels, labels):
        assert model.evaluate(data_set, verbose=0) == pytest.approx(scores, rel=1e-5)
    predicted = model.predict(pixels, batch_size=4, verbose=0)["logits"]
    assert predicted == pytest.approx(ops.convert_to_numpy(model(pixels).logits), abs=1e-5)


@pytest.mark.skipif(BACKEND == "jax", reason="slow there; a step without a loss is compared in test_sample_weights.py")
def test_without_a_loss_the_models_learn_from_their_own():
    pixels, labels, _ = data()
    model = tiny()
    model.compile(keras_adamw(model, 1e-2), run_eagerly=EAGER)
    history = model.fit(pixels, labels, batch_size=4, epochs=4, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert model.evaluate(pixels, labels, verbose=0) == pytest.approx(
        float(value(model(pixels, labels=labels).loss)), rel=1e-4
    )


def test_masked_images_are_learnt_from_pixels_and_masks():
    pixels, _, _ = data()
    mask = np.random.default_rng(1).integers(0, 2, (12, 16))
    model = tiny(TFDeiTForMaskedImageModeling)
    model.compile(keras_adamw(model, 1e-2), run_eagerly=EAGER)
    inputs = {"pixel_values": pixels, "bool_masked_pos": mask}
    history = model.fit(inputs, batch_size=12, epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert model.predict(inputs, batch_size=12, verbose=0)["reconstruction"].shape == (12, 3, 16, 16)


# --- mistakes -----------------------------------------------------------------------------------------


def test_wrong_students_teachers_and_numbers_are_refused():
    student, processor = tiny(), DeiTImageProcessor(size=16, crop_size=16)
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: KerasDistillation(tiny(TFDeiTForImageClassification)), TypeError, "student with a distillation head"),
        (lambda: KerasDistillation(student, "resnet"), TypeError, "must be a keras.Model. Received: str"),
        (lambda: KerasDistillation(student, data()[2]), TypeError, "computed before go with the data"),
        (lambda: KerasDistillation(student, convnet(model=False)), ValueError, "has no weights yet"),
        (lambda: KerasDistillation(student, convnet(classes=4, activation=None)), ValueError, "teacher 4, student 5"),
        (lambda: KerasDistillation(student, convnet()), ValueError, "Pass output='probabilities'"),
        (lambda: KerasDistillation(student, KerasTeacher(convnet(activation=None), output="probabilities")), ValueError,
         "Pass output='logits'"),
        (lambda: KerasDistillation(student, KerasTeacher.of_application(convnet(), "tf")), ValueError, "processor="),
        (lambda: KerasTeacher(convnet(), mean=(0.5,), std=(0.5,)), ValueError, "3 numbers"),
        (lambda: KerasTeacher(convnet(), mean=(0.5, 0.5, 0.5)), ValueError, "both be left out"),
        (lambda: KerasTeacher(convnet(), output="softmax"), ValueError, "'logits', 'probabilities'"),
        (lambda: KerasTeacher.of_application(convnet(), "keras"), ValueError, "mode must be one of 'tf'"),
        (lambda: KerasDistillation(student, kind="medium"), ValueError, "'hard' or 'soft'"),
        (lambda: KerasDistillation(student, temperature=0), ValueError, "temperature must be positive"),
        (lambda: KerasDistillation(student, weight=2), ValueError, "weight must lie in"),
        (lambda: KerasDistillation(student, reduction="sum"), ValueError, "'batchmean' or 'numel'"),
        (lambda: KerasDistillation(student, label_smoothing=1), ValueError, "label_smoothing must lie in"),
        (lambda: KerasDistillation(student, processor=processor).compile(loss="mse"), TypeError, "Leave out loss"),
        (lambda: WarmupCosine(0, steps_per_epoch=1), ValueError, "peak must be positive"),
        (lambda: WarmupCosine(1, steps_per_epoch=1, epochs=3), ValueError, r"warmup_epochs must lie in \[0, 3\]"),
        (lambda: keras_adamw(convnet(model=False), 1.0), ValueError, "no trainable weights"),
    ]  # fmt: skip
    for make, error, message in cases:
        with pytest.raises(error, match=message):
            make()


def test_wrong_data_is_refused_before_anything_is_computed():
    pixels, labels, answers = data(4)
    task = KerasDistillation(tiny())
    task.compile("adamw")
    taught = KerasDistillation(tiny(), tiny(TFDeiTForImageClassification))
    taught.compile("adamw")
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: task.fit(pixels, labels), ValueError, "needs a teacher, or its logits"),
        (lambda: task.fit(Batches(pixels, labels)), ValueError, "needs a teacher, or its logits"),
        (lambda: task.fit(Batches(pixels, labels, answers[:, :4])), ValueError, "the same classes"),
        (lambda: task.fit(pixels, labels, teacher_logits=labels), TypeError, "teacher_logits must be floats"),
        (lambda: task.fit(pixels, labels.astype("float32"), teacher_logits=answers), TypeError, "must be integers"),
        (lambda: task.fit(pixels, labels > 2, teacher_logits=answers), TypeError, "Received: bool"),
        (lambda: task.fit(pixels, np.stack([labels, labels], 1), teacher_logits=answers), ValueError, "shape .batch,"),
        (lambda: task.fit(pixels, labels + 3, teacher_logits=answers), ValueError, "class numbers from 0 to 4"),
        (lambda: task.fit(pixels, labels, teacher_logits=answers, class_weight={0: 1.0}), TypeError, "class_weight"),
        (lambda: taught.fit(pixels, labels, teacher_logits=answers), ValueError, "Both a teacher and a third part"),
        (lambda: taught.evaluate(Batches(pixels)), ValueError, r"must give \(x, y\)"),
    ]  # fmt: skip
    for make, error, message in cases:
        with pytest.raises(error, match=message):
            make()


def test_numbers_that_are_not_given_are_the_papers_for_the_kind() -> None:
    soft, hard = KerasDistillation(tiny(), kind="soft"), KerasDistillation(tiny())
    assert (soft.temperature, soft.weight) == (3.0, 0.1)
    assert (hard.temperature, hard.weight) == (1.0, 0.5)
    assert KerasDistillation(tiny(), kind="soft", weight=0.5).weight == 0.5


def test_a_small_peak_is_risen_to_and_fallen_from() -> None:
    rate = WarmupCosine(4e-6, steps_per_epoch=1, epochs=100, warmup_epochs=10)
    assert (rate.warmup_lr, rate.min_lr) == (1e-6, 0.02 * 4e-6)
    assert float(rate(99)) < float(rate(50)) < 4e-6
    with pytest.raises(ValueError, match="at most the peak, 4e-06"):
        WarmupCosine(4e-6, steps_per_epoch=1, min_lr=1e-5)
