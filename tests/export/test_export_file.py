"""`export.json`: written and read back, and refused in one line where it is damaged."""

from __future__ import annotations

import json

import pytest

from deit.core.errors import DamagedFileError
from deit.core.export_file import Check, Export, ExportedFormat, read_export


def export() -> Export:
    told = ExportedFormat(
        precision="fp32",
        model="model.onnx",
        classifier="classifier.onnx",
        files={"model.onnx": "a", "classifier.onnx": "b"},
        checked_with="onnxruntime 1.32.0",
        check=Check(images=100, largest_difference=1e-6, agreement=1.0, tolerance=1e-3),
        opset=18,
        versions={"onnx": "1.23.2"},
    )
    return Export(
        identity={"weights": "w", "preprocessing": "p", "classes": "c", "head_average": "logits"},
        preprocessing={"do_resize": True},
        classes=["cat", "dog"],
        heads=("both", "class", "distillation"),
        problem_type="single_label_classification",
        image_size=(32, 48),
        num_channels=3,
        temperature=1.5,
        formats={"onnx": told},
    )


@pytest.fixture
def folder(tmp_path):
    for name in ("model.onnx", "classifier.onnx"):
        (tmp_path / name).write_bytes(b"")
    export().write(tmp_path)
    return tmp_path


def test_what_was_written_is_read_back(folder):
    assert read_export(folder) == export()


def test_a_folder_without_one_has_none(tmp_path):
    assert read_export(tmp_path) is None


def test_a_missing_file_is_named(folder):
    (folder / "model.onnx").unlink()
    with pytest.raises(DamagedFileError, match=r"names model.onnx, which is missing"):
        read_export(folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": 2}, "is of format 2"),
        ({"classes": "cat"}, "its classes must be"),
        ({"image_size": [0, 1]}, "its image_size must be"),
        ({"heads": []}, "its heads must be"),
        ({"temperature": float("nan")}, "its temperature must be"),
        ({"formats": {"tflite": {}}}, "its formats must be"),
        ({"identity": {}}, "its weights must be"),
    ],
)
def test_a_damaged_one_is_refused_with_the_field(folder, change, told):
    path = folder / "export.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DamagedFileError, match=told):
        read_export(folder)


def test_a_file_outside_the_folder_is_refused(folder):
    path = folder / "export.json"
    path.write_text(path.read_text().replace('"model.onnx"', '"../../model.onnx"'))
    with pytest.raises(DamagedFileError, match="its files must be names of exported files"):
        read_export(folder)


def test_half_a_file_is_refused(folder):
    path = folder / "export.json"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DamagedFileError, match="is damaged"):
        read_export(folder)
