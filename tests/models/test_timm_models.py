"""Models of timm, opened by our readers: the same numbers as timm's own, and nothing of a file is run or believed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf

from deit.inference.engines.opening import open_engine
from deit.models.timm.models import create_timm, open_published_timm, open_timm_folder
from deit.train.teachers.teacher import open_teacher


@pytest.fixture
def folder(tmp_path) -> Path:
    torch.manual_seed(0)
    model = create_timm("test_resnet", num_classes=3)
    save_for_hf(
        model, str(tmp_path / "model"), model_config={"label_names": ["a", "b", "c"]}, safe_serialization="both"
    )
    return tmp_path / "model"


@pytest.mark.parametrize("left", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_a_folder_gives_what_timm_gives(tmp_path, name, left):
    save_for_hf(create_timm(name, num_classes=3), str(tmp_path), safe_serialization="both")
    next(file for file in tmp_path.iterdir() if file.suffix in (".bin", ".safetensors") and file.name != left).unlink()
    ours, theirs = open_timm_folder(tmp_path).eval(), timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    pixels = torch.randn(2, *ours.pretrained_cfg["input_size"])
    with torch.no_grad():
        assert torch.equal(ours(pixels), theirs(pixels))
    assert "state_dict" not in ours.pretrained_cfg
    assert ours.num_classes == 3


@pytest.mark.parametrize("sizes", [{"input_size": [3000, 224, 224]}, {"num_classes": 60_000}])
def test_a_pretrained_cfg_that_asks_for_more_than_the_file_holds_is_refused_before_a_model_is_built(folder, sizes):
    """timm takes channels and classes from it; a DeiT-base has 86 million numbers, the file 500,000."""
    config = {"architecture": "deit_base_patch16_224", "pretrained_cfg": sizes}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"The configuration asks for [\d,]+ numbers, and .* holds [\d,]+\."):
        open_timm_folder(folder)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("bomb-went-off",)


@pytest.mark.parametrize("use", [open_timm_folder, open_teacher, open_engine])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_beside_timms_configuration_is_not_run(folder, monkeypatch, use, zipped):
    monkeypatch.chdir(folder.parent)
    (folder / "model.safetensors").unlink()
    torch.save({"fc.weight": Bomb()}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="holds more than tensors"):
        use(folder)
    assert not Path("bomb-went-off").exists()


def test_timm_never_opens_a_weight_file(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("timm opened a file")

    for name in ("load_state_dict_from_hf", "load_state_dict_from_path", "load_state_dict", "load_state_dict_from_url"):
        monkeypatch.setattr(f"timm.models._builder.{name}", refuse, raising=False)
    values = json.loads((folder / "config.json").read_text())
    values["pretrained_cfg"] |= {
        "file": "/etc/passwd",
        "url": "http://127.0.0.1/a",
        "hf_hub_id": "a/b",
        "source": "hf-hub",
    }
    (folder / "config.json").write_text(json.dumps(values))
    assert open_timm_folder(folder).num_classes == 3
    monkeypatch.setattr("deit.models.timm.models.local_path", lambda name: folder)
    assert open_published_timm("test_resnet.r160_in1k").num_classes == 3


CHANGES = {
    "blocks": ({"architecture": "test_vit", "model_args": {"depth": 200_000}}, "larger than any model's"),
    "some blocks": ({"architecture": "test_vit", "model_args": {"depth": 5000}}, "asks for 5000 blocks"),
    "width": ({"architecture": "test_vit", "model_args": {"embed_dim": 60_000}}, "asks for .* numbers"),
    "classes": ({"num_classes": 60_000_000, "model_args": {}}, "larger than any model's"),
    "two numbers of classes": ({"num_classes": 4, "model_args": {"num_classes": 3}}, "two numbers of classes: 3 and 4"),
    "an image": ({"architecture": "test_vit", "model_args": {"img_size": 60_000}}, "asks for .* numbers"),
    "another model": ({"architecture": "resnet18"}, "timm cannot open"),
    "no model": ({"architecture": "resnet10000"}, "timm has no architecture"),
    "a link": ({"architecture": "hf-hub:a/b"}, "timm has no architecture"),
    "a number": ({"architecture": 3}, "names no architecture"),
    "unknown arguments": ({"model_args": {"foo": 1}}, "timm cannot open"),
    "unknown fields": ({"pretrained_cfg": {"foo": 1}}, "timm cannot open"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_configuration_that_does_not_fit_its_weights_is_refused(folder, kind):
    change, message = CHANGES[kind]
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | change))
    with pytest.raises(ValueError, match=message) as error:
        open_timm_folder(folder)
    assert len(str(error.value).splitlines()) == 1
