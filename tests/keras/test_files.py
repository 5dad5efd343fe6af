"""Opening and saving: every dialect, Keras's own files, and what is refused."""

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
from keras import ops

import deit
from tests.keras.model_cases import MODELS, TINY, pixels
from tests.keras.tiny_models import tiny

CASES = Path(os.environ["DEIT_KERAS_CASES"])
SAVED = Path(os.environ["DEIT_KERAS_SAVED"])  # read by PyTorch afterwards
BACKEND = keras.backend.backend()
Teacher = deit.TFDeiTForImageClassificationWithTeacher


def array(tensor: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(tensor))


def logits_of_pytorch() -> np.ndarray:
    with np.load(CASES / "outputs.npz") as arrays:
        return arrays["teacher/logits/0"]


@pytest.mark.parametrize("name", MODELS)
def test_what_is_saved_are_the_files_that_were_opened(name):
    model = getattr(deit, f"TF{MODELS[name][0]}").from_pretrained(CASES / name, **MODELS[name][2])
    model.save_pretrained(SAVED / name)
    assert (SAVED / name / "model.safetensors").read_bytes() == (CASES / name / "model.safetensors").read_bytes()
    assert json.loads((SAVED / name / "config.json").read_text()) == json.loads(
        (CASES / name / "config.json").read_text()
    )


def test_pytorch_opens_what_keras_made():
    model = deit.TFDeiTForImageClassification(deit.DeiTConfig(**TINY))
    model.save_pretrained(SAVED / "made by keras")
    np.save(SAVED / "pixels.npy", pixels("classifier"))
    np.save(SAVED / "logits.npy", array(model(pixels("classifier")).logits))


@pytest.mark.parametrize("file", ["timm.safetensors", "original.safetensors", "transformers.safetensors", "sharded"])
def test_every_dialect_is_read(file):
    config = CASES / "teacher"
    model, info = Teacher.from_pretrained(CASES / file, config=config, output_loading_info=True)
    np.testing.assert_allclose(array(model(pixels("teacher")).logits), logits_of_pytorch(), atol=2e-5)
    assert info == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}


@pytest.mark.parametrize("file", ["timm.pth", "pickled"])
def test_pickles_are_read_where_pytorch_is_and_else_say_what_to_do(file):
    if BACKEND == "torch":
        model = Teacher.from_pretrained(CASES / file, config=CASES / "teacher")
        np.testing.assert_allclose(array(model(pixels("teacher")).logits), logits_of_pytorch(), atol=2e-5)
        return
    with pytest.raises(ModuleNotFoundError, match=r"is a PyTorch pickle, which needs the 'torch' package. Save the w"):
        Teacher.from_pretrained(CASES / file, config=CASES / "teacher")


def test_half_precision_is_kept_when_asked_for_and_widened_else(tmp_path):
    model = Teacher.from_pretrained(CASES / "half", dtype="auto")
    assert model.variable_dtype == "bfloat16"
    model.save_pretrained(tmp_path / "half")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "half" / name).read_bytes() == (CASES / "half" / name).read_bytes()
    wide = Teacher.from_pretrained(CASES / "half")
    assert wide.variable_dtype == "float32"
    wanted = logits_of_pytorch()
    assert np.abs(array(wide(pixels("teacher")).logits) - wanted).max() < 0.05 * np.abs(wanted).max()


def test_large_models_are_saved_in_several_files(tmp_path):
    model = Teacher.from_pretrained(CASES / "teacher")
    model.save_pretrained(tmp_path, max_shard_size=5000)
    there = {f.name for f in (CASES / "sharded").iterdir()}
    assert {f.name for f in tmp_path.iterdir()} == there
    assert all((tmp_path / n).read_bytes() == (CASES / "sharded" / n).read_bytes() for n in there)
    model.save_pretrained(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_heads_start_anew_when_they_do_not_fit(caplog):
    with pytest.raises(ValueError, match=r"cls_classifier.weight: \(5, 16\) in the file, \(9, 16\) in the model"):
        Teacher.from_pretrained(CASES / "teacher", num_labels=9)
    model, info = Teacher.from_pretrained(
        CASES / "teacher", num_labels=9, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert len(info["mismatched_keys"]) == 4
    assert array(model(pixels("teacher")).logits).shape == (3, 9)
    assert 0 < np.abs(array(model.cls_classifier.kernel)).max() < 0.2
    other, info = deit.TFDeiTForImageClassification.from_pretrained(CASES / "teacher", output_loading_info=True)
    assert info["missing_keys"] == ["classifier.weight", "classifier.bias"]
    assert set(info["unexpected_keys"]) == {
        f"{head}_classifier.{kind}" for head in ("cls", "distillation") for kind in ("weight", "bias")
    }
    np.testing.assert_array_equal(array(other.deit.trunk.pos_embed), array(model.deit.trunk.pos_embed))
    assert "start anew" in caplog.text


def test_positions_of_another_image_size_are_resized_when_asked():
    with pytest.raises(ValueError, match=r"position_embeddings: \(1, 18, 16\) in the file"):
        deit.TFDeiTModel.from_pretrained(CASES / "model", image_size=24)
    large = deit.TFDeiTModel.from_pretrained(CASES / "model", image_size=24, ignore_mismatched_sizes=True)
    with np.load(CASES / "outputs.npz") as arrays:
        wanted = arrays["larger/last_hidden_state/0"]
    found = large(pixels("model", (24, 24))).last_hidden_state
    np.testing.assert_allclose(array(found), wanted, atol=2e-5)


def test_a_bare_trunk_and_a_model_with_heads_start_each_other(tmp_path):
    bare = deit.TFDeiTModel.from_pretrained(CASES / "teacher", add_pooling_layer=False)
    bare.save_pretrained(tmp_path)
    back = Teacher.from_pretrained(tmp_path)
    np.testing.assert_array_equal(array(back.deit.trunk.norm.gamma), array(bare.trunk.norm.gamma))


@pytest.mark.parametrize(
    ("name", "model_class", "error", "message"),
    [
        ("vit", "TFDeiTModel", ValueError, "is of model type 'vit', DeiTConfig needs 'deit'"),
        ("nowhere", "TFDeiTModel", FileNotFoundError, "No model directory at"),
        ("broken", "TFDeiTModel", ValueError, "cannot be read as safetensors .*It may be truncated"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(name, model_class, error, message):
    with pytest.raises(error, match=message):
        getattr(deit, model_class).from_pretrained(CASES / name)


def test_a_deeper_model_than_the_checkpoint_is_refused():
    with pytest.raises(ValueError, match=r"lacks 16 tensors that TFDeiTModel needs, such as 'encoder.layer.2"):
        deit.TFDeiTModel.from_pretrained(CASES / "model", num_hidden_layers=3)
    with pytest.raises(TypeError, match="TFDeiTModel does not know an argument"):
        deit.TFDeiTModel.from_pretrained(CASES / "model", poling=True)


# --- Keras's own files --------------------------------------------------------------------------------


def test_weights_that_keras_saved_are_opened_with_a_configuration(tmp_path):
    model = Teacher.from_pretrained(CASES / "teacher")
    file = tmp_path / "model.weights.h5"
    model.save_weights(file)
    with pytest.raises(ValueError, match=r"holds weights alone. Pass config="):
        Teacher.from_pretrained(file)
    again = Teacher.from_pretrained(file, config=CASES / "teacher")
    np.testing.assert_array_equal(array(again(pixels("teacher")).logits), array(model(pixels("teacher")).logits))


def test_a_whole_keras_file_is_refused_unless_its_code_is_allowed(tmp_path):
    model = deit.TFDeiTModel.from_pretrained(CASES / "model", use_mask_token=True, dtype="mixed_bfloat16")
    file = tmp_path / "model.keras"
    model.save(file)
    with pytest.raises(ValueError, match=r"which can carry code. Pass allow_code=True if you wrote it"):
        deit.TFDeiTModel.from_pretrained(file)
    again = deit.TFDeiTModel.from_pretrained(file, allow_code=True)
    assert again.dtype_policy.name == "mixed_bfloat16"
    assert again.trunk.mask_token is not None
    assert again.config == model.config
    with pytest.raises(ValueError, match="holds a TFDeiTModel, not a TFDeiTForImageClassification"):
        deit.TFDeiTForImageClassification.from_pretrained(file, allow_code=True)
    with pytest.raises(FileNotFoundError, match="No Keras file at"):
        deit.TFDeiTModel.from_pretrained(tmp_path / "none.keras")


@pytest.mark.skipif(BACKEND != "torch", reason="The code is the same, and other backends take seconds to start.")
def test_a_model_saved_is_the_same_in_a_new_process(tmp_path):
    model = Teacher.from_pretrained(CASES / "teacher", data_format="channels_last")
    model.save(tmp_path / "model.keras")
    model.save_pretrained(tmp_path / "folder")
    x = pixels("teacher")
    np.save(tmp_path / "x.npy", x)
    code = f"""
import numpy as np, keras, deit
x = np.load({str(tmp_path / "x.npy")!r})
Model = deit.TFDeiTForImageClassificationWithTeacher
a = Model.from_pretrained({str(tmp_path / "folder")!r})(x).logits
b = keras.saving.load_model({str(tmp_path / "model.keras")!r})(x.transpose(0, 2, 3, 1)).logits
np.save({str(tmp_path / "y.npy")!r}, np.stack([keras.ops.convert_to_numpy(t) for t in (a, b)]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    for found in np.load(tmp_path / "y.npy"):
        np.testing.assert_allclose(found, logits_of_pytorch(), atol=2e-5)


def test_a_model_that_merges_tokens_is_refused_and_opens_without_merging(tmp_path):
    folder = tmp_path / "model"
    tiny().save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "token_merging": {"r": 1}}))
    with pytest.raises(ValueError, match="The Keras models merge no tokens"):
        deit.TFDeiTForImageClassification.from_pretrained(folder)
    assert deit.TFDeiTForImageClassification.from_pretrained(folder, token_merging={}).config.token_merging == {}
