"""Every example runs, in a process of its own and with small settings."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"
# What an example is called with here, and what it must print.
SMALL: dict[str, tuple[list[str], str]] = {
    "keras_digits.py": (
        ["--teacher-epochs", "1", "--epochs", "1", "--images", "128"],
        r"teacher: top-1 \d+\.\d %\nstudent: top-1 \d+\.\d % \(class head .*\)\nthe saved student reads a 6 as a \d\n",
    ),
}

# Looked for, not imported: TensorFlow and torchvision in one process abort.
BACKENDS = [name for name in ("tensorflow", "jax") if find_spec(name)]


ELSEWHERE = ["exported_python.py", "ray_train.py"]  # tests/export/test_fresh_process.py; below


def test_every_example_is_tested():
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted([*SMALL, *ELSEWHERE])


@pytest.mark.slow
@pytest.mark.skipif(find_spec("keras") is None or not BACKENDS, reason="Keras is not installed")
def test_the_digits_are_learnt_with_keras_and_pytorch_opens_the_student(tmp_path):
    arguments, printed = SMALL["keras_digits.py"]
    result = subprocess.run(
        [sys.executable, EXAMPLES / "keras_digits.py", "--out", tmp_path / "digits", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "KERAS_BACKEND": BACKENDS[0], "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert result.returncode == 0, result.stderr[-5000:]
    assert re.fullmatch(printed, result.stdout), result.stdout
    from deit import DeiTForImageClassificationWithTeacher

    model = DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path / "digits")
    assert model.config.id2label[7] == "7"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None or find_spec("tensorboardX") is None, reason="Ray Train is not installed")
def test_ray_trains_on_two_processes_and_goes_on(tmp_path):
    photos = write_photos(tmp_path / "photos")
    command = [
        sys.executable, EXAMPLES / "ray_train.py", "--data", photos, "--out", tmp_path / "run", "--set",
        "student=deit-digits-distilled-patch8-32", "schedule.epochs=2", "schedule.warmup_epochs=1", "batch_size=4",
        "num_workers=0",
    ]  # fmt: skip
    for done in ("trained", "went on"):
        result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert result.returncode == 0, (done, result.stderr)
        assert re.search(r"top-1 \d+\.\d %", result.stdout)


def write_photos(folder):
    for name, level in (("dark", 40), ("light", 200)):
        (folder / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (24, 20), (level + i, level, level)).save(folder / name / f"{i}.png")
    return folder
