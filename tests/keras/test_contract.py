"""What keras-hub tests of a model: files of every kind, quantization, adapters, functional use, precision, freezing.

Each kind of model is tried alone and as a part of a functional model, which is what Keras's tutorials build.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import deit
from deit.keras.deit import (
    TFDeiTForImageClassification,
    TFDeiTForImageClassificationWithTeacher,
    TFDeiTModel,
)
from tests.keras.tiny_models import BACKEND, EAGER, NOT_ON_JAX, SIZES, X, Y, tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have a `quantize` method:UserWarning")


def array(tensor: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(tensor), dtype=np.float32)


def logits(model: Any) -> np.ndarray:
    return array(model(X)["logits"])


def crossentropy() -> Any:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def names(variables: list[Any]) -> list[str]:
    """Paths below the model, whose own name is another one in each copy."""
    return [v.path.partition("/")[2] for v in variables]


# --- kinds of models, in every kind of file -------------------------------------------------------------


def with_adapters(model: Any) -> None:
    model.enable_lora(2, ("qkv", "fc2"), lora_alpha=3.0)
    for layer in (model.deit.trunk.blocks[0].attn.qkv, model.deit.trunk.blocks[0].mlp.fc2):
        layer.lora_kernel_b.assign(np.full(layer.lora_kernel_b.shape, 0.3, "float32"))


def quantized_with_adapters(model: Any) -> None:
    model.quantize("int8")
    with_adapters(model)


def quantized_matrices(model: Any) -> None:
    """Only matrices are rounded; "int4" alone rounds the inputs of layers to 8 bits as well with Keras 3.13."""
    model.quantize(config=keras.quantizers.Int4QuantizationConfig(activation_quantizer=None))


def frozen(model: Any) -> None:
    model.deit.trainable = False
    model.deit.trunk.norm.trainable = True
    model.classifier.bias.trainable = False


# Name -> (what is done to a model, its type, how far its directory may be from it, which holds no integers).
KINDS: dict[str, tuple[Any, Any, float]] = {
    "plain": (lambda model: None, None, 1e-6),
    "frozen": (frozen, None, 1e-6),
    "half": (lambda model: None, "mixed_bfloat16", 0.05),
    "adapters": (with_adapters, None, 1e-5),
    "int8": (lambda model: model.quantize("int8"), None, 0.2),
    "int4": (lambda model: model.quantize("int4"), None, 0.2),
    "int4 of matrices alone": (quantized_matrices, None, 1e-5),
    "float8": (lambda model: model.quantize("float8"), None, 1e-6),
    "int8 with adapters": (quantized_with_adapters, None, 0.2),
}


# Where compiling is slow, those that differ by backend: types, integers and adapters.
TRIED = {"torch": tuple(KINDS), "jax": ("half", "int8 with adapters")}.get(
    BACKEND, ("half", "int4", "int8 with adapters")
)


@pytest.mark.parametrize("kind", TRIED)
def test_files_keep_numbers_and_what_is_trained_of_a_model_that_is(kind, tmp_path):
    change, dtype, tolerance = KINDS[kind]
    model = tiny(dtype=dtype)
    exact = logits(model)
    change(model)
    wanted = logits(model)
    if kind == "half":
        output = model(X, labels=Y, output_hidden_states=True)
        types = [
            keras.backend.standardize_dtype(t.dtype) for t in (output.hidden_states[1], output.logits, output.loss)
        ]
        assert types == ["bfloat16", "float32", "float32"]
        assert model.deit.trunk.blocks[0].mlp.fc1.kernel.dtype == "float32"
    held = exact if kind == "float8" else wanted  # full matrices, whose answers are not rounded
    pixels = keras.Input((3, 16, 16))
    keras.Model(pixels, model(pixels)).save(tmp_path / "functional.keras")
    model.save(tmp_path / "model.keras")
    alone = keras.saving.load_model(tmp_path / "model.keras")
    (inside,) = (
        layer
        for layer in keras.saving.load_model(tmp_path / "functional.keras").layers
        if isinstance(layer, type(model))
    )
    for again in (alone, inside):
        np.testing.assert_array_equal(logits(again), wanted)
        assert names(again.trainable_variables) == names(model.trainable_variables)
        for ours, theirs in zip(model._flatten_layers(), again._flatten_layers(), strict=True):
            for field in ("quantization_mode", "lora_enabled", "compute_dtype", "trainable"):
                assert getattr(ours, field, None) == getattr(theirs, field, None), (ours.name, field)
    model.save_pretrained(tmp_path / "directory")
    opened = TFDeiTForImageClassification.from_pretrained(tmp_path / "directory")
    np.testing.assert_allclose(logits(opened), held, atol=tolerance)
    alone.save_weights(tmp_path / "x.weights.h5")
    model.load_weights(tmp_path / "x.weights.h5")
    np.testing.assert_array_equal(logits(model), wanted)


def test_adapters_alone_are_trained_and_stay_apart_in_a_file(tmp_path):
    model = tiny()
    with_adapters(model)
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=EAGER)
    before = {name: array(v.value) for name, v in zip(names(model.variables), model.variables, strict=True)}
    model.fit(X, Y, verbose=0)
    after = {name: array(v.value) for name, v in zip(names(model.variables), model.variables, strict=True)}
    changed = {name.rpartition("/")[2] for name in after if not np.array_equal(before[name], after[name])}
    assert changed == {"lora_kernel_a", "lora_kernel_b", "kernel", "bias"}
    assert {n for n in after if n.endswith("kernel") and not np.array_equal(before[n], after[n])} == {
        "classifier/kernel"
    }
    model.save_weights(tmp_path / "x.weights.h5")
    merged = TFDeiTForImageClassification.from_pretrained(tmp_path / "x.weights.h5", config=model.config)
    np.testing.assert_allclose(logits(merged), logits(model), atol=1e-5)  # a model without adapters gets the sums
    with pytest.raises(ValueError, match=r"No linear layer is named 'query'. Known: classifier, fc1"):
        model.enable_lora(2, ["query"])
    with pytest.raises(ValueError, match="have adapters already"):
        model.enable_lora(2)


# --- opening a file of Keras ----------------------------------------------------------------------------


@NOT_ON_JAX
@pytest.mark.parametrize("file", ["x.keras", "x.weights.h5"])
def test_a_file_of_keras_obeys_what_is_asked_for_or_refuses_it(file, tmp_path, caplog):
    model = tiny()
    wanted = logits(model)
    model.save(tmp_path / file) if file.endswith(".keras") else model.save_weights(tmp_path / file)
    config = {} if file.endswith(".keras") else {"config": model.config}

    def opened(kind: Any = TFDeiTForImageClassification, **options: Any) -> Any:
        return kind.from_pretrained(tmp_path / file, allow_code=True, **config, **options)

    again, info = opened(output_loading_info=True)
    np.testing.assert_array_equal(logits(again), wanted)
    assert info == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
    other, info = opened(num_labels=7, ignore_mismatched_sizes=True, output_loading_info=True)
    assert logits(other).shape == (4, 7)
    assert [row[0] for row in info["mismatched_keys"]] == ["classifier.weight", "classifier.bias"]
    np.testing.assert_array_equal(array(other.deit.trunk.norm.gamma), array(model.deit.trunk.norm.gamma))
    assert "start anew" in caplog.text
    last = opened(data_format="channels_last", image_size=16)
    np.testing.assert_allclose(array(last(X.transpose(0, 2, 3, 1)).logits), wanted, atol=1e-6)
    half = opened(dtype="mixed_bfloat16")
    assert half.dtype_policy.name == "mixed_bfloat16"
    np.testing.assert_array_equal(array(half.classifier.kernel), array(model.classifier.kernel))
    assert opened(image_size=24, ignore_mismatched_sizes=True).config.image_size == 24
    for options, error, message in (
        ({"num_labels": 7}, ValueError, r"classifier.weight: \(5, 16\) in the file, \(7, 16\) in the model"),
        ({"nonsense": 1}, TypeError, "does not know an argument: .*nonsense"),
        ({"subfolder": "x"}, ValueError, "subfolder is about model directories"),
        ({"variant": "fp16"}, ValueError, "variant is about model directories"),
        ({"num_hidden_layers": 2}, ValueError, "lacks 16 tensors"),
    ):
        with pytest.raises(error, match=message):
            opened(**options)
    if file.endswith(".keras"):
        model.quantize("int8")
        model.save(tmp_path / file)
        assert opened().classifier.quantization_mode == "int8"
        with pytest.raises(ValueError, match="holds a quantized model, which opens as it is alone"):
            opened(num_labels=7)


# --- losses and labels ------------------------------------------------------------------------------------


def test_losses_and_metrics_by_the_names_of_outputs_are_those_of_keras():
    model = tiny(TFDeiTForImageClassificationWithTeacher)
    output = model(X)
    other = Y[::-1].copy()
    heads = {"cls_logits": Y, "distillation_logits": other}
    parts = {name: float(array(crossentropy()(labels, output[name]))) for name, labels in heads.items()}
    model.compile(
        "sgd",
        loss=dict.fromkeys(heads, crossentropy()),
        loss_weights={"cls_logits": 0.25, "distillation_logits": 2.0},
        metrics={"logits": ["accuracy"]},
        run_eagerly=EAGER,
    )
    found = model.evaluate(X, {**heads, "logits": Y}, verbose=0, return_dict=True)
    right = array(output.logits).argmax(1) == Y
    assert found["logits_accuracy"] == pytest.approx(right.mean())
    assert found["loss"] == pytest.approx(0.25 * parts["cls_logits"] + 2 * parts["distillation_logits"], rel=1e-5)
    assert found["cls_logits_loss"] == pytest.approx(parts["cls_logits"], rel=1e-5)
    for labels, message in (
        ({"cls_logits": Y}, "y has no targets of 'distillation_logits'"),
        ([Y, Y], "targets of several outputs must be named"),
    ):
        with pytest.raises(ValueError, match=message):
            model.compute_loss(X, labels, output)
    model.compile("sgd", loss={"logits": crossentropy(), "cls_logits": crossentropy()}, run_eagerly=EAGER)
    wanted = sum(float(array(crossentropy()(Y, output[name]))) for name in ("logits", "cls_logits"))
    for x, y in ((X, Y), ({"pixel_values": X, "labels": Y}, None)):  # the labels of both
        assert model.fit(x, y, verbose=0).history["loss"][0] == pytest.approx(wanted, rel=1e-5)
        model.optimizer.learning_rate = 0.0
        wanted = sum(float(array(crossentropy()(Y, model(X)[name]))) for name in ("logits", "cls_logits"))
    model.compile("sgd", loss={"logit": crossentropy()})
    with pytest.raises(ValueError, match=r"loss names 'logit', which is no output of the model. Known: logits, cls_lo"):
        model.compute_loss(X, Y, output)


class Batches(keras.utils.PyDataset):
    """Two images at a time."""

    def __init__(self, *arrays: np.ndarray) -> None:
        super().__init__()
        self.arrays = arrays

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return tuple(a[2 * index : 2 * index + 2] for a in self.arrays)


def test_class_numbers_that_are_out_of_range_are_refused_wherever_they_come_from():
    wrong = np.array([0, 1, 2, 9])
    inside = {"pixel_values": X, "labels": wrong}
    ways: dict[str, Any] = {
        "arrays": lambda m: m.fit(X, wrong, verbose=0),
        "beside the pixels": lambda m: m.fit(inside, verbose=0),
        "validation": lambda m: m.fit(X, Y, validation_data=(X, wrong), verbose=0),
        "evaluation": lambda m: m.evaluate(X, wrong, verbose=0),
        "one step": lambda m: m.train_on_batch(X, wrong),
        "one score": lambda m: m.test_on_batch(X, wrong),
        "PyDataset": lambda m: m.evaluate(Batches(X[2:], wrong[2:]), verbose=0),
        "generator": lambda m: m.evaluate((batch for batch in [(X, wrong)]), verbose=0),
    }
    if BACKEND == "tensorflow":
        import tensorflow as tf

        ways["tf.data"] = lambda m: m.evaluate(tf.data.Dataset.from_tensors((X, wrong)), verbose=0)
        ways["tf.data, as a dict"] = lambda m: m.evaluate(tf.data.Dataset.from_tensors(inside), verbose=0)
    if BACKEND == "torch":
        from torch.utils.data import DataLoader

        samples = [(pixels, int(label)) for pixels, label in zip(X, wrong, strict=True)]
        ways["DataLoader"] = lambda m: m.evaluate(DataLoader(samples, batch_size=4), verbose=0)
    model = tiny()
    wanted = logits(model)
    for loss, rule in ((None, r"from 0 to 4 \(-100: no label\)"), (crossentropy(), "from 0 to 4")):
        model.compile("sgd", loss=loss, run_eagerly=EAGER)
        for way in ways.values():
            with pytest.raises(ValueError, match=f"labels must be class numbers {rule}. Received: 9"):
                way(model)
    np.testing.assert_array_equal(logits(model), wanted)
    ignoring = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=9)
    model.compile("sgd", loss={"logits": ignoring}, run_eagerly=EAGER)
    assert np.isfinite(model.evaluate(Batches(X, wrong), verbose=0))


# --- distillation -----------------------------------------------------------------------------------------


def test_a_checkpoint_holds_a_distillation_whole(tmp_path):
    pixels = keras.Input((16, 16, 3))
    teacher = keras.Model(pixels, keras.layers.Dense(5)(keras.layers.Flatten()(pixels)))
    task = deit.KerasDistillation(
        tiny(TFDeiTForImageClassificationWithTeacher),
        deit.KerasTeacher(teacher, mean=(0.5, 0.4, 0.3), std=(0.5, 0.5, 0.5), max_value=255.0),
        kind="soft",
        processor=deit.DeiTImageProcessor(size=16, crop_size=16),
    )
    task.student.deit.trainable = False
    task.compile("adam", run_eagerly=EAGER)
    task.fit(X, Y, verbose=0, callbacks=[keras.callbacks.ModelCheckpoint(tmp_path / "task.keras")])
    again = keras.saving.load_model(tmp_path / "task.keras")
    settings = ("kind", "temperature", "weight", "reduction", "label_smoothing", "mean", "std")
    assert [again.get_config()[name] for name in settings] == [task.get_config()[name] for name in settings]
    assert {**again.teacher.get_config(), "model": 0} == {**task.teacher.get_config(), "model": 0}
    assert again.optimizer.get_config() == task.optimizer.get_config()
    assert names(again.trainable_variables) == names(task.trainable_variables)
    variables = ([*each.variables, *each.optimizer.variables] for each in (task, again))
    for ours, theirs in zip(*variables, strict=True):
        np.testing.assert_array_equal(array(theirs.value), array(ours.value), err_msg=ours.path)
    for copied in (copy.deepcopy(task), pickle.loads(pickle.dumps(task))):
        np.testing.assert_array_equal(array(copied(X)["logits"]), array(task(X)["logits"]))


@NOT_ON_JAX
def test_the_distiller_of_keras_takes_a_model_of_one_output():
    if not hasattr(keras, "distillation"):
        pytest.skip("needs a newer Keras")
    student, teacher = tiny(TFDeiTForImageClassificationWithTeacher), tiny()
    before, wanted = array(teacher.classifier.kernel), array(student(X).logits)
    model = student.output_model()
    np.testing.assert_allclose(array(model(X)), wanted, atol=1e-6)
    distiller = keras.distillation.Distiller(
        teacher=teacher.output_model(),
        student=model,
        distillation_losses=keras.distillation.LogitsDistillation(2.0, keras.losses.KLDivergence()),
    )
    distiller.compile("sgd", loss=crossentropy(), run_eagerly=EAGER)
    found = distiller.fit(X, Y, verbose=0).history
    assert found["student_loss"][0] == pytest.approx(float(array(crossentropy()(Y, wanted))), rel=1e-5)
    shares = [array(ops.softmax(each / 2)) for each in (logits(teacher), wanted)]
    divergence = 4 * (shares[0] * np.log(shares[0] / shares[1])).sum(1).mean()
    assert found["distillation_loss"][0] == pytest.approx(divergence, rel=1e-4)
    np.testing.assert_array_equal(array(teacher.classifier.kernel), before)
    assert not np.array_equal(array(student(X).logits), wanted)
    with pytest.raises(ValueError, match=r"The model has no output 'pooled'. Known: logits"):
        student.output_model("pooled")


# --- names of transformers and of Keras ---------------------------------------------------------------------


def test_flags_come_in_the_dict_of_inputs_too():
    model = tiny()
    output = model({"pixel_values": X, "output_hidden_states": True, "labels": None})
    assert list(output) == ["logits", "hidden_states"]
    assert isinstance(model({"pixel_values": X, "return_dict": False}), tuple)
    with pytest.raises(TypeError, match="'output_hidden_states' comes twice"):
        model({"pixel_values": X, "output_hidden_states": True}, output_hidden_states=True)
    with pytest.raises(TypeError, match="does not know the input 'output_hidden_state'"):
        model({"pixel_values": X, "output_hidden_state": True})


def test_the_summary_shows_what_is_inside_and_shapes():
    lines: list[str] = []
    tiny(num_hidden_layers=2).summary(expand_nested=True, print_fn=lambda line, **_: lines.append(line), line_length=76)
    rows = {
        name.split(" (")[0].strip(" └│"): (shape.strip(), parameters.strip(" │"))
        for name, shape, parameters in (
            line.split("│")[1:4] for line in "\n".join(lines).splitlines() if line.startswith("│")
        )
    }
    assert rows["deit"] == ("(None, 6, 16)", "7,696")
    assert rows["blocks_1"] == rows["blocks_0"] == ("(None, 6, 16)", "2,224")
    assert rows["qkv"] == ("(None, 48)", "816")
    assert rows["patch_embed"] == ("(None, 4, 16)", "3,088")
    assert rows["classifier"] == ("(None, 5)", "85")
    assert not [name for name, (shape, _) in rows.items() if "?" in shape]


@pytest.mark.skipif(BACKEND == "jax", reason="NumPy prunes; test_models.py runs a pruned model on JAX too")
def test_pruned_heads_are_gone_with_the_numbers_of_masked_ones(tmp_path):
    model = tiny(num_attention_heads=4, num_hidden_layers=2)
    wanted = array(model(X, head_mask=np.array([[1, 0, 1, 1], [1, 1, 0, 0]], "float32")).logits)
    model.prune_heads({0: [1], 1: [2]})
    model.prune_heads({1: {3, 2}})
    assert model.config.pruned_heads == {0: [1], 1: [2, 3]}
    assert [tuple(block.attn.qkv.kernel.shape) for block in model.deit.trunk.blocks] == [(16, 36), (16, 24)]
    np.testing.assert_allclose(logits(model), wanted, atol=1e-5)
    model.save_pretrained(tmp_path)
    np.testing.assert_allclose(logits(TFDeiTForImageClassification.from_pretrained(tmp_path)), wanted, atol=1e-5)
    for heads, message in (
        ({2: [0]}, "There are blocks 0 to 1. Received: 2"),
        ({0: [4]}, "There are heads 0 to 3"),
        ({1: [0, 1]}, "No head would be left in block 1"),
    ):
        with pytest.raises(ValueError, match=message):
            model.prune_heads(heads)
    model.compile("sgd")
    model.optimizer.build(model.trainable_variables)
    with pytest.raises(ValueError, match="Prune before the training"):
        model.prune_heads({0: [0]})


def test_the_other_names_of_transformers(tmp_path, monkeypatch):
    config = deit.DeiTConfig(**SIZES)
    model = TFDeiTModel.from_config(config)
    assert model.config is config
    assert model.get_input_embeddings() is model.trunk.patch_embed
    assert (model.get_output_embeddings(), model.can_generate(), model.base_model) == (None, False, model)
    assert model.dummy_inputs["pixel_values"].shape == (1, 3, 16, 16)
    sent: dict[str, Any] = {}

    def upload(folder: Path, name: str, **options: Any) -> str:
        sent.update(name=name, **options, there=sorted(file.name for file in Path(folder).iterdir()))
        return "address"

    for place in ("files", "pretrained"):
        monkeypatch.setattr(f"deit.keras.{place}.upload_folder", upload)
    assert model.push_to_hub("me/mine", commit_message="First", private=True) == "address"
    assert (sent["name"], sent["commit_message"], sent["private"]) == ("me/mine", "First", True)
    assert sorted(sent["files"]) == sent["there"] == ["config.json", "model.safetensors"]
    model.save_pretrained(tmp_path / "mine", push_to_hub=True)
    assert sent["name"] == "mine"
    with pytest.raises(TypeError, match="save_pretrained does not know the argument 'nonsense'"):
        model.save_pretrained(tmp_path, nonsense=1)
    if BACKEND != "tensorflow":
        with pytest.raises(ValueError, match="saved_model=True needs TensorFlow"):
            model.save_pretrained(tmp_path / "new", saved_model=True)
        assert not (tmp_path / "new").exists()
