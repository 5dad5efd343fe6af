"""Every code block of every page of docs/ runs, in a folder with what it names: photos and tiny models."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import deit
from tests.cli.conftest import VARIANT, succeeds

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
BLOCKS = {
    page: re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for page, text in PAGES.items()
    if "```" in text
}
# What the pages leave open -> what it is here.
NAMES = {
    "DATA": "photos",
    "IMAGES": "photos",
    "OUT": "OUT",
    "TEACHER": "teacher",
    "VARIANT": VARIANT,
    "A": VARIANT,
    "B": VARIANT,
    "FOLDER": "photos",
    "facebook/deit-tiny-distilled-patch16-224": "student",
    "deit-tiny-distilled-patch16-224": VARIANT,
    "timm/resnet10t": "timm/test_resnet",
    "1%": "50%",
}
QUICK = ["--epochs", "1", "--batch-size", "4", "--image-size", "32", "--device", "cpu"]


def save_model(folder: Path, *, side: int, classes: list[str]) -> None:
    config = deit.DeiTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=side,
        patch_size=side // 4, encoder_stride=side // 4, id2label=dict(enumerate(classes)),
    )  # fmt: skip
    deit.DeiTForImageClassificationWithTeacher(config).save_pretrained(folder)
    deit.DeiTImageProcessor(size=side, crop_size=side).save_pretrained(folder)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with photos of cats and dogs, and models that know them."""
    random = np.random.default_rng(0)
    for name, color in (("cat", (200, 120, 40)), ("dog", (60, 120, 200))):
        for i in range(8):
            picture = Image.fromarray(np.clip(random.normal(color, 30, (40, 48, 3)), 0, 255).astype(np.uint8))
            (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "photos" / name / f"{i}.png")
        picture.save(tmp_path / f"{name}.jpg")
    (tmp_path / "new").mkdir()
    picture.save(tmp_path / "new" / "1.png")
    for name, side in (("student", 32), ("teacher", 32), ("runs/distilled", 32), ("path/to/model", 32)):
        save_model(tmp_path / name, side=side, classes=["cat", "dog"])
    save_model(tmp_path / "my-model", side=224, classes=["cat", "dog"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(block: str) -> list[list[str]]:
    """The words of each command of a shell block."""
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run_command(words: list[str]) -> None:
    if words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert {name for found in re.findall(r"deit\[([\w,]+)\]", " ".join(words)) for name in found.split(",")} <= set(
            extras
        )
        return
    if words[0] == "export":
        assert words[1] in ("KERAS_BACKEND=tensorflow", "KERAS_BACKEND=jax", "KERAS_BACKEND=torch")
        return
    if words[0] == "python":  # hours of a benchmark: see that it is there and knows the options
        source = (ROOT / words[1]).read_text(encoding="utf-8")
        assert all(f'"{word}"' in source for word in words if word.startswith("--"))
        return
    if words[0] == "torchrun":  # tests/cli starts several processes
        words = ["deit", *words[words.index("deit") + 1 :]]
    assert words[0] == "deit", words
    if words[1] == "demo":  # minutes: see that it knows the options
        assert {"--out", "--seed"} >= {word for word in words if word.startswith("--")}
        assert "--seed" in succeeds("demo", "--help").output
        return
    target = None
    if ">" in words:
        words, target = words[: words.index(">")], words[-1]
    words = [NAMES.get(word, word.replace("photos/new", "new")) for word in words[1:]]
    if words[0] in ("train", "pretrain"):
        words += [*QUICK, *([] if "--student" in words or "--init" in words else ["--student", VARIANT])]
        words += ["--set", "masking.patch=8"] if words[0] == "pretrain" else []
        shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)  # of a command before, an alternative
        if "my.yaml" in words:
            words += ["--set", "teacher="]
    result = succeeds(*words)
    if target is not None:
        Path(target).write_text(result.stdout, encoding="utf-8")


def test_every_page_with_a_block_is_tested() -> None:
    assert {language for blocks in BLOCKS.values() for language, _ in blocks} == {"bash", "python", ""}
    plain = {page for page, blocks in BLOCKS.items() for language, _ in blocks if not language}
    assert plain == {"architecture.md"}  # the picture of a folder
    assert len(BLOCKS) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in BLOCKS if page not in ("architecture.md", "keras.md")])
def test_every_code_block_runs(page: str, place: Path) -> None:
    for language, block in BLOCKS[page]:
        if language == "bash":
            for words in commands(block):
                run_command(words)
        else:
            exec(compile(block, page, "exec"), {})


@pytest.mark.slow
@pytest.mark.skipif(find_spec("keras") is None or find_spec("tensorflow") is None, reason="TensorFlow is not installed")
def test_the_blocks_of_the_page_on_keras_run_as_they_are_written(place: Path) -> None:
    """In a process of their own, one after the other: TensorFlow and torchvision in one abort."""
    (page,) = (BLOCKS[name] for name in BLOCKS if name == "keras.md")
    for words in (words for language, block in page if language == "bash" for words in commands(block)):
        run_command(words)
    deit.DeiTImageProcessor(size=32, crop_size=32).save_pretrained(place / "out")  # of the folder that is served
    program = "\n".join(block for language, block in page if language == "python")
    environment: dict[str, Any] = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    assert result.returncode == 0, result.stderr[-5000:]
    assert (place / "served" / "1" / "saved_model.pb").is_file()
