"""Exports open where neither PyTorch nor this package is: as the examples do it, in processes of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import deit

EXAMPLES = Path(__file__).parents[2] / "examples"
WITHOUT = "import sys; sys.modules['torch'] = sys.modules['deit'] = None; "


def alone(code: str, *arguments: object) -> str:
    """Runs code where PyTorch and this package cannot be imported, and returns what it prints."""
    command = [sys.executable, "-c", WITHOUT + code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def lines(folder: Path, photo: Path) -> str:
    """Returns what an example must print."""
    return "".join(f"{p.label}: {p.score:.4f}\n" for p in deit.Predictor.open(folder).classify(photo, top_k=3))


def test_the_example_in_python_answers_as_the_predictor(model_directory, photos, tmp_path):
    pytest.importorskip("onnxruntime")
    folder = model_directory()
    deit.export_model(folder, tmp_path / "out", check=photos)
    run = "import runpy; path = sys.argv[1]; del sys.argv[0]; runpy.run_path(path, run_name='__main__')"
    for photo in photos[:2]:
        found = alone(run, EXAMPLES / "exported_python.py", tmp_path / "out" / "classifier.onnx", photo)
        assert found == lines(folder, photo)


def test_openvino_opens_its_files_alone(model_directory, photos, tmp_path):
    pytest.importorskip("openvino")
    folder = model_directory()
    deit.export_model(folder, tmp_path / "out", to="openvino", check=photos)
    code = """
import numpy as np, openvino
from PIL import Image
model = openvino.Core().read_model(sys.argv[1])
names = eval(model.get_rt_info(["deit_export", "names"]).astype(str))
compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
found = compiled(np.asarray(Image.open(sys.argv[2]).convert("RGB"))[None])["probabilities"][0]
for number in np.argsort(-found)[:3]:
    print(f"{names[int(number)]}: {found[number]:.4f}")
"""
    assert alone(code, tmp_path / "out" / "openvino_classifier.xml", photos[0]) == lines(folder, photos[0])


NODE = os.environ.get("DEIT_NODE_MODULES", "")


@pytest.mark.skipif(
    not (shutil.which("node") and (Path(NODE) / "onnxruntime-node").is_dir() and (Path(NODE) / "sharp").is_dir()),
    reason="needs node, and DEIT_NODE_MODULES: a folder node_modules with onnxruntime-node and sharp",
)
def test_the_example_in_javascript_answers_as_the_predictor(model_directory, photos, tmp_path):
    folder = model_directory()
    deit.export_model(folder, tmp_path / "out", check=photos)
    shutil.copy(EXAMPLES / "exported_javascript" / "classify.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(NODE, target_is_directory=True)
    for photo in photos[:2]:
        command = ["node", "classify.mjs", "out", str(photo)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
        assert result.stdout == lines(folder, photo), result.stderr[-3000:]
