"""The folder that training writes and everything else reads."""

from __future__ import annotations

import json

import pytest

from deit.core.config.config import DeiTConfig
from deit.core.model_directory import (
    is_model_directory,
    kind_of_model,
    read_image_processor,
    read_training_record,
)
from deit.core.processing.image_processor import DeiTImageProcessor


def test_a_folder_with_configuration_and_weights_is_a_model_directory(tmp_path):
    assert not is_model_directory(tmp_path / "nowhere")
    DeiTConfig().save_pretrained(tmp_path)
    assert not is_model_directory(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert is_model_directory(tmp_path)


@pytest.mark.parametrize(
    ("values", "kind"), [({"model_type": "deit"}, "deit"), ({"architecture": "regnety_160"}, "timm")]
)
def test_the_configuration_tells_the_kind_of_model(tmp_path, values, kind):
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert kind_of_model(tmp_path) == kind


def test_another_kind_of_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="is of model type 'bert'"):
        kind_of_model(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"No config\.json"):
        kind_of_model(tmp_path / "nowhere")


def test_preprocessing_is_read_and_never_guessed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No preprocessor_config\.json"):
        read_image_processor(tmp_path)
    DeiTImageProcessor(size=99).save_pretrained(tmp_path)
    assert read_image_processor(tmp_path).size == {"height": 99, "width": 99}


def test_the_training_record_is_read_when_there_is_one(tmp_path):
    assert read_training_record(tmp_path) is None
    (tmp_path / "training.json").write_text('{"seed": 3}')
    assert read_training_record(tmp_path) == {"seed": 3}
