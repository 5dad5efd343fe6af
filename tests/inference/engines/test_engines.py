"""Every engine answers as transformers does, opens models and exports, and says plainly what it cannot do."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openvino
import pytest
import torch
import transformers
from PIL import Image

import deit
from deit.core.errors import DamagedFileError, MissingPackageError, UserError
from deit.inference.contract import Contract
from deit.inference.engines import openvino_engine
from deit.inference.engines.onnxruntime_engine import OnnxRuntimeEngine
from deit.inference.engines.opening import ENGINES, open_engine
from deit.inference.engines.openvino_engine import OpenVinoEngine
from deit.inference.graph.classifier_graph import classifier_graph
from deit.inference.graph.onnx_model import to_onnx
from deit.inference.graph.openvino_model import to_openvino
from deit.inference.predictor import Predictor
from tests.inference.conftest import NAMES, PROCESSOR

ON_THE_CPU = ["openvino", "onnxruntime"]


def photos(count: int = 5) -> list[Image.Image]:
    """Returns images with edges, gradients and texture, each different."""
    random = np.random.default_rng(7)
    found = []
    for number in range(count):
        rows, columns = np.mgrid[0:40, 0:48]
        wave = 127 + 90 * np.sin(rows / (3 + number)) * np.cos(columns / (5 + number))
        colors = wave[..., None] * random.uniform(0.4, 1.0, 3) + random.normal(0, 9, (40, 48, 3))
        colors[8 + number : 20, 10:30] = random.uniform(0, 255, 3)
        found.append(Image.fromarray(np.clip(colors, 0, 255).astype(np.uint8)))
    return found


PIXELS = np.stack(PROCESSOR(photos())["pixel_values"]).astype(np.float32)


def answers_of_transformers(folder):
    """Returns the logits of transformers' model in float64."""
    name = folder.name
    model = getattr(transformers, name).from_pretrained(folder).double().eval()
    with torch.no_grad():
        output = model(torch.from_numpy(PIXELS).double())
    if hasattr(output, "cls_logits"):
        found = {"both": output.logits, "class": output.cls_logits, "distillation": output.distillation_logits}
    else:
        found = {"class": output.logits}
    return {head: logits.numpy() for head, logits in found.items()}


@pytest.mark.parametrize("name", ["DeiTForImageClassificationWithTeacher", "DeiTForImageClassification"])
@pytest.mark.parametrize("engine", ["torch", *ON_THE_CPU])
def test_every_engine_answers_as_transformers_does(deit_directory, engine, name):
    folder = deit_directory(name)
    expected = answers_of_transformers(folder)
    opened = open_engine(folder, engine=engine)
    assert (opened.name, opened.device, opened.precision) == (engine, "cpu", "fp32")
    found = opened(PIXELS)
    assert list(found) == list(expected) == list(opened.contract.head_names)
    for head, logits in expected.items():
        np.testing.assert_allclose(found[head], logits, atol=2e-5, rtol=1e-4)
        assert found[head].dtype == np.float32
        assert np.abs(logits).max() > 0.5  # numbers that would show a fault


@pytest.mark.slow
def test_what_pytorch_compiles_answers_as_transformers_does(deit_directory, caplog):
    folder = deit_directory()
    opened = open_engine(folder, engine="torch-compiled")
    assert "can take a minute" in caplog.text
    for batch in (PIXELS, PIXELS[:2]):  # of any size without compiling again
        found = opened(batch)
        for head, logits in answers_of_transformers(folder).items():
            np.testing.assert_allclose(found[head], logits[: len(batch)], atol=2e-5, rtol=1e-4)
    expected = open_engine(folder).with_features(PIXELS)["features"]
    np.testing.assert_allclose(opened.with_features(PIXELS)["features"], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("engine", ON_THE_CPU)
def test_batches_of_any_size_in_any_order_give_the_same_bits_again(deit_directory, engine):
    opened = open_engine(deit_directory(), engine=engine)
    first = {size: opened(PIXELS[:size])["both"] for size in (3, 1, 5, 2)}
    for size in (1, 2, 3, 5):
        np.testing.assert_array_equal(opened(PIXELS[:size])["both"], first[size])
        np.testing.assert_allclose(first[size], first[5][:size], atol=1e-5)


@pytest.mark.parametrize("engine", ON_THE_CPU)
def test_threads_may_share_an_engine(deit_directory, engine):
    opened = open_engine(deit_directory(), engine=engine)
    expected = [opened(PIXELS[i : i + 1])["both"] for i in range(5)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda i: opened(PIXELS[i % 5 : i % 5 + 1])["both"], range(60)))
    for i, logits in enumerate(found):
        np.testing.assert_array_equal(logits, expected[i % 5])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_openvino_answers_in_a_forked_process(deit_directory):
    opened = open_engine(deit_directory(), engine="openvino")
    expected = opened(PIXELS)["both"]
    child = os.fork()
    if not child:
        signal.alarm(30)
        os._exit(0 if np.array_equal(opened(PIXELS)["both"], expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(opened(PIXELS)["both"], expected)


@pytest.mark.parametrize("name", ["DeiTForImageClassificationWithTeacher", "DeiTForImageClassification"])
@pytest.mark.parametrize("engine", ON_THE_CPU)
def test_features_are_those_of_pytorch(deit_directory, engine, name):
    folder = deit_directory(name)
    expected = open_engine(folder).with_features(PIXELS)
    found = open_engine(folder, engine=engine).with_features(PIXELS)
    assert list(found) == list(expected)
    np.testing.assert_allclose(found["features"], expected["features"], atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(found["class"], expected["class"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("engine", ON_THE_CPU)
def test_the_average_of_probabilities_is_kept(deit_directory, engine):
    folder = deit_directory()
    expected = open_engine(folder, head_average="probabilities")(PIXELS)
    found = open_engine(folder, engine=engine, head_average="probabilities")(PIXELS)
    np.testing.assert_allclose(found["both"], expected["both"], atol=1e-5)


def test_openvino_is_told_threads_and_precision(deit_directory):
    opened = open_engine(deit_directory(), engine="openvino")
    compiled = opened._request.get_compiled_model()
    assert compiled.get_property("INFERENCE_NUM_THREADS") == torch.get_num_threads()
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    assert compiled.get_property("ENABLE_CPU_PINNING") is False


def test_any_model_that_pytorch_opens_runs_in_openvino(timm_directory):
    folder = timm_directory(label_names=NAMES)
    opened = open_engine(folder, engine="openvino")
    assert opened.contract.label_names == NAMES
    pixels = np.stack([np.resize(image, (160, 160, 3)).transpose(2, 0, 1) for image in photos()]) / np.float32(255)
    np.testing.assert_allclose(opened(pixels)["class"], open_engine(folder)(pixels)["class"], atol=1e-4, rtol=1e-3)


# --- exported models ----------------------------------------------------------------------------------


@pytest.fixture
def exported(deit_directory, tmp_path):
    """Writes a directory with exported models, configuration and preprocessing, but no weights."""
    folder, target = deit_directory(), tmp_path / "exported"
    target.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(folder / name, target)
    opened = open_engine(folder)
    graph = classifier_graph(opened.model, opened.contract)
    openvino.save_model(to_openvino(graph, opened.contract), target / "openvino_model.xml", compress_to_fp16=False)
    (target / "model.onnx").write_bytes(to_onnx(graph, opened.contract).SerializeToString())
    return folder, target


@pytest.mark.parametrize(("file", "kind"), [("openvino_model.xml", OpenVinoEngine), ("model.onnx", OnnxRuntimeEngine)])
def test_the_file_of_an_exported_model_opens_with_its_engine(exported, file, kind):
    folder, target = exported
    expected = Predictor.open(folder, engine="torch").classify(photos())
    predictor = Predictor.open(target / file)
    assert isinstance(predictor.engine, kind)
    for found, wanted in zip(predictor.classify(photos()), expected, strict=True):
        assert [p.label for p in found] == [p.label for p in wanted]
        assert [p.score for p in found] == pytest.approx([p.score for p in wanted], abs=1e-5)


def test_the_average_of_an_exported_model_cannot_be_chosen(exported):
    with pytest.raises(UserError, match="average of heads is part of the exported model"):
        open_engine(exported[1] / "model.onnx", head_average="probabilities")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("openvino_model.xml", r"openvino_model\.xml is damaged or is not an OpenVINO model"),
        ("model.onnx", r"model\.onnx is damaged or is not an ONNX model"),
    ],
)
@pytest.mark.parametrize("content", [b"", b"<net", b"\x00" * 1000])
def test_damaged_exports_are_refused(exported, file, message, content):
    (exported[1] / file).write_bytes(content)
    with pytest.raises(DamagedFileError, match=message):
        open_engine(exported[1] / file)


def test_missing_parts_of_exports_are_named(exported):
    _, target = exported
    (target / "openvino_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"No openvino_model\.bin in"):
        open_engine(target / "openvino_model.xml")
    (target / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"lies beside model\.onnx .*names of its classes"):
        open_engine(target / "model.onnx")


def test_an_export_of_other_heads_is_refused(deit_directory, exported):
    _, target = exported
    other = deit_directory("DeiTForImageClassification")
    opened = open_engine(other)
    model = to_openvino(classifier_graph(opened.model, opened.contract), opened.contract)
    openvino.save_model(model, target / "openvino_model.xml", compress_to_fp16=False)
    with pytest.raises(UserError, match=r"has no output 'both'\. Its outputs: class"):
        open_engine(target / "openvino_model.xml")


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("engine", "extra"), [("openvino", "openvino"), ("onnxruntime", "onnx")])
def test_a_missing_package_names_its_extra(deit_directory, monkeypatch, engine, extra):
    monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(MissingPackageError, match=rf'pip install "deit\[{extra}\]"') as error:
        open_engine(deit_directory(), engine=engine)
    assert isinstance(error.value, UserError)


def test_an_unknown_engine_is_refused_with_the_known_ones(deit_directory):
    with pytest.raises(
        UserError, match=r"Unknown engine 'tensorrt'\. Known: auto, torch, torch-compiled, cuda, openvino, onnxru"
    ):
        open_engine(deit_directory(), engine="tensorrt")
    assert list(ENGINES) == ["torch", "torch-compiled", "cuda", "openvino", "onnxruntime"]


@pytest.mark.parametrize("engine", ON_THE_CPU)
def test_an_engine_of_the_cpu_refuses_other_devices(deit_directory, engine, monkeypatch):
    folder = deit_directory()
    assert open_engine(folder, "auto", engine=engine).device == "cpu"
    with pytest.raises(UserError, match=r"cuda.* Pass device='cpu'"):  # there is none, or the engine does not run on it
        open_engine(folder, "cuda", engine=engine)


@pytest.mark.parametrize("engine", ON_THE_CPU)
def test_an_unknown_precision_is_refused(deit_directory, engine):
    with pytest.raises(UserError, match="precision"):
        open_engine(deit_directory(), engine=engine, precision="fp8")


@pytest.mark.parametrize("engine", ON_THE_CPU)
def test_pixels_of_another_size_are_refused(deit_directory, engine):
    opened = open_engine(deit_directory(), engine=engine)
    for shape in ((1, 3, 16, 20), (1, 1, 16, 16), (3, 16, 16)):
        with pytest.raises(UserError, match=r"The model takes pixels of \(B, 3, 16, 16\)\. Received: \("):
            opened(np.zeros(shape, np.float32))


def test_bf16_needs_a_cpu_with_its_instructions(deit_directory, monkeypatch):
    folder = deit_directory()
    monkeypatch.setattr(openvino_engine, "computes_in_bf16", lambda: False)
    with pytest.raises(UserError, match="no instructions for bf16, so OpenVINO computes in fp32"):
        open_engine(folder, engine="openvino", precision="bf16")
    assert open_engine(folder, engine="openvino", precision="auto").precision == "fp32"


@pytest.mark.parametrize(("ratio", "expected"), [(2.0, "bf16"), (1.1, "fp32")])
def test_auto_of_openvino_measures_openvino(deit_directory, monkeypatch, ratio, expected):
    monkeypatch.delenv("DEIT_AUTO_PRECISION", raising=False)
    monkeypatch.setattr(openvino_engine, "computes_in_bf16", lambda: True)
    monkeypatch.setattr(OpenVinoEngine, "_speedup_of_bf16", lambda self: ratio)
    opened = open_engine(deit_directory(), engine="openvino", precision="auto")
    assert opened.precision == expected


def test_the_measurement_of_openvino_runs(deit_directory):
    assert 0.01 < open_engine(deit_directory(), engine="openvino")._speedup_of_bf16() < 100


def test_a_model_with_unknown_outputs_is_refused():
    contract = Contract(processor=PROCESSOR, label_names=NAMES, head_names=("class",))
    pixels = openvino.opset15.parameter([-1, 3, 4, 4], np.float32)
    with pytest.raises(UserError, match="has no output 'class'"):
        OpenVinoEngine(openvino.Model([openvino.opset15.relu(pixels)], [pixels]), contract)


def test_names_that_were_public_still_open_models(deit_directory):
    assert deit.Predictor.open(deit_directory(), engine="torch").engine.name == "torch"


def test_openvino_is_imported_without_its_telemetry(deit_directory) -> None:
    code = (
        "import sys; from deit import Predictor\n"
        f"Predictor.open({str(deit_directory())!r}, engine='openvino')\n"
        "assert 'openvino' in sys.modules\n"
        "assert not any(name.startswith('openvino_telemetry') and module for name, module in sys.modules.items())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
