"""Two processes and the real command: images that only one of them, or none, can read after the check."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.ranks import run_on_ranks


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for name, level in (("dark", 40), ("light", 200)):
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for i in range(8 if part == "train" else 3):
                pixels = np.clip(random.normal(level, 20, (20, 24, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / part / name / f"{i}.png")
    return tmp_path / "photos"


def train(photos: Path, out: Path, fading: str, rank: str) -> subprocess.CompletedProcess[str]:
    options = ["--student", "deit-digits-distilled-patch8-32", "--out", out, "--device", "cpu", "--batch-size", 4]
    settings = ["precision=fp32", "num_workers=0", "augment.num_repeats=1"]
    words = ["train", photos, *options, "--epochs", 1, *(word for each in settings for word in ("--set", each))]
    environment = {"FADING": fading} | ({"FADING_RANK": rank} if rank else {})
    return run_on_ranks("tests.train.fading_command", *words, **environment)


def test_an_image_that_one_process_cannot_read_is_left_out_and_recorded(photos, tmp_path) -> None:
    """Of the two images of its share of a step; both together would end the run."""
    ran = train(photos, tmp_path / "run", "train/dark/4|val/dark/1", "1")
    assert ran.returncode == 0, ran.stderr
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    (reason,) = record["data"]["train_images_left_out"]
    assert "train/dark/4" in reason
    assert ran.stderr.count("Left out of training from step") == 1  # the first process tells it, whose terminal it is
    assert record["data"]["val_images_left_out"] == 1
    assert {scores["images"] for scores in record["scores"].values()} == {5}


@pytest.mark.parametrize(("fading", "rank", "step"), [("train/", "1", 0), ("val/", "", 4)])
def test_what_cannot_go_on_ends_with_one_line_that_names_a_state_that_exists(
    photos, tmp_path, fading, rank, step
) -> None:
    ran = train(photos, tmp_path / "run", fading, rank)
    assert ran.returncode != 0
    said = [line for line in ran.stderr.splitlines() if line.startswith("Error: ")]
    state = tmp_path / "run" / "state" / f"step-{step:08d}"
    assert len(said) == 1
    assert "cannot be read as an image" in said[0]
    assert str(state) in said[0]
    assert (state / "manifest.json").is_file()
