"""Files of a model that are written into while it answers: the answers stay, and the process too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import deit
from tests.inference.conftest import deit_directory as deit_directory


def keep_their_answers(model: Path, scratch: Path, *kinds: str) -> None:
    """Runs `written_files` and expects every kind to pass."""
    command = [sys.executable, "-m", "tests.inference.written_files", str(model), str(scratch), *kinds]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (result.stdout.split(), result.returncode) == (list(kinds), 0), result.stderr[-3000:]


def test_what_a_model_directory_is_opened_for_keeps_its_answers(deit_directory, tmp_path):
    kinds = ("predictor", "pipeline", "embedder", "explainer", "teacher", "bulk")
    keep_their_answers(deit_directory(), tmp_path, *kinds)


def test_an_export_for_openvino_keeps_its_answers(deit_directory, tmp_path):
    pytest.importorskip("openvino")
    deit.export_model(deit_directory(), tmp_path / "export", to="openvino")
    keep_their_answers(tmp_path / "export", tmp_path, "predictor")
