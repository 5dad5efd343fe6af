"""The benchmark of inference runs on a tiny model, with every contender and every step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPT = """
import json, sys
from pathlib import Path
import inference, inference_steps

options = inference.parse(["--models", "test", "--batches", "2", "--threads", "1", "--seconds", "0.1"])
options.precisions, options.compile_batches = ["fp32"], []
folder = Path(sys.argv[1])
rows = [work(options, folder) for work in (inference.measure, inference_steps.measure_steps, inference_steps.profile)]
(folder / "rows.json").write_text(json.dumps(rows))
print(inference.table(rows[0]))
"""


@pytest.mark.slow
def test_contenders_answer_alike_and_they_and_each_step_are_timed(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    finished = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    ((row,), (steps,), (profile,)) = json.loads((tmp_path / "rows.json").read_text())
    names = {name.removesuffix(" img/s") for name in row if name.endswith(" img/s")}
    assert names == {
        "deit PyTorch", "deit OpenVINO", "deit ONNX Runtime", "deit default", "transformers", "timm",
        "OpenVINO transformers", "OpenVINO timm", "ONNX Runtime timm",
    }  # fmt: skip
    assert all(row[f"{name} img/s"] > 0 for name in names)
    assert {"ours / best stock OpenVINO", "ours / best PyTorch peer", "share of best product"} <= set(row)
    assert "| test | 2 | fp32 |" in finished.stdout
    assert len(steps) == 13
    assert all(value > 0 for name, value in steps.items() if name not in ("model", "batch"))
    assert any(name.startswith("FullyConnected") for name in profile)
