"""Weights of samples and classes with the models' own losses, against Keras's losses and formulas by hand."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import deit
from deit.keras.deit import (
    TFDeiTForImageClassification,
    TFDeiTForImageClassificationWithTeacher,
    TFDeiTForMaskedImageModeling,
)
from deit.keras.losses import classification_loss, distillation_loss, problem_loss
from tests.keras.tiny_models import NOT_ON_JAX

EAGER = keras.backend.backend() == "tensorflow"
# JAX compiles for seconds: there a step of `fit` is compared, with all that it is made of.
parts_of_a_step = pytest.mark.skipif(keras.backend.backend() == "jax", reason="a step of fit has all of it")
SIZES: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 16, "patch_size": 8, "encoder_stride": 8, "num_labels": 5, "initializer_range": 0.2,
}  # fmt: skip
RANDOM = np.random.default_rng(0)
X, LOGITS = RANDOM.normal(size=(4, 3, 16, 16)).astype("float32"), RANDOM.normal(size=(4, 5)).astype("float32")
Y, WEIGHTS = np.array([0, 1, 1, 3]), np.array([2.0, 0.0, 0.5, 3.0], "float32")
MASK = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]])
SHARES = (RANDOM.random((4, 5)) > 0.5).astype("float32")


def tiny(kind: Any = TFDeiTForImageClassification, **fields: Any) -> Any:
    model = kind(deit.DeiTConfig(**{**SIZES, **fields}))
    model.compile("sgd", run_eagerly=EAGER)
    return model


def number(tensor: Any) -> float:
    return float(ops.convert_to_numpy(tensor))


def array(tensor: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(tensor))


def crossentropy(**options: Any) -> Any:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **options)


@parts_of_a_step
def test_the_losses_with_weights_are_those_of_keras():
    wanted = {
        "single_label_classification": (Y, crossentropy()),
        "regression": (LOGITS[::-1].copy(), keras.losses.MeanSquaredError()),
        "multi_label_classification": (SHARES, keras.losses.BinaryCrossentropy(from_logits=True)),
    }
    for kind, (labels, loss) in wanted.items():
        for weights in (None, WEIGHTS, WEIGHTS[:, None]):
            flat = None if weights is None else WEIGHTS
            found = number(problem_loss(LOGITS, labels, kind, weights))
            assert found == pytest.approx(number(loss(labels, LOGITS, sample_weight=flat)), rel=1e-5), kind
    for labels in (Y, np.array([0, -100, 1, 3])):
        found = number(classification_loss(LOGITS, labels, sample_weight=WEIGHTS))
        assert found == pytest.approx(number(crossentropy(ignore_class=-100)(labels, LOGITS, WEIGHTS)), rel=1e-5)
    terms = np.array(
        [number(distillation_loss(LOGITS[i : i + 1], LOGITS[::-1][i : i + 1], kind="soft")) for i in range(4)]
    )
    found = number(distillation_loss(LOGITS, LOGITS[::-1].copy(), kind="soft", sample_weight=WEIGHTS))
    assert found == pytest.approx(float((terms * WEIGHTS).mean()), rel=1e-5)
    with pytest.raises(ValueError, match=r"sample_weight must have one number for each image, the shape \(4,\)"):
        problem_loss(LOGITS, Y, "single_label_classification", WEIGHTS[:3])


@parts_of_a_step
@pytest.mark.parametrize("kind", [TFDeiTForImageClassification, TFDeiTForImageClassificationWithTeacher])
def test_weights_of_samples_reach_the_loss_wherever_the_labels_are(kind):
    model = tiny(kind)
    output = model(X)
    heads = [output.logits] if "cls_logits" not in output else [output.cls_logits, output.distillation_logits]
    wanted = float(np.mean([number(crossentropy()(Y, head, sample_weight=WEIGHTS)) for head in heads]))
    inside = {"pixel_values": X, "labels": Y}
    for x, y in ((X, Y), (inside, None)):
        assert model.evaluate(x, y, sample_weight=WEIGHTS, verbose=0) == pytest.approx(wanted, rel=1e-5)
    assert number(model(X, labels=Y).loss) != pytest.approx(wanted, rel=1e-3)
    assert number(model.test_on_batch(X, Y, sample_weight=WEIGHTS)) == pytest.approx(wanted, rel=1e-5)


def test_fit_with_weights_takes_the_step_of_a_plain_keras_model():
    """The plain model has Keras's loss on the logits, and the same weights."""
    classes = {0: 3.0, 1: 0.25, 3: 2.0}
    model, plain = tiny(), tiny()
    plain.set_weights(model.get_weights())
    plain.compile("sgd", loss=crossentropy(), run_eagerly=EAGER)
    history = [m.fit(X, Y, verbose=0, class_weight=classes).history["loss"] for m in (model, plain)]
    assert history[0] == pytest.approx(history[1], rel=1e-5)
    for ours, theirs in zip(model.trainable_variables, plain.trainable_variables, strict=True):
        np.testing.assert_allclose(array(ours.value), array(theirs.value), atol=1e-6)


@NOT_ON_JAX
def test_weights_act_in_validation_and_need_labels():
    model = tiny()
    inside = {"pixel_values": X, "labels": Y}
    wanted = model.evaluate(X, Y, sample_weight=WEIGHTS, verbose=0)
    model.optimizer.learning_rate = 0.0
    found = model.fit(inside, validation_data=(inside, None, WEIGHTS), class_weight={1: 2.0}, verbose=0).history
    assert found["val_loss"][0] == pytest.approx(wanted, rel=1e-5)
    heavy = np.where(Y == 1, 2.0, 1.0)
    assert found["loss"][0] == pytest.approx(model.evaluate(X, Y, sample_weight=heavy, verbose=0), rel=1e-5)
    step = model.train_on_batch(inside, class_weight={1: 2.0})
    assert number(step) == pytest.approx(found["loss"][0], rel=1e-5)
    with pytest.raises(ValueError, match="sample_weight and class_weight need labels"):
        model.fit({"pixel_values": X}, class_weight={0: 2.0})
    if EAGER:
        import tensorflow as tf

        data = tf.data.Dataset.from_tensor_slices(inside).batch(2)
        with pytest.raises(ValueError, match=r"or a data set of \(inputs, labels\)"):
            model.fit(data, class_weight={0: 2.0})


@parts_of_a_step
def test_a_teacher_beside_the_labels_is_weighted_too():
    model = tiny(TFDeiTForImageClassificationWithTeacher, distillation_kind="soft", distillation_weight=0.3)
    output = model(X)
    parts = [
        crossentropy()(Y, output.cls_logits, sample_weight=WEIGHTS),
        distillation_loss(output.distillation_logits, LOGITS, kind="soft", sample_weight=WEIGHTS),
    ]
    wanted = 0.7 * number(parts[0]) + 0.3 * number(parts[1])
    inputs = {"pixel_values": X, "labels": Y, "teacher_logits": LOGITS}
    assert model.evaluate(inputs, sample_weight=WEIGHTS, verbose=0) == pytest.approx(wanted, rel=1e-5)


@parts_of_a_step
def test_the_masked_loss_is_weighted_by_image():
    model = tiny(TFDeiTForMaskedImageModeling)
    inputs = {"pixel_values": X, "bool_masked_pos": MASK}
    error = np.abs(X - array(model(inputs).reconstruction))
    mask = MASK.reshape(4, 2, 2).repeat(8, 1).repeat(8, 2)[:, None]
    wanted = ((error * mask).sum((1, 2, 3)) * WEIGHTS).sum() / mask.sum() / 3
    assert model.evaluate(inputs, sample_weight=WEIGHTS, verbose=0) == pytest.approx(wanted, rel=1e-4)
