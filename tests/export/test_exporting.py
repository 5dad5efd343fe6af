"""Exports against transformers' own model and processor, and what is refused."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import deit
from deit.core.errors import DamagedFileError, MissingPackageError, UserError
from deit.core.export_file import read_export
from deit.core.scores.conformal import Coverage
from deit.core.scores.metrics import MULTI_LABEL, REGRESSION
from deit.export import checking
from tests.export.conftest import NAMES

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


def run(path: Path, image: np.ndarray) -> np.ndarray:
    """Returns the only output of an ONNX or OpenVINO file, given images."""
    if path.suffix == ".onnx":
        import onnxruntime

        return onnxruntime.InferenceSession(path).run(None, {"images": image})[0]
    openvino = pytest.importorskip("openvino")
    return openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(image)[0]


def of_transformers(folder: Path, images: list[Image.Image]) -> np.ndarray:
    """Returns the logits (B, K) of transformers' model and processor."""
    transformers = pytest.importorskip("transformers")
    model = transformers.DeiTForImageClassificationWithTeacher.from_pretrained(folder).eval()
    processor = transformers.DeiTImageProcessorPil.from_pretrained(folder)
    with torch.inference_mode():
        return model(processor(images, return_tensors="pt")["pixel_values"]).logits.numpy()


@pytest.mark.parametrize(("to", "name"), [("onnx", "classifier.onnx"), ("openvino", "openvino_classifier.xml")])
def test_an_export_answers_as_transformers_does(model_directory, photos, tmp_path, to, name):
    folder = model_directory()
    done = deit.export_model(folder, tmp_path / "out", to=to, check=photos)
    assert done.check.images == len(photos)
    assert done.check.agreement == done.check.equal_pixels == 1
    assert done.check.largest_difference < 1e-5
    images = [image for image in map(deit.load_image, photos) if image.width >= image.height]
    wanted = of_transformers(folder, images)
    wanted = np.exp(wanted) / np.exp(wanted).sum(1, keepdims=True)
    found = np.concatenate([run(tmp_path / "out" / name, np.asarray(image)[None]) for image in images])
    assert np.abs(found - wanted).max() < 1e-5
    together = np.stack([np.asarray(images[0]), np.asarray(images[0])[::-1], np.asarray(images[0])])
    batch = run(tmp_path / "out" / name, together)
    assert np.abs(batch[[0, 2]] - found[0]).max() < 1e-5


def test_one_folder_takes_every_format_of_a_model_and_describes_them(model_directory, photos, tmp_path):
    folder = model_directory()
    for to in ("onnx", "openvino"):
        deit.export_model(folder, tmp_path / "out", to=to, precision="fp16", check=photos)
    told = read_export(tmp_path / "out")
    assert told is not None
    assert set(told.formats) == {"onnx", "openvino"}
    assert told.classes == NAMES
    assert told.heads == ("both", "class", "distillation")
    assert told.image_size == (16, 16)
    assert told.formats["onnx"].precision == "fp16"
    assert (tmp_path / "out" / "model.onnx").stat().st_size < 0.7 * (folder / "model.safetensors").stat().st_size


def test_exports_lie_in_the_model_directory_and_are_uploaded_with_it(model_directory, photos):
    folder = model_directory()
    deit.export_model(folder, folder, check=photos)
    from deit.core.model_directory import files_to_publish

    assert {"classifier.onnx", "model.onnx", "export.json"} <= set(files_to_publish(folder)[0])
    with pytest.raises(FileExistsError, match=r"already holds model.onnx, classifier.onnx"):
        deit.export_model(folder, folder, check=photos)


def test_an_onnx_file_says_what_it_is(model_directory, photos, tmp_path):
    import onnx

    deit.export_model(model_directory(), tmp_path / "out", precision="fp16", opset=20, check=photos)
    for name in ("classifier.onnx", "model.onnx"):
        model = onnx.load(tmp_path / "out" / name)
        told = {entry.key: entry.value for entry in model.metadata_props}
        assert ast.literal_eval(told["names"]) == dict(enumerate(NAMES))
        assert told["imgsz"] == "[16, 16]"
        assert told["task"] == "classify"
        assert json.loads(told["deit"])["preprocessing"]["crop_size"] == {"height": 16, "width": 16}
        assert model.opset_import[0].version == 20


def test_probabilities_are_calibrated(model_directory, photos, tmp_path):
    folder = model_directory()
    rng = np.random.default_rng(0)
    for number, name in enumerate(NAMES * 12):
        (tmp_path / "held" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(
            tmp_path / "held" / name / f"{number}.png"
        )
    deit.calibrate(folder, tmp_path / "held")
    deit.export_model(folder, tmp_path / "out", check=photos)
    predictor = deit.Predictor.open(folder)
    temperature = predictor.calibration.temperature("both")
    assert temperature != 1
    assert read_export(tmp_path / "out").temperature == pytest.approx(temperature)
    image = deit.load_image(photos[0])
    logits = of_transformers(folder, [image])
    scores = run(tmp_path / "out" / "classifier.onnx", np.asarray(image)[None])[0]
    wanted = np.exp(logits[0] / temperature) / np.exp(logits[0] / temperature).sum()
    assert np.abs(scores - wanted).max() < 1e-5
    judge = predictor.judge(Coverage(percent=60))
    assert judge is not None
    assert (tmp_path / "out" / "calibration.json").read_bytes() == (folder / "calibration.json").read_bytes()


@pytest.mark.parametrize(
    ("problem_type", "name", "function"),
    [
        (MULTI_LABEL, "probabilities", lambda logits: 1 / (1 + np.exp(-logits))),
        (REGRESSION, "values", lambda logits: logits),
    ],
)
def test_other_problems_have_their_own_scores(model_directory, photos, tmp_path, problem_type, name, function):
    import onnxruntime

    folder = model_directory(problem_type=problem_type)
    deit.export_model(folder, tmp_path / "out", check=photos)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "classifier.onnx")
    assert [output.name for output in session.get_outputs()] == [name]
    image = deit.load_image(photos[0])
    found = session.run(None, {"images": np.asarray(image)[None]})[0]
    assert np.abs(found - function(of_transformers(folder, [image]))).max() < 1e-5


@pytest.mark.slow
def test_a_program_of_pytorch_takes_images_of_any_size_without_this_package(model_directory, photos, tmp_path):
    folder = model_directory()
    done = deit.export_model(folder, tmp_path / "out", to="torch", check=photos)
    assert done.check.agreement == done.check.equal_pixels == 1
    assert done.check.largest_difference < 1e-5
    code = """
import sys; sys.modules["deit"] = None
import numpy as np, torch
from PIL import Image
classifier = torch.export.load(sys.argv[1]).module()
for path in sys.argv[2:]:
    print(*classifier(torch.from_numpy(np.array(Image.open(path).convert("RGB"))[None]))[0].tolist())
"""
    command = [sys.executable, "-c", code, str(tmp_path / "out" / "classifier.pt2"), *map(str, photos)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    found = np.array([line.split() for line in result.stdout.splitlines()], float)
    predictor = deit.Predictor.open(folder)
    answers = [{p.label: p.score for p in told} for told in predictor.classify(photos)]
    assert np.abs(found - [[answer[name] for name in NAMES] for answer in answers]).max() < 1e-5


def test_a_program_of_pytorch_computes_in_bfloat16(model_directory, photos, tmp_path):
    out = tmp_path / "out"
    done = deit.export_model(
        model_directory(), out, to="torch", precision="bf16", check=photos, preprocessing=False, tolerance=0.3
    )
    assert done.check.agreement == 1
    assert 1e-5 < done.check.largest_difference < 0.3
    assert not (out / "classifier.pt2").exists()


@pytest.mark.slow
def test_a_model_of_timm_is_exported_as_it_is(tmp_path, photos):
    import timm
    from timm.models import save_for_hf

    model = timm.create_model("test_resnet", num_classes=5)
    save_for_hf(model, str(tmp_path / "timm"), safe_serialization=True)
    deit.DeiTImageProcessor(size=160, crop_size=160).save_pretrained(tmp_path / "timm")
    done = deit.export_model(tmp_path / "timm", tmp_path / "out", to="openvino", check=photos)
    assert done.check.agreement == 1


# --- what is refused ----------------------------------------------------------------------------------


def refused(folder: Path, out: Path, error: type[Exception], told: str, **options: Any) -> None:
    with pytest.raises(error, match=told):
        deit.export_model(folder, out, **options)
    assert not list(out.iterdir()) if out.exists() else True


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"to": "tflite"}, r"tflite is not written directly. docs/export.md describes"),
        ({"to": "onyx"}, r"The format must be onnx, openvino, torch. Received: 'onyx'"),
        ({"opset": 11}, r"The opset must lie between 18 and 23. Received: 11"),
        ({"opset": 99}, r"The opset must lie between 18 and 23. Received: 99"),
        ({"precision": "bf16"}, r"The precision of an ONNX export must be fp32 or fp16. Received: 'bf16'"),
        ({"precision": "int8", "to": "openvino"}, r"must be fp32 or fp16 or bf16. Received: 'int8'"),
        ({"tolerance": float("nan")}, r"The tolerance must be a number of at least 0. Received: nan"),
    ],
)
def test_a_wrong_option_is_refused_before_the_model_is_opened(tmp_path, options, told):
    refused(tmp_path / "missing", tmp_path / "out", UserError, told, **options)


@pytest.mark.parametrize(("to", "package", "extra"), [("onnx", "onnx", "onnx"), ("openvino", "openvino", "openvino")])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, to, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    refused(tmp_path / "missing", tmp_path / "out", MissingPackageError, rf"pip install \"deit\[{extra}\]\"", to=to)


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_an_export_that_disagrees_leaves_nothing(model_directory, photos, tmp_path, monkeypatch, to):
    from deit.inference.graph import lean_classifier

    right = lean_classifier.LeanClassifier.run

    def wrong(self: Any, ops: Any, pixels: Any) -> Any:
        return tuple(ops.scale(head, 1.01) for head in right(self, ops, pixels))

    monkeypatch.setattr(lean_classifier.LeanClassifier, "run", wrong)
    told = r"disagrees with the model on 6 images, so it is not kept: logits differ by up to 0\.\d+, and 0.001 is"
    refused(model_directory(), tmp_path / "out", UserError, told, to=to, check=photos)
    assert not (tmp_path / "out").exists()


def test_an_export_with_other_pixels_leaves_nothing(model_directory, photos, tmp_path, monkeypatch):
    from deit.export.pixels import preprocessing

    monkeypatch.setattr(preprocessing, "_BITS", 12)
    refused(model_directory(), tmp_path / "out", UserError, r"% of the pixels are equal, and 99.99 %", check=photos)


def test_a_tolerance_of_the_user_is_used(model_directory, photos, tmp_path):
    told = r"logits differ by up to .*, and 1e-05 is allowed"
    refused(model_directory(), tmp_path / "out", UserError, told, precision="fp16", tolerance=1e-5, check=photos)


def test_other_files_and_other_models_stay(model_directory, photos, tmp_path):
    folder = model_directory()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds other files"):
        deit.export_model(folder, tmp_path / "mine", check=photos)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    deit.export_model(folder, tmp_path / "out", check=photos)
    torch.manual_seed(1)
    other = deit.DeiTForImageClassificationWithTeacher.from_pretrained(folder)
    torch.nn.init.normal_(other.cls_classifier.weight)
    other.save_pretrained(folder)
    with pytest.raises(FileExistsError, match=r"exports of another model \(other weights\)"):
        deit.export_model(folder, tmp_path / "out", to="openvino", check=photos)


def test_a_damaged_description_is_refused(model_directory, photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "export.json").write_text("{")
    with pytest.raises(DamagedFileError, match=r"export\.json is damaged"):
        deit.export_model(model_directory(), tmp_path / "out", check=photos)


def test_what_cannot_be_in_an_export_can_be_left_out(model_directory, photos, tmp_path):
    folder = model_directory()
    deit.DeiTImageProcessor(size=18, crop_size=16, resample=0).save_pretrained(folder)
    refused(folder, tmp_path / "out", UserError, "the filter nearest cannot be exported", check=photos)
    done = deit.export_model(folder, tmp_path / "out", check=photos, preprocessing=False)
    assert done.check.equal_pixels is None
    assert not (tmp_path / "out" / "classifier.onnx").exists()


def test_a_model_without_a_classifier_is_refused(tmp_path, tiny_config, redraw):
    redraw(deit.DeiTModel(tiny_config())).save_pretrained(tmp_path / "model")
    refused(tmp_path / "model", tmp_path / "out", UserError, "which is no image classifier")


def test_photos_that_cannot_be_read_are_left_out_and_named(model_directory, photos, tmp_path, caplog):
    huge = tmp_path / "huge.png"
    Image.new("1", (20_000, 10_000)).save(huge)  # 200 megapixels
    done = deit.export_model(model_directory(), tmp_path / "out", check=[*photos, huge])
    assert done.check.images == len(photos)
    assert "huge.png" in done.unreadable[0]
    assert "pixels" in done.unreadable[0]
    assert "1 image was left out of the check" in caplog.text
    told = r"No image was left to check the export with\. .*huge\.png"
    refused(tmp_path / "model", tmp_path / "out2", UserError, told, check=[huge])


def test_a_class_that_changes_is_noticed(model_directory, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "_same_answer", lambda *_: False)
    told = r"0.00 % of the answers are the same, and 100 % must be"
    refused(model_directory(), tmp_path / "out", UserError, told, check=photos)
