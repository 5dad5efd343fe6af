"""`deit.quantize` and `deit quantize`: what is kept agrees and is faster, and everything else is refused in words."""

from __future__ import annotations

import csv
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import deit as package
from deit.core.errors import MissingPackageError, UserError
from deit.core.export_file import read_export
from deit.export.quantization import openvino_model, quantizing
from deit.export.quantization.attempts import Product, attempts
from deit.export.quantization.pictures import answers_of, least_compared, read_pictures
from deit.export.quantization.quantizing import QuantizationRefusedError
from deit.export.quantization.speed import Speed, compare_speed
from deit.inference.graph.classifier_graph import classifier_graph
from tests.cli.conftest import deit, is_refused, succeeds

pytest.importorskip("nncf")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """140 pictures of different colors and grain."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for i in range(140):
        levels = random.normal(random.integers(0, 255, 3), random.integers(5, 80), (20, 20, 3))
        Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "original"
    torch.manual_seed(0)
    config = package.DeiTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=16, patch_size=4,
        num_labels=3, initializer_range=0.3, id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2},
    )  # fmt: skip
    package.DeiTForImageClassificationWithTeacher(config).save_pretrained(folder)
    package.DeiTImageProcessor(size=16, crop_size=16).save_pretrained(folder)
    return folder


@pytest.fixture
def fast(monkeypatch):
    """Says a speed in place of the measurement, which a busy machine would make a matter of luck."""

    def says(ratio: float) -> None:
        told = Speed(ratios={"torch fp32": {1: ratio, 8: ratio}}, milliseconds={1: 1.0, 8: 8.0}, rounds=5)
        monkeypatch.setattr(quantizing, "compare_speed", lambda *_: told)

    return says


@pytest.fixture(scope="module")
def kept(model, photos, tmp_path_factory):
    """A quantized model that was kept, and the result."""
    out = tmp_path_factory.mktemp("out") / "int8"
    with pytest.MonkeyPatch.context() as patch:
        told = Speed(ratios={"torch fp32": {1: 2.0, 8: 2.0}}, milliseconds={1: 1.0, 8: 8.0}, rounds=5)
        patch.setattr(quantizing, "compare_speed", lambda *_: told)
        result = package.quantize(model, out, calibrate=sorted(photos.iterdir()), agreement=80)
    return out, result


def test_what_is_kept_opens_with_its_engine_and_answers_as_counted(kept, model, photos):
    out, result = kept
    assert (result.calibrated, result.compared, result.disjoint) == (40, 100, True)
    quantized, original = package.Predictor.open(out), package.Predictor.open(model)
    assert (quantized.engine.name, quantized.engine.precision) == ("openvino", "int8")
    order = np.random.default_rng(0).permutation(140)[40:]
    compared = [sorted(photos.iterdir())[i] for i in order]
    mine = [each[0].label for each in quantized.classify(compared)]
    theirs = [each[0].label for each in original.classify(compared)]
    differing = [str(path) for path, a, b in zip(compared, mine, theirs, strict=True) if a != b]
    assert [flip.image for flip in result.flips] == differing
    assert result.agreement == pytest.approx(100 - len(differing))
    rows = list(csv.DictReader((out / "label_flips.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["image"] for row in rows] == differing
    assert all(row["original"] != row["quantized"] for row in rows)


def test_weights_are_8_bit_and_the_record_says_how_it_compared(kept, model):
    out, result = kept
    export = read_export(out)
    told = export.formats["openvino"]
    assert told.precision == "int8"
    assert told.check.agreement == pytest.approx(result.agreement / 100)
    assert told.check.images == 100
    import openvino

    nodes = openvino.Core().read_model(out / told.model).get_ops()
    weights = [node.get_element_type() for node in nodes if node.get_type_name() == "Constant"]
    opened = package.Predictor.open(model).engine
    original = openvino_model.converted(classifier_graph(opened.model, opened.contract), opened.contract)
    assert weights.count(openvino.Type.i8) == len(openvino_model.products(original)) >= 10
    assert not (out / "model.safetensors").exists()


def test_the_calibration_of_the_original_is_not_taken_for_that_of_the_quantized_model(kept, model):
    """Its temperatures and thresholds belong to other logits."""
    from deit.core.scores.calibration_file import identity_of

    out, _ = kept
    contracts = [package.Predictor.open(each).engine.contract for each in (model, out)]
    first, second = (
        identity_of(c.folder, c.processor, c.label_names, c.problem_type, c.head_average) for c in contracts
    )
    assert first.weights != second.weights
    assert (first.preprocessing, first.classes) == (second.preprocessing, second.classes)
    assert read_export(out).temperature is None


def test_the_rest_is_computed_in_what_it_was_checked_in(kept, tmp_path, monkeypatch):
    import openvino

    from deit.inference.engines import openvino_engine

    asked = []
    real = openvino_engine.OpenVinoEngine._compile
    monkeypatch.setattr(openvino_engine, "computes_in_bf16", lambda: True)
    monkeypatch.setattr(
        openvino_engine.OpenVinoEngine, "_compile", lambda self, kind: asked.append(kind) or real(self, "fp32")
    )
    out, _ = kept
    told = openvino.Core().read_model(out / "openvino_model.xml").get_rt_info(openvino_engine.REST_OF_INT8)
    package.Predictor.open(out)
    assert asked == [told.astype(str)]


def test_too_little_agreement_is_refused_with_the_numbers_and_writes_nothing(
    model, photos, tmp_path, monkeypatch, fast
):
    fast(2.0)
    monkeypatch.setattr(quantizing._Work, "_flips", lambda self, a, b: [_flip(n) for n in self.pictures.names[40:43]])
    with pytest.raises(
        QuantizationRefusedError, match=r"keeps only 97.00 % of 100 answers, and 99 % must stay"
    ) as told:
        package.quantize(model, tmp_path / "out", calibrate=sorted(photos.iterdir()))
    assert len(told.value.result.tried) + 1 <= 3
    assert "patch embedding and heads in higher precision: 97.00 %" in str(told.value)
    assert list(tmp_path.iterdir()) == []


def _flip(name: str) -> quantizing.Flip:
    return quantizing.Flip(image=name, original="a", original_score=0.5, quantized="b", quantized_score=0.4)


def test_a_slower_model_is_refused_unless_that_is_allowed(model, photos, tmp_path, fast):
    fast(0.8)
    options = ("--calibrate", photos, "--out", tmp_path / "out", "--engine", "onnxruntime", "--agreement", 80)
    refused = deit("quantize", model, *options)
    assert refused.exit_code == 2
    assert "is not faster here, so it was not written: 0.80 x (batch 1)" in refused.stderr
    assert "Pass --allow-slower to keep it" in refused.stderr
    assert not (tmp_path / "out").exists()
    result = succeeds("quantize", model, *options, "--allow-slower")
    assert "Calibrated with 40 images, compared with the original on other 100 images." in result.stdout
    assert "Speed here, in turns: 0.80 x (batch 1) and 0.80 x (batch 8) as fast as torch fp32." in result.stdout
    opened = package.Predictor.open(tmp_path / "out")
    assert (opened.engine.name, opened.engine.precision) == ("onnxruntime", "int8")
    answers = succeeds("classify", tmp_path / "out", photos / "000.png", "--json")
    assert json.loads(answers.stdout)[0]["predictions"][0]["label"] in "abc"


def test_three_images_are_refused_with_the_number_needed(model, photos, tmp_path):
    few = [photos / f"{i:03d}.png" for i in range(3)]
    options = [word for path in few for word in ("--calibrate", path)]
    is_refused(
        deit("quantize", model, *options, "--out", tmp_path / "out"),
        "Too few images to quantize with: 3 readable, and an agreement of 99 % needs 100",
    )
    assert not (tmp_path / "out").exists()


def test_images_of_one_class_are_refused(model, photos, tmp_path):
    for i in range(120):
        shutil.copyfile(photos / "000.png", tmp_path / f"{i}.png")
    is_refused(
        deit("quantize", model, "--calibrate", tmp_path, "--out", tmp_path / "out"),
        "The model has the same answer for all 120 images, '",
        "images of several classes",
    )


def test_a_folder_that_changes_while_it_is_read_costs_the_images_that_are_gone(model, photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    paths = sorted(folder.iterdir())
    order = np.random.default_rng(0).permutation(140)
    seen = []

    def change(done: int, total: int) -> None:
        if not seen:
            for i in order[-20:]:
                paths[i].unlink()
            paths[order[60]].write_bytes(b"half a fi")
        seen.append(done)

    predictor = package.Predictor.open(model)
    with read_pictures(predictor, paths, 99.0, change) as pictures:
        assert 119 <= len(pictures.names) <= 120
        assert len(pictures.unreadable) == 140 - len(pictures.names)
        assert not pictures.disjoint  # too few are left to divide them
        assert (pictures.calibrated, pictures.compared) == (32, len(pictures.names))
        readable = [path for path in (paths[i] for i in order) if str(path) in pictures.names]
        expected = predictor.processor([Image.open(path) for path in readable], return_tensors="np").pixel_values
        np.testing.assert_array_equal(pictures.pixels[: len(readable)], expected)


@pytest.mark.parametrize(
    ("agreement", "images"), [(99, 100), (99.5, 200), (99.9, 1000), (95, 100), (100, 100), (50, 100)]
)
def test_an_agreement_needs_as_many_images_as_can_show_it(agreement, images):
    assert least_compared(agreement) == images


def test_answers_of_several_labels_are_compared_as_sets():
    logits = np.array([[1.0, -1.0], [1.0, 1.0]], np.float32)
    assert answers_of(logits, "multi_label_classification").tolist() == [[True, False], [True, True]]
    assert answers_of(logits, "single_label_classification").tolist() == [0, 0]


def test_later_attempts_leave_more_in_higher_precision():
    inputs = {"patch": 48, "qkv": 32, "fc1": 32, "fc2": 128, "head": 32}
    products = [Product(name=name, inputs=number) for name, number in inputs.items()]
    assert [each.left for each in attempts(products)] == [(), (0, 4), (0, 4, 3)]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"engine": "tensorrt"}, UserError, "engine must be openvino or onnxruntime"),
        ({"agreement": 101}, UserError, "agreement must be a percentage"),
        ({"agreement": float("nan")}, UserError, "agreement must be a percentage"),
    ],
)
def test_wrong_arguments_are_refused(model, tmp_path, arguments, error, words):
    with pytest.raises(error, match=words):
        package.quantize(model, tmp_path / "out", calibrate=[], **arguments)


def test_a_folder_with_files_is_left_alone(model, photos, tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(FileExistsError, match="not empty"):
        package.quantize(model, tmp_path, calibrate=sorted(photos.iterdir()))
    assert [each.name for each in tmp_path.iterdir()] == ["mine"]


def test_a_quantized_model_is_not_quantized_again(kept, photos, tmp_path):
    with pytest.raises(UserError, match="is an export already"):
        package.quantize(kept[0], tmp_path / "out", calibrate=sorted(photos.iterdir()))


def test_a_missing_package_names_the_extra(model, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingPackageError, match=r"deit\[quantize\]"):
        package.quantize(model, tmp_path / "out", calibrate=sorted(photos.iterdir()))


def test_speed_is_measured_in_turns_against_the_fastest_other(model):
    import time

    calls = []

    class Waiting:
        def __init__(self, name: str, seconds: float) -> None:
            self.name, self.seconds = name, seconds
            self.contract = package.Predictor.open(model).engine.contract

        def __call__(self, pixels):
            calls.append(self.name)
            time.sleep(self.seconds)
            return {}

    found = compare_speed(Waiting("int8", 0.004), {"x": Waiting("x", 0.008), "y": Waiting("y", 0.016)}, 0.01)
    assert 1 < found.speedup < 3
    assert found.ratios["y"][1] > found.ratios["x"][1]
    assert {tuple(calls[3 + i : 6 + i]) for i in range(0, 9, 3)} == {
        ("int8", "x", "y"), ("x", "y", "int8"), ("y", "int8", "x"),
    }  # fmt: skip
